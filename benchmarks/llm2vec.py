"""Are LLM2Vec's published models, opened by `Encoder.load`, what LLM2Vec's own package makes of them?

    python benchmarks/llm2vec.py [--out benchmarks/reports]

The package, in its own environment, writes tiny models in its published layout (base, MNTP, supervised, SimCSE;
adapters, tokenizer and `config.json`) and encodes texts with them, with and without instructions. We open the same
folders: largest difference of a vector, relative to its length, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from harness import HERE, keep, python_of
from safetensors.numpy import load_file

from otherside.encoder import Encoder
from otherside.export import TEXTS

TOLERANCE = 1e-5
INSTRUCTIONS = ["", "Given a web search query, retrieve relevant passages that answer the query:", " Say it again: \n"]
BASES = {  # name: architecture, tokenizer, the base's name, which decides on the header
    "Meta-Llama-3-8B-Instruct": ("llama", "bytes", "meta-llama/Meta-Llama-3-8B-Instruct"),
    "Llama-2-7b-chat-hf": ("llama", "sentence pieces", "meta-llama/Llama-2-7b-chat-hf"),
    "Sheared-LLaMA": ("llama", "sentence pieces", "princeton-nlp/Sheared-LLaMA-1.3B"),
    "Meta-Llama-31-8B-Instruct": ("llama", "bytes", "meta-llama/Meta-Llama-3.1-8B-Instruct"),
    "Mistral-7B-Instruct-v2": ("mistral", "sentence pieces", "mistralai/Mistral-7B-Instruct-v0.2"),
    "Qwen2-7B-Instruct": ("qwen2", "bytes, no start", "Qwen/Qwen2-7B-Instruct"),
}


def texts() -> list[str]:
    """Of an export's, and some that a header or a cut may go wrong with."""
    ends = ["  spaces around  ", "a line break\n", "\n\nand before", "_ is the mask", "[INST] in a text [/INST]"]
    return [
        *filter(None, TEXTS),
        *ends,
        *(" ".join(["word"] * n) for n in (200, 398, 399, 400, 401, 402, 511, 512, 600)),
    ]


def compare(folder: Path) -> list[tuple[str, str, str, float]]:
    """Base, stage, instruction and largest difference of each case."""
    cases = [
        {
            "name": name,
            "kind": kind,
            "tokenizer": tokenizer,
            "base": base,
            "instructions": INSTRUCTIONS,
            "batch_size": 8,
        }
        for name, (kind, tokenizer, base) in BASES.items()
    ]
    read, program = folder / "texts.json", HERE / "contenders" / "llm2vec_encodes.py"
    read.write_text(json.dumps(texts()))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": ""}
    call = [python_of("llm2vec"), program, json.dumps(cases), folder, read]
    subprocess.run(call, check=True, env=environment, stderr=subprocess.DEVNULL)
    expected = load_file(folder / "vectors.safetensors")
    rows = []
    for name in BASES:
        for stage in ("mntp", "mntp-supervised", "mntp-unsup-simcse"):
            encoder = Encoder.load(folder / f"LLM2Vec-{name}-{stage}")
            for i, instruction in enumerate(INSTRUCTIONS):
                theirs, ours = expected[f"{name} {stage} {i}"], encoder.encode(texts(), instruction=instruction)
                differences = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
                rows.append((name, stage, instruction, float(np.nan_to_num(differences, nan=np.inf).max())))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE / "reports")
    out: Path = parser.parse_args().out
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(Path(folder))
    text = [
        f"Tiny models, {len(texts())} texts of up to thousands of tokens, float32. Difference: the largest of a",
        f"vector, relative to its length; {TOLERANCE:.0e} is allowed.",
        "",
        "| base | stage | instruction | difference |",
        "| --- | --- | --- | ---: |",
        *(f"| {name} | {stage} | {json.dumps(asked)} | {worst:.0e} |" for name, stage, asked, worst in rows),
        "",
        "On a CPU the package leaves Qwen 2 causal (our causal attention equals it then); its mask is opened here,",
        "as under flash attention.",
    ]
    keep(out, "llm2vec", "LLM2Vec's models: our vectors and its own package's", text)
    if failed := [row for row in rows if not row[-1] <= TOLERANCE]:
        raise SystemExit(f"{len(failed)} of {len(rows)} cases differ by more than {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
