"""What an export costs, for each tool, and how far its vectors are from the encoder's.

    python benchmarks/exports.py [ENCODER] [--billions 0.05 0.3] [--out benchmarks/reports]

`lightning export ENCODER OUT --kind …` for each kind and type of numbers, each in a process of its own that opens
what it wrote with the tool it is for: relative differences as it prints them, seconds of the processor, the kernel's
high-water mark of memory (mapped files of weights count), and the size of OUT. Then, in float32, two Llamas of random
weights with so many billions of parameters, and short texts: what memory the larger needs more gives, by arithmetic,
what an 8B would need.

What was measured is kept in a JSON file beside the report; the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from harness import HERE, keep
from transformers import LlamaConfig, LlamaForCausalLM

from otherside.export import TEXTS
from otherside.probing.report import markdown

sys.path.insert(0, str(HERE.parent / "tests"))
from conftest import build_tiny_llama
from tiny import SMOLLM2

CASES = {  # kind and dtype: packages that open the folder
    ("sentence-transformers", "float32"): ("sentence-transformers", "transformers"),
    ("merged", "float32"): ("transformers",),
    ("gguf", "float32"): ("xllamacpp",),
    ("gguf", "float16"): ("xllamacpp",),
    ("gguf", "q8_0"): ("xllamacpp",),
    ("onnx", "float32"): ("onnxruntime", "tokenizers"),
    ("onnx", "int8"): ("onnxruntime", "tokenizers"),
}
LARGE = 7.50  # billions of parameters of Llama 3 8B; `merged` has its head, too
HEAD = 0.53


class Cost(NamedTuple):
    """Of an export: what it says of its vectors, seconds of the processor, and GB of its memory and of its folder."""

    said: str
    seconds: float
    memory: float
    size: float


Costs = dict[tuple[str, str], Cost]


def measured(encoder: str, out: Path, kind: str, dtype: str) -> Cost:
    """Export once."""
    call = ["-m", "lightning_modules.cli", "export", encoder, str(out), f"--kind={kind}", f"--dtype={dtype}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    process = subprocess.Popen([sys.executable, *call], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    printed = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    found = re.search(r"differ by (\S+) in the median, (\S+) at most|mean cosine of (\S+)", printed)
    if process.returncode or not found:
        raise SystemExit(f"{kind}, {dtype}: status {process.returncode}; {printed}")
    median, largest, cosine = found.groups()
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    said = f"mean cosine {cosine}" if cosine else f"{median}, {largest}"
    return Cost(said, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e9, size / 1e9)


def exports(name: str, encoder: str, cases: Iterable[tuple[str, str]], kept: Path) -> Costs:
    """One after the other; those that are kept are not measured again."""
    known = json.loads(kept.read_text()) if kept.exists() else {}
    costs = {}
    for case in cases:
        key = ", ".join([name, *case])
        if key not in known:
            with tempfile.TemporaryDirectory() as work:
                known[key] = measured(encoder, Path(work) / "out", *case)
            kept.write_text(json.dumps(known, indent=1) + "\n")
        costs[case] = Cost(*known[key])
        print(key, costs[case], flush=True)
    return costs


def random_llama(folder: Path, billions: float) -> str:
    """A Llama of about this size and for short texts, with the tiny one's tokenizer."""
    build_tiny_llama(folder, bos=True)
    width, inner, vocabulary = 1024, 2816, 32_000
    layers = round((billions * 1e9 - vocabulary * width) / (2.5 * width**2 + 3 * width * inner))
    shape: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=layers, **shape)).save_pretrained(folder)
    return str(folder)


def billions(costs: Costs, kind: str) -> float:
    """Parameters that an export has, of 4 bytes each."""
    return costs[kind, "float32"].size / 4


def counted(costs: Costs) -> str:
    """Its parameters."""
    body = billions(costs, "sentence-transformers")
    return f"{body:.3f} billion parameters and {billions(costs, 'merged') - body:.3f} of its head"


def by_arithmetic(measured: Costs, few: Costs, many: Costs) -> list[list[str]]:
    """Of Llama 3 8B: memory, if it grows with parameters as between two models; CPU time in proportion to parameters,
    which is too long by what does not grow.
    """
    rows = []
    for kind, dtype in many:
        wanted = LARGE + HEAD if kind == "merged" else LARGE
        grown = (wanted - billions(few, kind)) / (billions(many, kind) - billions(few, kind))
        memory = few[kind, dtype].memory + grown * (many[kind, dtype].memory - few[kind, dtype].memory)
        minutes = measured[kind, dtype].seconds / 60 * wanted / billions(measured, kind)
        rows.append([kind, dtype, f"{minutes:.0f}", f"{memory:.0f}", f"{4 * wanted:.0f}"])
    return rows


def table(costs: Costs) -> str:
    """A line for each export."""
    rows = [
        [
            *case,
            ", ".join(f"{name} {version(name)}" for name in CASES[case]),
            cost.said,
            f"{cost.seconds:.0f}",
            f"{cost.memory:.1f}",
            f"{cost.size:.2f}",
        ]
        for case, cost in costs.items()
    ]
    return markdown(
        ["kind", "numbers", "opened by", "difference (median, largest)", "CPU s", "peak GB", "OUT, GB"], rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", nargs="?", default=SMOLLM2)
    parser.add_argument("--billions", type=float, nargs=2, default=[0.05, 0.3])
    parser.add_argument("--out", type=Path, default=HERE / "reports")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    kept = asked.out / f"{date.today()}-exports.json"
    costs = exports(asked.encoder, asked.encoder, CASES, kept)
    whole, randoms = [case for case in CASES if case[1] == "float32"], []
    for size in asked.billions:
        with tempfile.TemporaryDirectory() as work:
            randoms.append(exports(f"random, {size}", random_llama(Path(work) / "base", size), whole, kept))
    text = [
        f"{asked.encoder}, {counted(costs)}, one thread. Relative differences of vectors of {len(TEXTS)} texts.",
        "",
        table(costs),
        "",
        "Llamas of random weights, texts of up to 64 tokens:",
        "",
        *(line for found in randoms for line in (f"{counted(found)}:", "", table(found), "")),
        f"Llama 3 8B, {LARGE} billion parameters and {HEAD} of its head, by arithmetic: memory from these two, time",
        "from the first table.",
        "",
        markdown(["kind", "numbers", "CPU minutes", "peak GB", "OUT, GB"], by_arithmetic(costs, *randoms)),
    ]
    keep(asked.out, "exports", "Exports: differences, time and memory", text)


if __name__ == "__main__":
    main()
