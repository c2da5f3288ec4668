"""The script for CUDA machines, on the devices that are here: it fails where a kernel computes something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
def test_all_of_it_runs_on_a_tiny_shape(device: str, tmp_path: Path) -> None:
    options = ["--shapes", "tiny", "--tokens", "256", "--steps", "1", "--out", str(tmp_path)]
    if device == "cpu":  # the last one is timed, and many CPUs emulate bfloat16
        options += ["--dtypes", "bfloat16", "float32"]
    subprocess.run([sys.executable, SCRIPT, "--device", device, *options], check=True, timeout=240)
    [report] = tmp_path.glob("*.json")
    found = json.loads(report.read_text())
    kernels = {(row["kernel"], row["dtype"]) for row in found["right"] if row["right"]}
    assert {("sdpa", "float32"), ("eager", "bfloat16"), ("auto, dropout", "bfloat16")} <= kernels
    assert {row["task"] for row in found["fast"]} == {"mntp", "contrastive, up to 128", "contrastive, up to 512"}
    assert sum("sentence-transformers" in row["memory"] for row in found["fast"]) == 2
    assert all(row["tokens / s"] > 0 for row in found["fast"])
    assert [row["task"].split()[0] for row in found["looped"]] == ["mntp", "simcse", "supervised"]
    assert all(row["tokens / s"] > 0 and row["GB of lightning size"] > 0 for row in found["looped"])
