"""Memory that a container, or a job of SLURM, leaves."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from lightning_modules import host


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups as the kernel shows them: a step of a job. This machine's own cannot be set here."""
    own = tmp_path / "own"
    own.write_text("1:name=systemd:/\n0::/slurm/job_7/step_0\n")
    (tmp_path / "groups/slurm/job_7/step_0").mkdir(parents=True)
    monkeypatch.setattr(host, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(host, "OWN", own)
    return tmp_path / "groups"


def limit(group: Path, most: str, used: int, cached: int = 0) -> None:
    (group / "memory.max").write_text(f"{most}\n")
    (group / "memory.current").write_text(f"{used}\n")
    (group / "memory.stat").write_text(f"anon {used - cached}\ninactive_file {cached}\nslab 3\n")


def test_the_tightest_of_the_groups_counts(groups: Path) -> None:
    limit(groups / "slurm/job_7/step_0", "max", 400)
    limit(groups / "slurm/job_7", "5000", 1400, cached=900)
    limit(groups, "9000", 2000)
    assert (host.total(), host.free()) == (5000, 4500)


def test_without_limits_it_is_the_machine(groups: Path) -> None:
    assert host.total() == psutil.virtual_memory().total
    assert host.free() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_without_control_groups_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "OWN", tmp_path / "absent")
    assert host.total() == psutil.virtual_memory().total
