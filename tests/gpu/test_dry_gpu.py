"""The stages on a GPU that is not there: all fits together, and the host seldom waits for the device."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("mntp", "simcse", "supervised")
SHAPES = sorted(path.name for path in (ROOT / "benchmarks" / "shapes").iterdir())
WAITS = 45  # host synchronisations of a step, at most
LAYER = 900  # kernels of a layer for two chunks, forward, again, and backward; at most


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """A process of its own, as the fake device must be there before torch is imported."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler, for the device that torch is shown")
    command = [sys.executable, ROOT / "benchmarks" / "dry_gpu.py", "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]  # two devices or two types met
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.slow
def test_every_stage_runs_by_every_kernel_and_on_every_shape(rows: list[dict[str, Any]]) -> None:
    found = {(row["stage"], row["kernel"], row["shape"]) for row in rows}
    assert found >= {(stage, "auto", shape) for stage in STAGES for shape in SHAPES}
    assert found >= {(stage, kernel, "tiny") for stage in STAGES for kernel in ("sdpa", "eager")}
    assert {("mntp", "varlen", "tiny"), ("supervised", "varlen", "tiny")} <= found


def test_the_host_seldom_waits(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert sum(row["waits"].values()) <= WAITS, row


def test_a_layer_has_so_many_kernels(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        assert row.get("layer", 0) <= LAYER, row
