"""`lightning recipe`: all stages of a folder, in the order their inputs ask for."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NoReturn

from lightning_modules import finished
from lightning_modules.finished import ENCODER
from lightning_modules.identity import adapters, given
from lightning_modules.includes import located, merged, with_includes

DESCRIPTION = "Train all stages of a recipe; skip those that are finished, resume those that were cut."


@dataclass(frozen=True)
class Stage:
    """One stage's YAML: what it reads, where it writes."""

    file: Path
    model: str
    root: str

    @property
    def name(self) -> str:
        """Of its YAML."""
        return self.file.stem

    def is_finished(self, overrides: Sequence[str] = ()) -> bool:
        """Whether it has run to its end with these settings and on this encoder; said without the seconds of starting a
        process. Where it is in doubt, `lightning fit` finds out, and says what was changed.
        """
        now = given(with_includes(["--config", str(self.file), *overrides]))
        max_steps, max_epochs = now.get("trainer.max_steps"), now.get("trainer.max_epochs")
        note = finished.ended(Path(self.root), max_steps or -1, max_epochs) or {}
        limits = ("trainer.max_steps", "trainer.max_epochs")
        before, now = ({k: v for k, v in values.items() if k not in limits} for values in (note.get("given", {}), now))
        return before == now and note["identity"]["adapters"] == adapters(
            self.model, now.get("model.backbone.revision")
        )


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line as all others."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise ValueError(f"{self.prog}: {message}. Usage: {self.usage}")


def main(arguments: list[str]) -> None:
    """`lightning recipe FOLDER`.

    Raises:
        SystemExit: with a stage's exit status, if it fails; the stages behind it are not started.
    """
    parser = Parser("lightning recipe", "lightning recipe FOLDER [--dry-run]", DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="holds one YAML per stage; otherside:quickstart is ours")
    parser.add_argument("--dry-run", action="store_true", help="only print the stages in order")
    parser.epilog = "Every other option goes to `lightning fit` of every stage, such as --trainer.max_steps 10."
    settings, overrides = parser.parse_known_args(arguments)
    check_overrides(overrides)
    order = stages(settings.folder)
    for number, stage in enumerate(order, 1):
        print(f"stage {number}/{len(order)}: {stage.file} ({stage.model} -> {stage.root})", file=sys.stderr, flush=True)
        if needs_nothing(stage, overrides):
            print("  is finished", file=sys.stderr)
        elif not settings.dry_run:
            run(fit_command(stage, overrides))


def check_overrides(overrides: list[str]) -> None:
    """Raise a ValueError for an option that cannot hold for all stages."""
    own = {"--trainer.default_root_dir", "--model.backbone.model", "--model.init_args.backbone.model", "--ckpt_path"}
    for option in (override.partition("=")[0] for override in overrides):
        if option in own:
            raise ValueError(
                f"{option} must be each stage's own, and a recipe's options go to all of them. Set it in the stages' "
                "YAMLs, or use `lightning fit` for one stage."
            )


def needs_nothing(stage: Stage, overrides: Sequence[str]) -> bool:
    """Whether a stage is finished, and that was asked of every option. Others, misspelled ones among them, are for
    `lightning fit` to judge.
    """
    options = [override.partition("=")[0] for override in overrides if override.startswith("--")]
    return stage.is_finished(overrides) and all(o != "--config" and given([o, "null"]) for o in options)


def fit_command(stage: Stage, overrides: list[str]) -> list[str]:
    """What Python is to run for a stage."""
    return ["-m", "lightning_modules.cli", "fit", "--config", str(stage.file), *overrides]


def run(command: list[str]) -> None:
    """Python, in a process of its own, so that launchers and memory start afresh; signals go on to it.

    Raises:
        SystemExit: with its exit status, if it fails.
    """
    child = subprocess.Popen([sys.executable, *command])
    asked = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    previous = [signal.signal(number, lambda number, _: child.send_signal(number)) for number in asked]
    status = child.wait()
    for number, handler in zip(asked, previous, strict=True):
        signal.signal(number, handler)
    if status:
        sys.exit(status if status > 0 else 128 - status)


def stages(folder: Path) -> list[Stage]:
    """The stages of a recipe, each behind the one whose encoder it starts from.

    Raises:
        FileNotFoundError: the folder has no stage.
        ValueError: a YAML is broken, two stages share a run folder, or stages wait for each other.
    """
    folder = located(folder)
    if not folder.is_dir():
        alone = f"{folder} is a file. One stage: lightning fit --config {folder}"
        got = alone if folder.is_file() else f"there is no folder {folder}"
        raise FileNotFoundError(f"a recipe must be a folder with a YAML per stage; {got}")
    found = [stage for file in sorted(folder.glob("*.yaml")) if (stage := read(file))]
    if not found:
        raise FileNotFoundError(f"a recipe must be a folder with a YAML per stage; {folder} has none")
    by_root = {Path(stage.root): stage for stage in found}
    for stage in found:
        if (other := by_root[Path(stage.root)]) is not stage:
            raise ValueError(
                f"each stage of {folder} must have a trainer.default_root_dir of its own; {stage.file.name} and "
                f"{other.file.name} share {stage.root}"
            )
    needs = {stage: origin(stage, found) for stage in found}
    try:
        return list(TopologicalSorter({stage: [need] if need else [] for stage, need in needs.items()}).static_order())
    except CycleError as error:
        names = " and ".join(stage.file.name for stage in error.args[1][:2])
        raise ValueError(f"stages of {folder} wait for each other: {names}. See their backbone.model.") from error


def origin(stage: Stage, among: list[Stage]) -> Stage | None:
    """The stage whose encoder this one starts from; None if it is not among them."""
    source = Path(stage.model)
    return next((s for s in among if source in (Path(s.root), Path(s.root) / ENCODER)), None)


def read(file: Path) -> Stage | None:
    """The stage in a YAML; None if it only holds settings that others include."""
    content = merged(file)
    try:
        model = content["model"]["init_args"]["backbone"]["model"]
        trainer = content["trainer"]
        return Stage(file, str(model), str(trainer["default_root_dir"]))
    except (KeyError, TypeError):
        return None
