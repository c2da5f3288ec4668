"""Tokens and vectors as llama.cpp has them, in a process of its own.

Where llama.cpp fails it may abort, and its server takes over signals. That process runs this file alone, without torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from signal import Signals
from typing import Any

# Its threads spin while they wait, which takes ten times as long where others work; its aborts start a debugger
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GGML_NO_BACKTRACE": "1"}


def embed(file: Path, texts: Sequence[str], length: int, threads: int = 1) -> tuple[list[list[int]], list[list[float]]]:
    """Read texts as text, whatever special tokens they spell, and embed them.

    Args:
        file: a GGUF file.
        texts: each of which must have a token.
        length: tokens after which they are cut.
        threads: to compute with; by itself llama.cpp takes all cores, those of others, too.

    Returns:
        Tokens of each, and its vector as it is pooled, not normalised.

    Raises:
        RuntimeError: llama.cpp cannot open the file or compute with it.
    """
    asked = json.dumps({"file": str(file), "texts": list(texts), "length": length, "threads": threads})
    command = [sys.executable, "-P", __file__]  # without our folder on its path, where modules have others' names
    done = subprocess.run(
        command, input=asked, capture_output=True, encoding="utf-8", errors="replace", env={**os.environ, **ENVIRONMENT}
    )
    if done.returncode:
        by = f"by {Signals(-done.returncode).name}" if done.returncode < 0 else f"with status {done.returncode}"
        lines = done.stderr.strip().splitlines() or ["no word"]
        said = " … ".join(dict.fromkeys((lines[0], lines[-1])))
        raise RuntimeError(
            f"llama.cpp must open {file.name} and embed texts; its process ended {by}: {said}. Nothing was "
            "exported. Use the tested versions (constraints.txt); if they are in use, please report it."
        )
    answer = json.loads(done.stdout)
    return answer["tokens"], answer["vectors"]


def serve(file: str, length: int, threads: int) -> Any:
    """llama.cpp's server, on the CPU, in float32."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.embedding, settings.embd_normalize = file, True, -1
    settings.n_ctx, settings.n_batch, settings.n_ubatch = length + 1, length, length
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # has keys in 16 bits
    settings.n_gpu_layers, settings.warmup = 0, False
    settings.verbosity = 1  # errors
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(settings)


def tokenised(server: Any, text: str) -> list[int]:
    """A text's tokens; those that embeddings ask for by themselves would be special ones where it spells them."""
    connection = HTTPConnection(server.listening_address.removeprefix("http://"))
    connection.request("POST", "/tokenize", json.dumps({"content": text, "add_special": True, "parse_special": False}))
    tokens: list[int] = json.load(connection.getresponse())["tokens"]
    connection.close()
    return tokens


def main() -> None:
    """Answer on stdout what is asked on stdin."""
    asked = json.load(sys.stdin)
    server = serve(asked["file"], asked["length"], asked["threads"])
    tokens = [tokenised(server, text)[: asked["length"]] for text in asked["texts"]]
    found = server.handle_embeddings({"input": tokens})
    if "data" not in found:
        sys.exit(found["error"]["message"])
    json.dump({"tokens": tokens, "vectors": [row["embedding"] for row in found["data"]]}, sys.stdout)


if __name__ == "__main__":
    main()
