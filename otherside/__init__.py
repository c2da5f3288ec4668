"""Decoder-only Llamas as bidirectional text encoders."""
