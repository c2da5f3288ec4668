"""Published MTEB tasks: one score, whichever way an encoder is evaluated."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mteb
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import runs
from conftest import shared
from sentence_transformers import SentenceTransformer

from otherside.encoder import Encoder
from otherside.evaluation.tasks import find_tasks, load

SMALL = ["STSBenchmark", "RTE3", "LIMITSmallRetrieval"]
Stage = Callable[..., Path]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Stage:
    """A stage that is evaluated when it ends."""
    folder, data = tmp_path_factory.mktemp("mteb"), shared("data/mteb")
    runs.write_data(folder, rows=16)

    def write(root: str, tasks: list[str], **settings: Any) -> Path:
        block = {"tasks": tasks, "data": str(data), "at_start": False}
        return runs.write_stage(folder, "Supervised", tiny_llama, root=root, steps=2, mteb=block, **settings)

    return write


def said(output: str) -> dict[str, float]:
    """Score by task."""
    [line] = re.findall(r"^mteb at step 2: (.*)  mean", output, re.MULTILINE)
    return {name: float(score) for name, score in (part.split() for part in line.split("  "))}


def by_mteb(model: Any, tasks: list[str], data: Path | None = None) -> dict[str, float]:
    """What plain `mteb.evaluate` finds."""
    found = {}
    for task in find_tasks(tasks, ["eng"]):
        load(task, data or shared("data/mteb"))
        result = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
        found[task.metadata.name] = result.task_results[0].get_score()
    return found


def exported(root: Path) -> SentenceTransformer:
    runs.run("export", root / "encoder", root / "st", cwd=root)
    return SentenceTransformer(str(root / "st"), device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_way_gives_the_same_scores(stage: Stage) -> None:
    config = stage("run", SMALL)
    folder = config.parent
    found = {"fit, ddp": said(runs.run_ranks(2, "fit", "--config", config, "--trainer.strategy", "ddp", cwd=folder))}
    test = ("test", "--config", config, "--trainer.strategy", "zero3")
    found["test, zero3"] = said(runs.run_ranks(2, *test, cwd=folder))
    found["test, one rank"] = said(runs.run("test", "--config", config, cwd=folder))
    found["encoder folder"] = by_mteb(Encoder.load(folder / "run" / "encoder"), SMALL)
    found["sentence-transformers"] = by_mteb(exported(folder / "run"), SMALL)
    for way, scores in found.items():
        print(f"\n{way:22}", "  ".join(f"{name} {score:.4f}" for name, score in scores.items()), end="")
        assert scores == pytest.approx(found["sentence-transformers"], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_evaluation_while_sharded_weights_train(strategy: str, stage: Stage) -> None:
    config = stage(strategy, ["RTE3"], **{"trainer.strategy": strategy})
    found = said(runs.run_ranks(2, "fit", "--config", config, cwd=config.parent))
    assert found == pytest.approx(by_mteb(Encoder.load(config.parent / strategy / "encoder"), ["RTE3"]), abs=1e-4)
    without = ("--mteb.tasks", "null", "--trainer.default_root_dir", f"{strategy}-without")
    runs.run_ranks(2, "fit", "--config", config, *without, cwd=config.parent)
    runs.assert_equal(*(runs.adapter(config.parent / f"{strategy}{end}") for end in ("", "-without")))


def few_classes(folder: Path) -> Path:
    """Banking77 with ten of its classes: mteb's own classifiers take half a minute for all of them."""
    task = shared("data/mteb") / "mteb__banking77"
    (folder / task.name / "default").mkdir(parents=True)
    shutil.copy(task / "README.md", folder / task.name)
    for part in (task / "default").iterdir():
        table = pq.read_table(part)
        pq.write_table(table.filter(pc.less(table["label"], 10)), folder / task.name / "default" / part.name)
    return folder


@pytest.mark.slow
def test_a_task_that_draws_its_training_set(stage: Stage, tmp_path: Path) -> None:
    task, data = ["Banking77Classification"], few_classes(tmp_path)
    config = stage("banking", task, **{"mteb.data": str(data)})
    found = said(runs.run_ranks(2, "fit", "--config", config, "--trainer.strategy", "ddp", cwd=config.parent))
    assert found == pytest.approx(by_mteb(exported(config.parent / "banking"), task, data), abs=1e-4)
