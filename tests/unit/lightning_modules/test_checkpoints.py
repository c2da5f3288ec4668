"""Invariant 5: checkpoints appear whole or not at all, are read without pickled code, and torn ones are recognised."""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_modules.checkpoints import FolderCheckpointIO, TornCheckpointError, check, newest

IO = FolderCheckpointIO()


def content(step: int) -> dict[str, Any]:
    return {
        "global_step": step,
        "state_dict": {"lora_A": torch.full((2, 3), float(step)), "lora_B": torch.arange(4.0).view(2, 2).T},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}}],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good checkpoints."""
    for step in (2, 10):
        IO.save_checkpoint(content(step), tmp_path / f"step={step}.ckpt")
    return tmp_path


def test_what_is_read_is_what_was_written(folder: Path) -> None:
    found = IO.load_checkpoint(folder / "step=10.ckpt")
    assert found["global_step"] == 10
    assert torch.equal(found["state_dict"]["lora_A"], torch.full((2, 3), 10.0))
    assert torch.equal(found["state_dict"]["lora_B"], torch.tensor([[0.0, 2.0], [1.0, 3.0]]))
    assert torch.equal(found["optimizer_states"][0]["state"][0]["exp_avg"], torch.ones(2))
    assert sorted(path.name for path in folder.iterdir()) == ["step=10.ckpt", "step=2.ckpt"]  # nothing left behind


def test_no_number_keeps_its_file_open(folder: Path) -> None:
    """Optimizers take steps as they are, for the whole run; on NFS the file could not be removed."""
    state = IO.load_checkpoint(folder / "step=2.ckpt")["optimizer_states"][0]["state"][0]
    maps = Path("/proc/self/maps")
    assert "step=2.ckpt/state.pt" in maps.read_text()
    step = state["step"]
    del state
    gc.collect()
    assert step == 3 and "step=2.ckpt/state.pt" not in maps.read_text()


def test_a_file_that_is_read_elsewhere_does_not_end_the_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on NFS, where it stays in its folder under another name."""

    def stays(path: str, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(os, "rmdir", stays)
    IO.remove_checkpoint(folder / "step=2.ckpt")
    assert [path.name for path in folder.glob("*.ckpt")] == ["step=10.ckpt"]


def test_the_newest_is_that_of_the_highest_step(folder: Path) -> None:
    assert newest(folder) == folder / "step=10.ckpt"  # not the last by name


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["trainable.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("tear", [Path.unlink, shorten, flip, lambda file: file.write_bytes(b"")])
def test_torn_is_recognised_whatever_is_torn(
    name: str, tear: Callable[[Path], None], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tear(folder / "step=10.ckpt" / name)
    with pytest.raises(TornCheckpointError, match=r"step=10\.ckpt is torn"):
        check(folder / "step=10.ckpt")
    with pytest.raises(TornCheckpointError, match=r"step=10\.ckpt is torn"):
        IO.load_checkpoint(folder / "step=10.ckpt")
    with caplog.at_level(logging.WARNING):
        assert newest(folder) == folder / "step=2.ckpt"
    assert "step=10.ckpt is torn" in caplog.text


def test_all_torn_is_an_error_and_not_a_new_start(folder: Path) -> None:
    for path in folder.iterdir():
        shorten(path / "state.pt")
    with pytest.raises(TornCheckpointError, match=r"must be whole; all 2 are torn.*Restore one, or remove the folder"):
        newest(folder)


def test_a_half_written_one_is_not_seen(folder: Path) -> None:
    (folder / "step=10.ckpt").rename(folder / ".step=10.ckpt.tmp")
    assert newest(folder) == folder / "step=2.ckpt"
    IO.save_checkpoint(content(10), folder / "step=10.ckpt")  # and is not in the way
    assert newest(folder) == folder / "step=10.ckpt"
    assert not (folder / ".step=10.ckpt.tmp").exists()


class Code:
    """Runs when it is unpickled."""

    ran = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Code, "ran", True)


def test_no_code_is_run_on_reading(tmp_path: Path) -> None:
    IO.save_checkpoint({**content(1), "callbacks": Code()}, tmp_path / "a.ckpt")
    with pytest.raises(Exception, match="Weights only load failed"):
        IO.load_checkpoint(tmp_path / "a.ckpt")
    assert not Code.ran


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_disk_that_fails_leaves_the_older_checkpoint(
    call: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:  # a full or broken disk cannot be had in a test
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if call == "fsync" else (Path, "rename")), fail)
        with pytest.raises(OSError, match="No space left"):
            IO.save_checkpoint(content(11), folder / "step=10.ckpt")
    assert IO.load_checkpoint(folder / "step=10.ckpt")["global_step"] == 10


def test_a_removed_checkpoint_is_never_half_there(folder: Path) -> None:
    IO.remove_checkpoint(folder / "step=10.ckpt")
    IO.remove_checkpoint(folder / "step=10.ckpt")  # again is no error
    assert [path.name for path in folder.iterdir()] == ["step=2.ckpt"]


def test_the_manifest_names_every_file(folder: Path) -> None:
    manifest = json.loads((folder / "step=10.ckpt" / "manifest.json").read_text())
    assert manifest["step"] == 10
    assert sorted(manifest["files"]) == ["state.pt", "trainable.safetensors"]
