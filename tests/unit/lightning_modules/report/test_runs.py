from __future__ import annotations

from pathlib import Path

from lightning_modules.report.runs import find_runs


def test_runs_are_found_once_and_named_apart(tmp_path: Path) -> None:
    for place in ("a/mntp", "a/simcse", "b/mntp"):
        (tmp_path / place / "checkpoints").mkdir(parents=True)
    (tmp_path / "a/data").mkdir()
    found = find_runs([tmp_path / "a/simcse", tmp_path / "a"])
    assert [run.name for run in found] == ["simcse", "mntp"]
    found = find_runs([tmp_path / "a", tmp_path / "b"])
    assert [run.name for run in found] == ["a-mntp", "a-simcse", "b-mntp"]
    assert found[2].root == tmp_path / "b/mntp"


def test_what_a_run_did_not_leave_is_empty(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    [run] = find_runs([tmp_path])
    assert (run.card, run.settings, run.starts, run.curves, run.mteb) == (None, {}, [], {}, [])
    assert run.setting("trainer.max_steps", 3) == 3
