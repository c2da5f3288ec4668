"""Which of the evaluations in a run's folder is an encoder's own."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from exports import trained, with_history
from tiny import load

from lightning_modules.report.runs import Run
from lightning_modules.report.tables import mteb
from otherside.adapters import Lora
from otherside.encoder import Encoder
from otherside.evaluation import model_meta
from otherside.export import origin
from otherside.lineage import Card
from otherside.measured import META, Evaluated, own
from otherside.soup import soup
from otherside.tokenizer import load_tokenizer

RESULT = {"task_name": "STSBenchmark", "scores": {"test": [{"main_score": 0.5}]}}


@pytest.fixture
def run(tiny_llama: Path, tmp_path: Path) -> Path:
    with_history(trained(tiny_llama, tmp_path / "run" / "encoder"), {})
    return tmp_path / "run"


def evaluate(run: Path, age: int, noted: bool = True, step: int = 0, **settings: object) -> Evaluated:
    """Leave what mteb leaves, for an encoder with other settings."""
    base = Card.read(run / "encoder").lineage.base
    encoder = Encoder(load(Path(base), Lora(r=4)), load_tokenizer(base), max_length=64)
    instructions = settings.pop("instructions", {})
    for name, value in settings.items():
        setattr(encoder, name, value)
    meta = model_meta(encoder, instructions, "mntp", step)  # type: ignore[arg-type]
    found = meta.to_dict()
    folder = run / "mteb" / "results" / found["name"].replace("/", "__") / found["revision"]
    folder.mkdir(parents=True)
    (folder / "STSBenchmark.json").write_text(json.dumps(RESULT))
    os.utime(folder / "STSBenchmark.json", (1e9 - age, 1e9 - age))
    if noted:
        (folder / META).write_text(json.dumps(found, default=str))
    return Evaluated._read(folder)


def test_of_several_at_one_step_the_one_with_the_encoders_settings(run: Path) -> None:
    card = Card.read(run / "encoder")
    ours = evaluate(run, 3)
    evaluate(run, 2, max_length=32)
    asked = evaluate(run, 1, instructions={"query": "Find: "})
    evaluate(run, 0, noted=False, pooling="last_token")
    evaluate(run, 0, step=9)
    assert own(Evaluated.all_of(run), card) == ours
    assert ours.told == "in float32, texts of up to 64 tokens, no instructions"
    assert "instructions for query" in asked.told
    assert Run(run, "run").first_and_last == [ours]


def test_settings_that_differ_stand_in_the_table(run: Path) -> None:
    before, last = evaluate(run, 1, max_length=32, step=0), evaluate(run, 0, step=3)
    shutil.rmtree(run / "encoder")  # not finished yet
    table = mteb([Run(run, "run")])
    assert table is not None
    assert table.header[1:] == [f"run, step 0, {before.told}", f"run, step 3, {last.told}"]


def test_of_equal_ones_the_newest(run: Path) -> None:
    evaluate(run, 2, max_length=32)
    newest = evaluate(run, 1, max_length=16)
    evaluate(run, 3, max_length=8)
    assert own(Evaluated.all_of(run), Card.read(run / "encoder")) == newest


def test_scores_of_another_encoder_are_not_a_soups(run: Path, tiny_llama: Path) -> None:
    """Which may stand in the run's folder, and has its steps, 0."""
    evaluate(run, 0)
    soup([str(run / "encoder"), str(tiny_llama)], run / "soup")
    assert origin.evaluated(str(run / "soup"), Card.read(run / "soup")) is None
    assert origin.evaluated(str(run / "encoder"), Card.read(run / "encoder"))
