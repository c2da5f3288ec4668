"""The reference of commands, from the functions behind them: what `--help` prints, as tables."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import settings

from lightning_modules import cli, quickstart, recipe

TEXT = """# Commands

Made from the code when this page was built; `lightning COMMAND --help` says the same. `lightning` is short for
`python -m lightning_modules.cli`.

```text
{help}
```

## fit, validate, test, predict

`lightning fit --config STAGE.yaml [--config MORE.yaml]... [OPTIONS]`

Settings come from YAML files, later ones over earlier ones; any [setting](settings.md) is also an option.
`--print_config` prints what was read and ends. `lightning fit --help` lists all, with those of Lightning's Trainer.

## recipe

`lightning recipe FOLDER [--dry-run] [OPTIONS OF lightning fit]`

{recipe}

## quickstart

`{usage} [OPTIONS OF lightning fit]`

{quickstart}
"""


def page() -> str:
    """Markdown of the whole page."""
    words = {"recipe": recipe.DESCRIPTION, "quickstart": quickstart.DESCRIPTION, "usage": quickstart.USAGE}
    parts = [TEXT.format(help=cli.HELP.strip(), **words)]
    return "\n\n".join([*parts, *(command(name, *home) for name, home in cli.FUNCTIONS.items())]) + "\n"


def command(name: str, address: str, positional: dict[str, Any]) -> str:
    """One command that is a plain function."""
    module, _, function = address.partition(":")
    target: Callable[..., None] = getattr(import_module(module), function)
    words = [word.upper() + "..." * (count == "+") for word, count in positional.items()]
    rows = [(_spelled(each.name, positional), each) for each in settings.parameters(target)]
    usage = f"`lightning {' '.join([name, *words])} [OPTIONS]`"
    return "\n\n".join([f"## {name}", usage, settings.summary(target), settings.table(rows, "argument")])


def _spelled(name: str, positional: dict[str, Any]) -> str:
    return name.upper() if name in positional else f"--{name}"
