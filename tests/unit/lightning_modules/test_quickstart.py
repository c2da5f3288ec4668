"""`lightning quickstart`: what it does, in which order, and what it says of the time."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipes import mines, write

from lightning_modules import quickstart
from lightning_modules.quickstart import START, Part, all_together, minutes, planned
from lightning_modules.steps import Mining, Stage, steps

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize("recipe", ["quickstart", "evening"])
def test_texts_stages_probing_and_report_come_one_after_the_other(
    recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where nobody has run it before
    order = steps(CONFIGS / recipe)
    parts = planned(order, Path(f"runs/{recipe}"), "builtin", ["--trainer.max_steps", "2"])
    texts, *trained, probe, report = (part.command for part in parts)
    assert texts == ["-m", "datamodules.wikipedia", "--out", f"runs/{recipe}/data"]
    assert [command[4] for command in trained] == [str(step.file) for step in order]
    fits = [command for command in trained if command[2] == "fit"]
    assert all(command[-2:] == ["--trainer.max_steps", "2"] for command in fits)
    assert [command[2:] for command in trained if command not in fits] == [
        ["mine", "--config", str(step.file)] for step in order if isinstance(step, Mining)
    ]
    encoders = [f"{step.root}/encoder" for step in order if isinstance(step, Stage)]
    assert encoders == probe[3 : 3 + len(encoders)] and len(encoders) == len(fits)
    assert f"runs/{recipe}/data/heldout.jsonl" in probe and report[2:4] == ["report", f"runs/{recipe}"]
    whole = planned(order, Path(f"runs/{recipe}"), "builtin", [])
    assert all(0 < less.minutes <= more.minutes for less, more in zip(parts, whole, strict=True))
    assert sum(part.minutes for part in parts) < sum(part.minutes for part in whole)


def test_a_stage_that_epochs_end_is_not_estimated(tmp_path: Path) -> None:
    config = tmp_path / "mntp.yaml"
    config.write_text("trainer: {max_epochs: 1}\nmodel: {class_path: MNTP}\ndata: {init_args: {max_length: 64}}")
    assert minutes(Stage(config, "base", "runs/mntp"), []) == START


def test_a_finished_stage_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "run", ran.append)  # hours of work otherwise
    monkeypatch.setattr(Stage, "is_finished", lambda stage, overrides: stage.name == "mntp")
    quickstart.main(["--recipe", str(CONFIGS / "quickstart"), "--trainer.max_steps", "2"])
    assert [command[2] for command in ran] == ["--out", "fit", "fit", "probe", "report"]


def test_all_lies_beside_the_runs_of_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "run", lambda command: None)  # hours of work otherwise
    mines(tmp_path, encoder="base", out="elsewhere/mined.jsonl")
    data = (
        "class_path: Pairs, init_args: {global_batch_size: 8, max_length: 32, sources: [{path: elsewhere/mined.jsonl}]}"
    )
    write(tmp_path, "supervised", "base", "runs/s", f"data: {{{data}}}\nmodel.class_path: Supervised\n")
    quickstart.main(["--recipe", "."])
    assert capsys.readouterr().out == "runs/report/report.html\n"


def test_time_left_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([0.0, 0.0, 240.0, 480.0, 480.0])  # twice as slow as planned
    monkeypatch.setattr(quickstart.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(quickstart, "run", lambda command: None)
    all_together([Part("a", [], 2), Part("b", [], 2), Part("c", [], 6)])
    said = capsys.readouterr().err
    assert "1/3 a; about 10 min left" in said and "2/3 b; about 16 min left" in said
    assert "3/3 c; about 12 min left" in said and said.endswith("3 parts in 8 min\n")


def test_a_part_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match="3"):
        all_together([Part("fails", ["-c", "raise SystemExit(3)"], 1), Part("never", ["-c", "raise SystemExit(4)"], 1)])
