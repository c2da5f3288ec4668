"""Checkpoints: a folder that appears whole or not at all, says if it is torn, and holds no weights of the base.

step=100.ckpt/
  trainable.safetensors   the adapter
  state.pt                optimizer, schedule, loop counters; read with `weights_only=True`
  encoder/                what these weights are for their user: opens as an encoder, without Lightning
  identity.json           what the run is, to compare with when it goes on
  manifest.json           step, and size and SHA-256 of all files: written last
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from safetensors.torch import load_file, save_file
from torch.utils._pytree import tree_map
from typing_extensions import override

from otherside.files import replace_folder
from otherside.lineage import ENCODER, sha256

NAME = re.compile(r"(?:stopped-)?step=(\d+)\.ckpt")
WEIGHTS, STATE, IDENTITY, MANIFEST = "trainable.safetensors", "state.pt", "identity.json", "manifest.json"

log = logging.getLogger(__name__)


class TornCheckpointError(RuntimeError):
    """A checkpoint's files are not those that were written."""


class FolderCheckpointIO(CheckpointIO):
    """Writes and reads checkpoint folders. A kill at any moment leaves the earlier checkpoints as they were."""

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        work = path.with_name(f".{path.name}.tmp")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        state = dict(checkpoint)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.pop("state_dict").items()}
        save_file(weights, work / WEIGHTS)
        if identity := state.pop("identity", None):
            (work / IDENTITY).write_text(json.dumps(identity, indent=1) + "\n")
        if save_encoder := state.pop(ENCODER, None):
            save_encoder(work / ENCODER, weights)
        torch.save(state, work / STATE)
        write_manifest(work, step=checkpoint["global_step"])
        replace_folder(work, path)

    @override
    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(path)
        if not path.is_dir():
            raise FileNotFoundError(f"ckpt_path must be a checkpoint folder of this project; nothing is at {path}")
        check(path)
        # mapped, as the weights are: the ranks of a node share what they read
        state = torch.load(path / STATE, map_location=map_location or "cpu", weights_only=True, mmap=True)
        state = tree_map(_held, state)
        return {**state, "state_dict": load_file(path / WEIGHTS)}

    @override
    def remove_checkpoint(self, path: Any) -> None:
        path = Path(path)
        if path.exists():
            trash = path.with_name(f".{path.name}.old")
            shutil.rmtree(trash, ignore_errors=True)
            path.rename(trash)  # never half a checkpoint under its own name
            shutil.rmtree(trash, ignore_errors=True)  # on NFS a file that is mapped stays until its reader has ended


def _held(value: Any) -> Any:
    """Numbers of a mapped file in memory: an optimizer takes them as they are, and would keep the file open."""
    return value.clone() if isinstance(value, torch.Tensor) and value.ndim == 0 else value


def write_manifest(folder: Path, step: int) -> None:
    """Record every file of a checkpoint; the last file written."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in paths}
    (folder / MANIFEST).write_text(json.dumps({"step": step, "files": files}, indent=2) + "\n")


def check(folder: Path) -> int:
    """The step of a checkpoint.

    Raises:
        TornCheckpointError: a file is missing or is not as it was written.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, written in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != written["bytes"] or sha256(path) != written["sha256"]:
                raise TornCheckpointError(f"checkpoint {folder} is torn: {name} is not as it was written")
        return int(manifest["step"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TornCheckpointError(f"checkpoint {folder} is torn: {error}") from error


def by_step(folder: Path) -> list[Path]:
    """The checkpoints in `folder` that a run writes of itself, at its steps or when stopped, oldest first."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("*.ckpt"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in found if match)]


def newest(folder: Path) -> Path | None:
    """The last good checkpoint in `folder`; torn ones behind it are named in the log. None: there is none at all.

    Raises:
        TornCheckpointError: there are some, and all are torn.
    """
    torn: list[TornCheckpointError] = []
    for path in sorted(folder.glob("*.ckpt"), key=lambda path: (_step(path), path.name), reverse=True):
        try:
            check(path)
        except TornCheckpointError as error:
            torn.append(error)
            log.warning("%s; it is passed over", error)
        else:
            return path
    if torn:
        raise TornCheckpointError(
            f"a checkpoint in {folder} must be whole; all {len(torn)} are torn. {torn[0]}. Restore one, or remove the "
            "folder to start from step 0."
        )
    return None


def _step(folder: Path) -> int:
    """What its manifest says, in whatever state the rest is. A high number if it says nothing, which shall be told."""
    try:
        return int(json.loads((folder / MANIFEST).read_text())["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return sys.maxsize


def going_on(asked: Path, folder: Path) -> Path:
    """What a run with `ckpt_path` goes on from: that, until it has checkpoints of its own in `folder`; otherwise the
    same command, as a requeued job gives it, would begin anew each time.

    Raises:
        ValueError: `asked` is one of these, and not the last: new ones would be taken for the older, and pruned.
    """
    if asked.resolve().parent != folder.resolve():
        return newest(folder) or asked
    *_, last = by_step(folder) or [asked]
    if asked.is_dir() and last.name != asked.name:
        raise ValueError(
            f"ckpt_path must be the last checkpoint in {folder}, or one of another run; got {asked.name}, and "
            f"{last.name} is there. Move the later ones elsewhere, and leave ckpt_path out."
        )
    return asked
