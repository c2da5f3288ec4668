"""What is wrong with data before anybody trains on them: `lightning check-data`."""
