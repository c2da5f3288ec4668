"""The examples, as a newcomer runs them, with the Llama from the pip package."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from otherside.encoder import Encoder

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*command: object, cwd: Path = EXAMPLES.parent) -> str:
    tools = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run([str(word) for word in command], cwd=cwd, env=tools, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_vectors() -> None:
    rain, *_ = run(sys.executable, EXAMPLES / "vectors.py").splitlines()
    same, other, unlike = map(float, rain.split()[-3:])
    assert same == 1.0 and other > unlike + 0.1


def test_words() -> None:
    within, across = (float(part.split()[-1]) for part in run(sys.executable, EXAMPLES / "words.py").split(","))
    assert within > across + 0.1


def test_search() -> None:
    best, *_ = run(sys.executable, EXAMPLES / "search.py", "the app crashes").splitlines()
    assert best.endswith("the program closes as soon as I open it.")


def test_compare(tmp_path: Path) -> None:
    header = ["variant", "task", "input", "target", "layer", "probe", "condition", "metric", "value", "low", "high"]
    with (tmp_path / "results.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        for variant in ("uni", "bi"):
            rows.writerow([variant, "retrieval", "", "", "", "", "context", "MRR", 0.5, 0.4, 0.6])
    run(sys.executable, EXAMPLES / "compare.py", tmp_path, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.slow
def test_train_on_a_csv(tmp_path: Path) -> None:
    with (tmp_path / "faq.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([f"How do I reset device {i}?", f"Hold the button of device {i}."] for i in range(64))
    run(EXAMPLES / "train_on_csv.sh", tmp_path / "faq.csv", tmp_path / "run", 2)
    assert Encoder.load(str(tmp_path / "run")).encode(["a"]).shape == (1, 576)
