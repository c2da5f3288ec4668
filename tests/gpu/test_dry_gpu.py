"""The stages on a GPU that is not there: all fits together, and the host seldom waits for the device."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.xdist_group("dry_gpu"), pytest.mark.timeout(600)]  # all rows are computed once

ROOT = Path(__file__).parents[2]
STAGES = ("mntp", "simcse", "supervised")
SHAPES = ("smollm2-135m", "sheared-llama-1.3b")
WAITS = 0  # host synchronisations of a step
LOGS = 2  # of one that logs: the loss and the gradient's norm
LAYER = {"mntp": 664, "simcse": 988, "supervised": 664}  # kernels of a layer: two chunks (simcse: three), recomputed

SCRIPT = """
from fake_gpu import CUDA, FakeGPU
import torch
from otherside.attention import best_kernel

with FakeGPU() as gpu:
    x = torch.ones(4, 8).to(CUDA)
    w = torch.ones(8, 2).pin_memory().to(CUDA, non_blocking=True).requires_grad_()
    (x @ w).sum().backward()
    assert w.grad.is_cuda and w.grad.shape == (8, 2)
    x.sum().item(), x.nonzero(), x[x > 0], x[torch.tensor([1])], x.cpu(), torch.tensor(1.0, device=CUDA)
    for other in (torch.ones(4, 8), torch.ones(8, 2).bfloat16().to(CUDA)):
        try:
            x + other if other.shape == x.shape else x @ other
        except RuntimeError:
            print("clash")
    print(*(best_kernel(CUDA, torch.bfloat16, 0, dropout, True) for dropout in (0.0, 0.3)))
print(*sorted(where.split(":")[0] for where in gpu.waits.elements()), sep=", ")
"""


def python(*arguments: str | Path, timeout: float) -> str:
    """What a process prints; one of its own, as the fake device must be there before torch is imported."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("needs a C++ compiler, for the device that torch is shown")
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT / "benchmarks", timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@cache
def all_rows() -> list[dict[str, Any]]:
    """A run fails where two devices or two types meet."""
    said = python("dry_gpu.py", "--check", "--stages", *STAGES, timeout=590)
    return [json.loads(line) for line in said.splitlines() if line.startswith("{")]


def rows(stage: str) -> list[dict[str, Any]]:
    return [row for row in all_rows() if row["stage"] == stage]


def test_the_device_sees_clashes_and_waits() -> None:
    copies = ["copy to the device"] * 3  # the second operand of the other type, too
    expected = ["boolean index", *copies, "copy to the host", "index on the CPU", "item", "nonzero"]
    assert python("-c", SCRIPT, timeout=120).splitlines() == ["clash", "clash", "varlen sdpa", ", ".join(expected)]


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_by_every_kernel_and_on_every_kind_of_shape(stage: str) -> None:
    kernels = {"sdpa", "eager"} if stage == "simcse" else {"sdpa", "eager", "varlen"}  # varlen has no dropout
    shapes = (*SHAPES, "llama-3.1-8b") if stage == "mntp" else SHAPES
    wanted = {("auto", shape) for shape in shapes} | {(kernel, "tiny") for kernel in kernels}
    assert {(row["kernel"], row["shape"]) for row in rows(stage)} == wanted


@pytest.mark.parametrize("stage", STAGES)
def test_the_host_waits_only_to_log(stage: str) -> None:
    for row in rows(stage):
        assert sum(row["waits"].values()) <= WAITS, row
        assert sum(row["logs"].values()) <= LOGS, row


@pytest.mark.parametrize("stage", STAGES)
def test_a_layer_has_so_many_kernels(stage: str) -> None:
    [found] = [row["layer"] for row in rows(stage) if "layer" in row]
    assert found <= LAYER[stage]


@pytest.mark.parametrize(("stage", "padded"), [("simcse", True), ("supervised", False)])
def test_a_published_step_goes_through_the_model_at_once(stage: str, padded: bool) -> None:
    """Each chunk costs the host as much as a batch; padding is no reason for one where kernels have none."""
    steps = runpy.run_path(str(ROOT / "benchmarks" / "recipe_steps.py"))
    job = steps["published"](stage, steps["REFERENCE"])
    assert len(job.batch(0, 100).cut(job.chunk_tokens, steps["STAGES"][stage].views, padded).chunks.parts) == 1
