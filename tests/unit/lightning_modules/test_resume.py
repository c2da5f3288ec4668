"""Invariant 4 in one process: a run that was cut ends with the weights of one that was not, bit for bit.

The tiny Llama has a sink, as trained ones have; it is looked for again when a run goes on.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from itertools import product
from pathlib import Path

import pytest
import runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    runs.write_data(folder, rows=30)  # three steps an epoch: resumes fall into the middle of epochs
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    rows = [{**row, "negatives": [row["query"] + "?", *row["negatives"]], "positive_score": 0.8} for row in rows]
    scored = [{**row, "scores": [0.7, i % 5 / 10]} for i, row in enumerate(rows)]
    (folder / "scored.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scored))
    return folder


CUT = {"model.init_args.chunk_tokens": 40, "trainer.accumulate_grad_batches": 2}
TAUGHT = {
    "model.init_args.loss": {"teacher": {}},
    "data.init_args.sources": [{"path": "scored.jsonl", "scores": True}],
    "data.init_args.negatives": 1,  # drawn, with its score
}


@pytest.mark.parametrize(
    ("stage", "settings"),
    [*product(["MNTP", "SimCSE", "Supervised"], [{}, CUT]), ("Supervised", {**CUT, **TAUGHT})],
)
def test_resume_in_the_middle_of_an_epoch_is_bit_equal(
    stage: str, settings: dict[str, object], place: Path, tiny_llama_sink: Path
) -> None:
    for name in ("whole", "cut"):
        shutil.rmtree(place / name, ignore_errors=True)
    whole = runs.write_stage(place, stage, tiny_llama_sink, root="whole", steps=8, **settings)
    runs.run("fit", "--config", whole, cwd=place)
    runs.run("fit", "--config", whole, "--trainer.default_root_dir", "cut", "--trainer.max_steps", "4", cwd=place)
    output = runs.run("fit", "--config", whole, "--trainer.default_root_dir", "cut", cwd=place)
    assert "resumes from cut/checkpoints/step=4.ckpt" in output
    runs.assert_equal(runs.adapter(place / "whole"), runs.adapter(place / "cut"))


def test_kill_at_random_moments_loses_nothing(place: Path, tiny_llama_sink: Path) -> None:
    config = runs.write_stage(place, "SimCSE", tiny_llama_sink, steps=12, **{"checkpoints.every_n_steps": 1})
    fit = ("fit", "--config", config, "--trainer.default_root_dir")
    begun = time.monotonic()
    runs.run(*fit, "undisturbed", cwd=place)
    seconds = time.monotonic() - begun
    chance = random.Random(0)
    for _ in range(10):
        command = runs.start(*fit, "killed", cwd=place, before=runs.wait_for_the_disk)
        time.sleep(chance.uniform(0.3, 0.8) * seconds)
        command.kill()
        command.wait()
    runs.run(*fit, "killed", cwd=place)
    runs.assert_equal(runs.adapter(place / "undisturbed"), runs.adapter(place / "killed"))


def test_kill_inside_a_save_leaves_the_checkpoint_before_it(place: Path, tiny_llama_sink: Path) -> None:
    config = runs.write_stage(place, "Supervised", tiny_llama_sink, steps=6, **{"checkpoints.every_n_steps": 1})
    fit = ("fit", "--config", config, "--trainer.default_root_dir")
    runs.run(*fit, "calm", cwd=place)
    hits = 0
    for step in (2, 4):
        command = runs.start(*fit, "torn", cwd=place, before=runs.wait_for_the_disk)
        half = place / "torn" / "checkpoints" / f".step={step}.ckpt.tmp"
        deadline = time.monotonic() + 60
        while not half.exists() and time.monotonic() < deadline:
            pass
        command.kill()
        command.wait()
        hits += half.exists()
    assert hits, "no kill fell into a save"
    runs.run(*fit, "torn", cwd=place)
    runs.assert_equal(runs.adapter(place / "calm"), runs.adapter(place / "torn"))


@pytest.mark.parametrize("file", ["state.pt", "encoder/sink.safetensors"])
def test_a_torn_checkpoint_is_named_and_the_one_before_it_used(file: str, place: Path, tiny_llama_sink: Path) -> None:
    root = f"bitrot-{Path(file).stem}"
    config = runs.write_stage(place, "MNTP", tiny_llama_sink, root=root, steps=8)
    runs.run("fit", "--config", config, "--trainer.max_steps", "6", cwd=place)
    torn = place / root / "checkpoints" / "step=6.ckpt" / file
    torn.write_bytes(torn.read_bytes()[:-100])
    output = runs.run("fit", "--config", config, cwd=place)
    assert f"step=6.ckpt is torn: {file}" in output
    assert f"resumes from {root}/checkpoints/step=4.ckpt" in output
    runs.run("fit", "--config", config, "--trainer.default_root_dir", f"sound-{root}", cwd=place)
    runs.assert_equal(runs.adapter(place / f"sound-{root}"), runs.adapter(place / root))


def test_two_processes_cannot_train_in_one_folder(place: Path, tiny_llama_sink: Path) -> None:
    config = runs.write_stage(place, "MNTP", tiny_llama_sink, root="shared", steps=200)
    first = runs.start("fit", "--config", config, cwd=place)
    while not (place / "shared" / "checkpoints").exists():
        time.sleep(0.05)
    status, output = runs.start("fit", "--config", config, cwd=place).wait()
    first.kill()
    first.wait()
    assert status == 1
    assert "error: one process at a time may train in shared" in output
