"""Decoder-only Llamas as bidirectional text encoders."""

import logging
import sys

# No code from the hub: bitsandbytes, which PEFT imports where it is installed, fetches a kernel for CPUs by the package
# `kernels` when it is imported, runs it, and warns where it cannot
sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
