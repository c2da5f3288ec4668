"""`lightning recipe`: all stages of a folder, in the order their inputs ask for."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import yaml

from lightning_modules.callbacks.encoder_folder import FOLDER


@dataclass(frozen=True)
class Stage:
    """One stage's YAML: what it reads and where it writes."""

    file: Path
    model: str
    root: str


def main(arguments: list[str]) -> None:
    """Train all stages of a recipe; skip those that are finished, resume those that were cut.

    Raises:
        SystemExit: with a stage's exit status, if it fails; the stages behind it are not started.
    """
    parser = argparse.ArgumentParser("lightning recipe", description=main.__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path, help="holds one YAML per stage")
    parser.add_argument("--dry-run", action="store_true", help="only print the stages in order")
    parser.epilog = "Every other option goes to `lightning fit` of every stage, such as --trainer.max_steps 10."
    settings, overrides = parser.parse_known_args(arguments)
    order = stages(settings.folder)
    for number, stage in enumerate(order, 1):
        print(f"stage {number}/{len(order)}: {stage.file} ({stage.model} -> {stage.root})", file=sys.stderr, flush=True)
        if not settings.dry_run:
            _fit(stage, overrides)


def _fit(stage: Stage, overrides: list[str]) -> None:
    """One stage in a process of its own, so that launchers and memory start afresh; it ends with this process."""
    command = [sys.executable, "-m", "lightning_modules.cli", "fit", "--config", str(stage.file), *overrides]
    child = subprocess.Popen(command)
    previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        status = child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous)
        if child.poll() is None:
            child.terminate()
            child.wait()
    if status:
        sys.exit(status if status > 0 else 128 - status)


def stages(folder: Path) -> list[Stage]:
    """The stages of a recipe, each behind the one whose encoder it starts from.

    Raises:
        FileNotFoundError: the folder has no stage.
        ValueError: two stages share a run folder, or stages wait for each other.
    """
    found = [stage for file in sorted(folder.glob("*.yaml")) if (stage := _read(file))]
    if not found:
        raise FileNotFoundError(f"a recipe must be a folder with a YAML per stage; {folder} has none")
    by_root = {Path(stage.root): stage for stage in found}
    if len(by_root) < len(found):
        raise ValueError(f"each stage of {folder} must have a trainer.default_root_dir of its own")
    needs = {
        stage: [before] if (before := by_root.get(Path(stage.model).parent)) and Path(stage.model).name == FOLDER else []
        for stage in found
    }
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        names = " and ".join(stage.file.name for stage in error.args[1][:2])
        raise ValueError(f"stages of {folder} wait for each other: {names}. See their backbone.model.") from error


def _read(file: Path) -> Stage | None:
    """The stage in a YAML; None if it only holds settings that others include."""
    content = yaml.safe_load(file.read_text()) or {}
    try:
        model = content["model"]["init_args"]["backbone"]["model"]
        return Stage(file, str(model), str(content["trainer"]["default_root_dir"]))
    except (KeyError, TypeError):
        return None
