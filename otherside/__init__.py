"""Decoder-only Llamas as bidirectional text encoders."""

import logging

# PEFT imports bitsandbytes where it is installed, which then warns of a kernel for CPUs that is none of ours
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
