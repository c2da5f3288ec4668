"""Names that may be meant where one of a YAML is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentParser
from lightning.pytorch import Trainer

PACKAGES = ("lightning_modules", "datamodules", "lightning_modules.callbacks")
SECTIONS = ("trainer", "model", "data", "checkpoints", "mteb", "include", "seed_everything")


def classes() -> list[type]:
    """What a YAML of ours may name by `class_path`."""
    homes = [import_module(package) for package in PACKAGES]
    return [kind for home in homes for name in home.__all__ if isinstance(kind := getattr(home, name), type)]


def settings() -> set[str]:
    """Names of settings of stages, data modules, callbacks and Lightning's trainer, those of their parts among them."""
    parser = ArgumentParser()
    for place, kind in enumerate([Trainer, *classes()]):
        parser.add_class_arguments(kind, str(place), fail_untyped=False)
    dests = [action.dest for action in parser._actions]
    optional = {name for action in parser._actions for name in parts(getattr(action, "_typehint", None))}
    return {part for dest in dests for part in dest.split(".") if not part.isdigit()} | optional


def parts(hint: Any) -> Iterator[str]:
    """Names of settings that a value of this type has, where it is a dataclass or may be one, as `Lora | None`."""
    for kind in (hint, *get_args(hint)):
        if is_dataclass(kind):
            for name, part in get_type_hints(kind).items():
                yield name
                yield from parts(part)


def like(path: str) -> str:
    """In words, what the first unknown name of a path of settings, or a class, may mean; "" where there is nothing."""
    names = path.split(".")
    for place, name in enumerate(names):
        known = settings() if place else {*SECTIONS}
        if len(names) == 1:  # of whatever section
            known |= settings()
        known = {kind.__name__ for kind in classes()} if name[:1].isupper() else known
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
            return f"; did you mean {near[0]!r}?" if near else ""
    return ""
