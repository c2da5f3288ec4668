"""Settings files: each may name others, which are read before it."""

from __future__ import annotations

import json
import os
from argparse import ArgumentParser
from collections.abc import Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

import otherside

PACKAGED = "otherside:"


def located(path: Path) -> Path:
    """The file or folder that `path` names; `otherside:quickstart/mntp.yaml` is among the recipes that come with us.

    Raises:
        FileNotFoundError: none of those has this name.
    """
    address = str(path)
    if not address.startswith(PACKAGED):
        return path
    package = Path(otherside.__file__).parent
    inside, beside = package / "configs", package.parent / "configs"  # of a wheel, of a checkout
    recipes = inside if inside.is_dir() else beside
    if not (file := recipes / address.removeprefix(PACKAGED)).exists():
        there = ", ".join(sorted(folder.name for folder in recipes.glob("*/")))
        raise FileNotFoundError(
            f"{PACKAGED} must be followed by a recipe or a file of one; got {address}. Those that there are: {there}"
        )
    return file


def with_includes(arguments: list[str]) -> list[str]:
    """What jsonargparse shall read, so that later settings win over earlier ones, and lists replace lists.

    The files that a YAML's `include:` names come before it, as `--config` options of their own; `include` is a path or
    a list of paths, relative to the YAML that names them or ours (`otherside:trainer/cpu.yaml`). A list of settings
    that was there before is emptied first: of two lists of the same length, jsonargparse would give the later one's
    items what only the earlier one's have.
    """
    expanded: list[str] = []
    seen: set[str] = set()
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            path = value if equals else next(rest, "")
            if not path:
                raise ValueError("--config must name a YAML file; got nothing")
            for file in includes(Path(path)):
                expanded += [*_emptied(lists(read_settings(file)), seen), "--config", str(file)]
        elif argument.startswith("--"):
            expanded += [*_emptied(lists(_parsed(value), flag[2:]), seen), argument]
        else:  # the value of the option before it
            option = expanded[-1:]
            expanded[-1:] = [*_emptied(lists(_parsed(argument), "".join(option)[2:]), seen), *option, argument]
    return expanded


def beside(arguments: list[str]) -> list[str]:
    """Where one's own stages and callbacks are: here, and beside the YAMLs that `with_includes` has found; first beside
    those that come last, whose settings win.
    """
    named = [Path(value).absolute().parent for option, value in pairwise(["", *arguments]) if option == "--config"]
    return list(dict.fromkeys(map(str, [Path.cwd(), *reversed(named)])))


def with_settings(command: str, positional: Collection[str], arguments: list[str]) -> list[str]:
    """Arguments of a command that is no training, those of the YAML behind `--config` before the others.

    Args:
        command: its name, under which the YAML has them.
        positional: names of arguments that are no options.
        arguments: as typed.

    Raises:
        FileNotFoundError: there is no such YAML.
        ValueError: it has nothing for this command, or lacks a positional argument: others would take its place.
    """
    parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", type=Path)
    known, others = parser.parse_known_args(arguments)
    if not known.config:
        return arguments
    settings = merged(known.config).get(command)
    if not isinstance(settings, dict) or not settings.keys() >= {*positional}:
        raise ValueError(
            f"--config must name a YAML with arguments of `lightning {command}` under {command}:, "
            f"{' and '.join(positional)} among them; {known.config} has {settings or 'none'}"
        )
    said = {name: value if isinstance(value, str) else json.dumps(value) for name, value in settings.items()}
    first = [said.pop(name) for name in positional]
    return [*first, *(f"--{name}={value}" for name, value in said.items()), *others]


def lists(content: Any, key: str = "") -> list[str]:
    """Dotted keys of all lists in `content` that hold settings; for `content` itself, `key`."""
    if isinstance(content, list):
        return [key] if any(isinstance(item, dict) for item in content) else []
    inner = content.items() if isinstance(content, dict) else ()
    return [found for name, value in inner for found in lists(value, f"{key}.{name}" if key else str(name))]


def _emptied(keys: list[str], seen: set[str]) -> list[str]:
    """Options that empty those of the lists that were set before; `seen` has them without `init_args`."""
    known = {key: key.replace(".init_args", "") for key in keys}
    options = [option for key, name in known.items() if name in seen for option in (f"--{key}", "[]")]
    seen.update(known.values())
    return options


def _parsed(text: str) -> Any:
    """An option's value, if it is a list or a mapping."""
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # jsonargparse says what is wrong with it


def includes(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """The file at `path` and, before it, those that it includes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no YAML mapping, or includes itself.
    """
    path = located(path)
    if not path.is_file():
        got = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        more = f", which {above[-1]} includes" if above else f". All stages of a recipe: lightning recipe {path}"
        raise FileNotFoundError(f"--config must name a YAML file; {got}{more if above or path.is_dir() else ''}")
    if path in above:
        raise ValueError(f"include must not lead in a circle; {path} includes itself. Remove one include.")
    named = read_settings(path).get("include") or []
    named = [named] if isinstance(named, str) else named
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise ValueError(f"include must be a path or a list of paths; got {named!r} in {path}")
    beside = [Path(os.path.normpath(path.parent / located(Path(name)))) for name in named]
    return [*(inner for file in beside for inner in includes(file, (*above, path))), path]


def read_settings(path: Path) -> dict[str, Any]:
    """What one YAML holds.

    Raises:
        ValueError: it is no YAML mapping.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        place = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ValueError(f"--config must name YAML files; {place}: {problem}") from error
    if not isinstance(content, dict):
        got = "nothing" if content is None else f"a {type(content).__name__}"
        raise ValueError(f"{path} must hold settings by name (a YAML mapping); got {got}")
    return content


def merged(path: Path) -> dict[str, Any]:
    """A YAML's settings on top of those that it includes."""
    settings: dict[str, Any] = {}
    for file in includes(path):
        update(settings, read_settings(file))
    return settings


def update(settings: dict[str, Any], later: dict[str, Any]) -> None:
    """Put later settings over earlier ones, in place; only mappings are merged."""
    for key, value in later.items():
        if isinstance(value, dict) and isinstance(settings.get(key), dict):
            update(settings[key], value)
        else:
            settings[key] = value
