"""`lightning recipe`: order, what is skipped, what stops it. Stages are real, and each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import runs

from lightning_modules import finished
from lightning_modules.cli import main
from lightning_modules.identity import adapters, given
from lightning_modules.includes import with_settings
from lightning_modules.recipe import behind, needs_nothing, read, run, stages, steps
from otherside.lineage import Card, Lineage, Merged


def write(folder: Path, name: str, model: str, root: str, extra: str = "") -> None:
    (folder / f"{name}.yaml").write_text(
        f"model: {{init_args: {{backbone: {{model: {model}}}}}}}\n"
        f"trainer: {{default_root_dir: {root}, max_steps: 2}}\n{extra}"
    )


def end(file: Path, root: Path, model: str = "base") -> None:
    """As if `lightning fit --config FILE` had ended there."""
    (root / finished.ENCODER).mkdir(parents=True, exist_ok=True)
    said = given(["--config", str(file)])
    finished.write(root, 2, 1, 2, -1, given=said, identity={"adapters": adapters(model)}, changes=[])


def test_each_stage_comes_behind_the_one_it_starts_from(tmp_path: Path) -> None:
    write(tmp_path, "a-last", "runs/m/encoder", "runs/l")
    write(tmp_path, "b-middle", "runs/f/encoder", "runs/m")
    write(tmp_path, "c-first", "base", "runs/f")
    (tmp_path / "common.yaml").write_text("trainer: {devices: 1}\n")  # no stage
    assert [stage.file.stem for stage in stages(tmp_path)] == ["c-first", "b-middle", "a-last"]


def mines(folder: Path, **settings: object) -> Path:
    """`negatives.yaml`, behind the encoder in runs/f."""
    asked = {"encoder": "runs/f/encoder", "pairs": "pairs.jsonl", "out": "runs/mined.jsonl", **settings}
    (folder / "negatives.yaml").write_text(json.dumps({"mine": asked}))
    return folder / "negatives.yaml"


def test_mining_comes_between_the_stages_that_it_joins(tmp_path: Path) -> None:
    rows = "data: {init_args: {sources: [{path: other.jsonl}, {path: ./runs/mined.jsonl}]}}\n"
    write(tmp_path, "a-last", "runs/f/encoder", "runs/l", rows)
    write(tmp_path, "c-first", "base", "runs/f")
    file = mines(tmp_path, negatives=2)
    found = steps(tmp_path)
    assert [step.name for step in found] == ["c-first", "negatives", "a-last"]
    assert found[1].command(["--trainer.max_steps", "2"])[2:] == ["mine", "--config", str(file)]
    assert behind(found[2], found) == [found[0], found[1]]
    assert [stage.name for stage in stages(tmp_path)] == ["c-first", "a-last"]


def test_what_was_mined_is_not_mined_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runs.write_data(tmp_path, rows=12)
    [step] = [read(mines(tmp_path, encoder=str(tiny_llama), negatives=2, dtype="float32"))]
    assert not step.is_finished()
    runs.run(*step.command([])[2:], "--out", "over.jsonl", "--negatives", "1", cwd=tmp_path)
    assert len(json.loads((tmp_path / "over.jsonl").read_text().splitlines()[0])["negatives"]) == 1
    runs.run("recipe", ".", cwd=tmp_path)
    assert len(json.loads((tmp_path / "runs/mined.jsonl").read_text().splitlines()[0])["negatives"]) == 2
    assert step.is_finished() and needs_nothing(step, ["--trainer.max_steps", "2"])
    assert "  is finished" in runs.run("recipe", ".", cwd=tmp_path)
    assert not read(mines(tmp_path, encoder=str(tiny_llama), dtype="float32")).is_finished()
    status, said = runs.start("recipe", ".", cwd=tmp_path).wait()
    assert status == 1 and "was made with other settings (negatives)" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"pairs": ""}, "which needs encoder, pairs, out"), ({"negative": 2}, "which has no negative")],
)
def test_what_mining_does_not_know_is_an_error(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"negatives.yaml: mine must have arguments of `lightning mine`, {said}"):
        steps(mines(tmp_path, **settings).parent)
    with pytest.raises(ValueError, match=r"under mine:; .*/other.yaml has none"):
        write(tmp_path, "other", "base", "runs/other")
        with_settings("mine", ["encoder"], ["--config", str(tmp_path / "other.yaml")])


def test_settings_may_stand_in_an_included_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "trainer.yaml").write_text("trainer: {default_root_dir: runs/a}")
    (tmp_path / "a.yaml").write_text("include: parts/trainer.yaml\nmodel: {init_args: {backbone: {model: base}}}")
    [stage] = stages(tmp_path)
    assert stage.root == "runs/a"


def test_dry_run_says_the_order_and_trains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "mntp", "base", "runs/mntp")
    write(tmp_path, "simcse", "runs/mntp/encoder", "runs/simcse")
    end(Path("mntp.yaml"), Path("runs/mntp"))
    main(["recipe", ".", "--dry-run"])
    assert capsys.readouterr().err.splitlines() == [
        "stage 1/2: mntp.yaml (base -> runs/mntp)",
        "  is finished",
        "stage 2/2: simcse.yaml (runs/mntp/encoder -> runs/simcse)",
    ]
    assert not (tmp_path / "runs" / "simcse").exists()


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("trainer: {devices: 2, log_every_n_steps: 9}", True),
        ("trainer: {max_epochs: -1, max_steps: 1}", True),
        ("trainer: {max_steps: 3}", False),
        ("trainer: {precision: bf16-mixed}", False),
        ("model: {init_args: {lora: {r: 8}}}", False),
        ("data: {init_args: {max_length: 16}}", False),
        ("seed_everything: 7", False),
    ],
)
def test_what_is_finished_is_said_without_a_process(change: str, answer: bool, tmp_path: Path) -> None:
    write(tmp_path, "a", "base", str(tmp_path / "run"))
    end(tmp_path / "a.yaml", tmp_path / "run")
    [stage] = stages(tmp_path)
    assert stage.is_finished()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.yaml").write_text(change)
    assert stage.is_finished(["--config", str(tmp_path / "b" / "b.yaml")]) is answer


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ([], True),
        (["--trainer.max_steps", "2"], True),
        (["--trainer.max_steps=1"], True),
        (["--trainer.max_stepz", "2"], False),
        (["--trianer.max_steps=2"], False),
        (["--config", "a.yaml"], False),
    ],
)
def test_a_finished_stage_hides_no_misspelled_option(
    options: list[str], answer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "a", "base", "run")
    end(Path("a.yaml"), Path("run"))
    [stage] = stages(tmp_path)
    assert stage.is_finished(options)
    assert needs_nothing(stage, options) is answer


def test_a_stage_on_an_encoder_that_was_trained_again_is_in_doubt(tmp_path: Path) -> None:
    def encoder(sha256: str) -> str:
        folder = tmp_path / "mntp" / finished.ENCODER
        folder.mkdir(parents=True, exist_ok=True)
        adapter = Merged("mntp", str(folder / "adapters" / "0-mntp"), sha256)
        Card(Lineage("base", adapters=(adapter,)), "mntp", 2, "bidirectional", "mean", 64, None, True, None).write(
            folder
        )
        return str(folder)

    write(tmp_path, "simcse", encoder("a" * 64), str(tmp_path / "run"))
    end(tmp_path / "simcse.yaml", tmp_path / "run", encoder("a" * 64))
    [stage] = stages(tmp_path)
    assert stage.is_finished()
    encoder("b" * 64)
    assert not stage.is_finished()


@pytest.mark.slow
def test_stages_train_in_order_until_one_fails(tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    bad = {"model.init_args.chunk_tokens": -1}
    (tmp_path / "recipe").mkdir()
    for name, stage, start, settings in (
        ("c", "MNTP", tiny_llama, {}),
        ("b", "SimCSE", "runs/c/encoder", bad),
        ("a", "Supervised", "runs/b/encoder", {}),
    ):
        file = runs.write_stage(tmp_path, stage, start, root=f"runs/{name}", steps=2, **settings)
        file.rename(tmp_path / "recipe" / f"{name}.yaml")
    command = [sys.executable, "-m", "lightning_modules.cli", "recipe", "recipe"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert ended.returncode == 1
    assert "error: model.chunk_tokens must be at least 1" in ended.stderr and "Traceback" not in ended.stderr
    assert (tmp_path / "runs" / "c" / finished.ENCODER).is_dir()
    assert "stage 2/3: recipe/b.yaml" in ended.stderr and "stage 3/3" not in ended.stderr
    assert not (tmp_path / "runs" / "a").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_go_on_to_the_stage(number: signal.Signals, tmp_path: Path) -> None:
    """SLURM signals every process of a job step; a recipe that died of it would take its stage along amid a save."""
    ready = tmp_path / "ready"
    stage = f"""
import pathlib, signal, sys, time
signal.signal({int(number)}, lambda *_: sys.exit(42))
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""

    def ask() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(SystemExit, match="42"):
        run(["-c", stage])
