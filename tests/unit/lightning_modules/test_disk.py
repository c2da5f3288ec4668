"""A disk that runs full while a stage trains: a small one, really full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs

from lightning_modules.checkpoints import newest


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs the right to mount a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_is_one_line_and_loses_nothing(disk: Path, tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    settings = {"checkpoints.every_n_steps": 1, "checkpoints.keep": 50}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="disk/run", steps=40, **settings)
    status, output = runs.start("fit", "--config", config, cwd=tmp_path).wait()
    assert status == 1 and "Traceback" not in output, output
    [error] = [line for line in output.splitlines() if line.startswith("error: ")]
    assert "no space is left on the device. The disk must hold what is written: free some space." in error
    last = newest(disk / "run" / "checkpoints")
    assert last
    subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
    assert f"resumes from disk/run/checkpoints/{last.name}" in runs.run("fit", "--config", config, cwd=tmp_path)
