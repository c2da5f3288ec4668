"""An encoder as an ONNX graph, whole and with 8 bits: what it costs in quality, and its speed beside PyTorch on a CPU.

    python benchmarks/onnx_graph.py ENCODER [--texts 800] [--threads 1]

Sentences of STSBenchmark's validation set ($OTHERSIDE_SHARED or ../shared), sorted by length, 16 at once. The ways take
turns; a time is the best of three.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.parquet as pq
import torch
from harness import command, machine
from onnxruntime.quantization import QuantType, quantize_dynamic
from scipy.stats import spearmanr
from tokenizers import Tokenizer

from otherside.encoder import Encoder
from otherside.export import export
from otherside.probing.report import markdown

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("OTHERSIDE_SHARED", ROOT.parent / "shared"))
STS = SHARED / "data/mteb/mteb__stsbenchmark-sts/default/validation.parquet"
BATCH, PASSES = 16, 3
Encode = Callable[[list[str]], np.ndarray]


def by_graph(folder: Path, model: Path, threads: int) -> Encode:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options)

    def encode(texts: list[str]) -> np.ndarray:
        read = tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(text, name) for text in read]) for name in ("ids", "attention_mask"))
        found: np.ndarray = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]
        return found

    return encode


def size(model: Path) -> float:
    return sum(path.stat().st_size for path in model.parent.glob(f"{model.name}*")) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder")
    parser.add_argument("--texts", type=int, default=800)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = pq.read_table(STS).to_pylist()[: options.texts // 2]
    texts = [row[side] for side in ("sentence1", "sentence2") for row in rows]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for dtype in ("float32", "int8"):
            export(options.encoder, work / dtype, kind="onnx", dtype=dtype)
        dynamic = work / "float32" / "dynamic.onnx"
        quantize_dynamic(
            work / "float32/model.onnx", dynamic, weight_type=QuantType.QInt8, per_channel=True,
            op_types_to_quantize=["MatMul"],
        )  # fmt: skip
        encoder = Encoder.load(options.encoder, dtype="float32")
        ways: dict[str, Encode] = {
            "PyTorch, float32": encoder.encode,
            "ONNX, float32": by_graph(work / "float32", work / "float32/model.onnx", options.threads),
            "ONNX, int8": by_graph(work / "int8", work / "int8/model.onnx", options.threads),
            "ONNX, dynamic int8": by_graph(work / "float32", dynamic, options.threads),
        }
        sizes = dict(zip(ways, ("", *(f"{size(m):.0f} MB" for m in (
            work / "float32/model.onnx", work / "int8/model.onnx", dynamic))), strict=True))  # fmt: skip
        vectors = {way: np.zeros((len(texts), encoder.backbone.hidden_size), np.float32) for way in ways}
        seconds = dict.fromkeys(ways, np.inf)
        for _ in range(PASSES):
            for way, encode in ways.items():
                begun = time.perf_counter()
                for first in range(0, len(order), BATCH):
                    chosen = order[first : first + BATCH]
                    vectors[way][chosen] = encode([texts[i] for i in chosen])
                seconds[way] = min(seconds[way], time.perf_counter() - begun)
    body = []
    plain = next(iter(seconds.values()))
    unit = {way: found / np.linalg.norm(found, axis=1, keepdims=True) for way, found in vectors.items()}
    first = unit["PyTorch, float32"]
    for way, found in unit.items():
        cosines = (found[: len(rows)] * found[len(rows) :]).sum(1)
        same = (found * first).sum(1)
        sts = spearmanr(cosines, [row["score"] for row in rows])[0]
        line = [f"{sts:.4f}", f"{same.mean():.4f}", f"{same.min():.4f}", f"{plain / seconds[way]:.2f}", sizes[way]]
        body.append([way, *line])
    print(f"`{command()}`, {machine()}\n")
    print(markdown(["", "STSBenchmark", "mean cosine with the first", "least", "speed", "size"], body))


if __name__ == "__main__":
    main()
