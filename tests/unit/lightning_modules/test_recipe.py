"""`lightning recipe`: what is skipped, what stops it. Steps are real, and each a process of its own."""

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
from recipes import end, mines, write

from lightning_modules import finished
from lightning_modules.cli import main
from lightning_modules.recipe import needs_nothing, run
from lightning_modules.steps import read, stages


def test_a_finished_stage_is_in_doubt_behind_one_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its rows may be others then, which its settings do not say."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "supervised", "base", "runs/l", "data: {init_args: {sources: [{path: runs/mined.jsonl}]}}\n")
    mines(tmp_path, encoder="base")
    end(Path("supervised.yaml"), Path("runs/l"))
    main(["recipe", ".", "--dry-run"])
    assert "is finished" not in capsys.readouterr().err
    (tmp_path / "negatives.yaml").unlink()
    main(["recipe", ".", "--dry-run"])
    assert "is finished" in capsys.readouterr().err


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
    for other in (
        {"encoder": "base"},
        {"pairs": "./pairs.jsonl"},
        {"instruction": "Ask:"},
        {"corpus": "sentences.txt"},
    ):
        asked = {"encoder": str(tiny_llama), "negatives": 2, "dtype": "float32", **other}
        assert not read(mines(tmp_path, **asked)).is_finished()
    mines(tmp_path, encoder=str(tiny_llama), negatives=2, dtype="float32")
    report = tmp_path / "runs/mined.jsonl.report.json"
    whole = report.read_text()
    for torn in ("[]", "{}", "5", whole[:100]):
        report.write_text(torn)
        assert not step.is_finished()
    status, said = runs.start("recipe", ".", cwd=tmp_path).wait()
    assert status == 1 and "runs/mined.jsonl was made with other settings (unknown). Move it away" in said
    report.write_text(whole)
    mines(tmp_path, encoder=str(tiny_llama), negatives=2, dtype="float32", device="cpu")
    assert "  is finished" in runs.run("recipe", ".", cwd=tmp_path)
    assert not read(mines(tmp_path, encoder=str(tiny_llama), dtype="float32")).is_finished()
    status, said = runs.start("recipe", ".", cwd=tmp_path).wait()
    assert status == 1 and "was made with other settings (negatives)" in said


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


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (
            {"model.init_args.lora.alhpa": 8},
            "recipe/b.yaml: model.lora (otherside.adapters.Lora): has no setting 'alhpa'",
        ),
        ({"trainer.max_steps": "many"}, "recipe/b.yaml: trainer.max_steps"),
        ({"mine.negatives": "many"}, "recipe/b.yaml: negatives: must be int; got many"),
        ({"mine.ceiling": 2}, "recipe/b.yaml: --ceiling must be a share of the positive's score"),
        ({"mine.out": "mined.txt"}, "recipe/b.yaml: --out must be a file that ends in .jsonl or .parquet"),
    ],
)
def test_all_settings_are_read_before_the_first_step(
    wrong: dict[str, object], said: str, tmp_path: Path, tiny_llama: Path
) -> None:
    runs.write_data(tmp_path, rows=16)
    (tmp_path / "recipe").mkdir()
    runs.write_stage(tmp_path, "MNTP", tiny_llama, root="runs/f", steps=2).rename(tmp_path / "recipe" / "a.yaml")
    [name] = wrong
    if name.startswith("mine."):
        mines(tmp_path, **{name.removeprefix("mine."): wrong[name]}).rename(tmp_path / "recipe" / "b.yaml")
    else:
        file = runs.write_stage(tmp_path, "SimCSE", "runs/f/encoder", root="runs/b", steps=2, **wrong)
        file.rename(tmp_path / "recipe" / "b.yaml")
    status, output = runs.start("recipe", "recipe", cwd=tmp_path).wait()
    assert status == 1 and said in output and "stage 1/2" not in output
    assert not (tmp_path / "runs").exists()


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
