"""How large a stage is on N nodes with M GPUs: plain arithmetic on its settings and the base model's shape."""
