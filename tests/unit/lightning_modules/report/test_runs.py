from __future__ import annotations

from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

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


def test_a_sweep_beside_what_a_stage_left_is_not_its_own(tmp_path: Path) -> None:
    """As `slurm/submit --sweep` puts it there."""
    for place, loss in (("", 1.0), ("sweep/0", 2.0)):
        with SummaryWriter(str(tmp_path / place / "tensorboard")) as writer:
            writer.add_scalar("train/loss", loss, 1)
        (tmp_path / place / "config.yaml").write_text(f"loss: {loss}")
    [run] = find_runs([tmp_path])
    assert run.curves == {"train/loss": [(1, 1.0)]} and run.setting("loss") == 1.0
