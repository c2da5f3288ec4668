"""`lightning recipe`: all steps of a folder, in the order their inputs ask for."""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from lightning_modules import signals
from lightning_modules.functions import parsed
from lightning_modules.identity import given
from lightning_modules.includes import beside, with_includes
from lightning_modules.steps import CLI, MINE, Stage, Step, behind, steps, told
from otherside.waits import saying

DESCRIPTION = "Train all stages of a recipe; skip those that are finished, resume those that were cut."


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are one line as all others."""

    def error(self, message: str) -> NoReturn:  # noqa: D102
        raise ValueError(f"{self.prog}: {message}. Usage: {self.usage}")


def main(arguments: list[str]) -> None:
    """`lightning recipe FOLDER`.

    Raises:
        SystemExit: with a stage's exit status, if it fails; the stages behind it are not started.
        ValueError: a setting of any step is wrong; nothing is started.
    """
    usage = "lightning recipe FOLDER [--dry-run | --check]"
    parser = Parser("lightning recipe", usage, DESCRIPTION, allow_abbrev=False)
    parser.add_argument("folder", type=Path, help="holds one YAML per stage; otherside:quickstart is ours")
    parser.add_argument("--dry-run", action="store_true", help="only print the stages in order")
    parser.add_argument("--check", action="store_true", help="only read all settings, as is done before a stage begins")
    parser.epilog = "Every other option goes to `lightning fit` of every stage, such as --trainer.max_steps 10."
    settings, overrides = parser.parse_known_args(arguments)
    check_overrides(overrides)
    order = steps(settings.folder)
    asked = unfinished(order, overrides)
    if settings.check:
        return check(asked, overrides)
    if not settings.dry_run:
        check_first(settings.folder, asked, overrides)
    for number, step in enumerate(order, 1):
        print(f"stage {number}/{len(order)}: {told(step)}", file=sys.stderr, flush=True)
        if step not in asked:
            print("  is finished", file=sys.stderr)
        elif not settings.dry_run:
            run(step.command(overrides))


def check_first(recipe: Path, asked: Sequence[Step], overrides: Sequence[str]) -> None:
    """Read all settings before hours of the steps in front, in a process of its own, as it imports what takes memory.

    Raises:
        SystemExit: one of them is wrong, as that process has said.
    """
    if len(asked) > 1:  # one alone says it itself
        run([*CLI, "recipe", str(recipe), "--check", *overrides])


def check(asked: Sequence[Step], overrides: Sequence[str]) -> None:
    """Read the steps' settings.

    Raises:
        ValueError: one of them is wrong.
    """
    sys.path += beside(with_includes([word for step in asked for word in ("--config", str(step.file))]))
    with saying("reading all settings"), signals.at_once("lightning"):
        for step in asked:
            check_step(step, overrides)


def check_step(step: Step, overrides: Sequence[str]) -> None:
    """Read a step's settings as its process will.

    Raises:
        ValueError: one is not there, or of another type; of mining also where its value is none that it may have.
    """
    from lightning_modules.errors import message  # imports take seconds
    from lightning_modules.training import check_settings

    try:
        if isinstance(step, Stage):
            check_settings(["--config", str(step.file), *overrides])
        else:
            mine, run = import_module("datamodules.mining").mine, import_module("datamodules.mining.run")
            settings = parsed(MINE, mine, ["--config", str(step.file)])
            run.check_out(settings["out"])
            run.Asked(**{asked.name: settings[asked.name] for asked in fields(run.Asked)})
    except Exception as error:
        if not (said := message(error, step.command([])[2], isinstance(step, Stage))):
            raise
        beside = f" with {shlex.join(overrides)}" if overrides and isinstance(step, Stage) else ""
        raise ValueError(f"{step.file}{beside}: {said}") from error


def check_overrides(overrides: list[str]) -> None:
    """Raise a ValueError for an option that cannot hold for all stages."""
    own = {"--trainer.default_root_dir", "--model.backbone.model", "--model.init_args.backbone.model", "--ckpt_path"}
    for option in (override.partition("=")[0] for override in overrides):
        if option in own:
            raise ValueError(
                f"{option} must be each stage's own, and a recipe's options go to all of them. Set it in the stages' "
                "YAMLs, or use `lightning fit` for one stage."
            )


def unfinished(order: Sequence[Step], overrides: Sequence[str]) -> list[Step]:
    """The steps that are to be run: those that need it, and those that read what these make."""
    found: list[Step] = []
    for step in order:
        if behind(step, found) or not needs_nothing(step, overrides):
            found.append(step)
    return found


def needs_nothing(step: Step, overrides: Sequence[str]) -> bool:
    """Whether a step is finished, and that was asked of every option. Others, misspelled ones among them, are for
    `lightning fit` to judge.
    """
    options = [override.partition("=")[0] for override in overrides if override.startswith("--")]
    return step.is_finished(overrides) and all(o != "--config" and given([o, "null"]) for o in options)


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
