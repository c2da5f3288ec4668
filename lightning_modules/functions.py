"""Commands of `lightning` that are plain functions: the docstring is the help, type hints check the arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

# Where they are, and arguments that are positional or take several words
FUNCTIONS: dict[str, tuple[str, dict[str, str | None]]] = {
    "new": ("lightning_modules.new:new", {"recipe": None, "--data": "+"}),
    "check-data": ("lightning_modules.check_data:check_data", {"inputs": "+"}),
    "probe": ("otherside.probing:probe", {"encoders": "+"}),
    "report": ("lightning_modules.report:report", {"runs": "+"}),
    "soup": ("otherside.soup:soup", {"encoders": "+"}),
    "export": ("otherside.export:export", {"encoder": None, "out": None}),
    "push": ("otherside.export.push:push", {"export": None, "repo": None}),
    "mine": ("datamodules.mining:mine", {"encoder": None, "pairs": None}),
    "size": ("lightning_modules.sizing.command:size", {"config": None}),
}
IN_RECIPES = ("mine",)  # commands whose arguments may stand in a YAML, under their name
LISTS = ("--layers", "--tasks", "--weights")  # options that take lists
WORDS = ("all", "last", "null")  # and what they take besides


def parsed(command: str, function: Callable[..., None], arguments: list[str]) -> dict[str, Any]:
    """Arguments of `function`, which is that of a command, from what people type.

    Raises:
        ValueError, argparse.ArgumentError: one of them is wrong.
    """
    import docstring_parser

    from lightning_modules.includes import with_settings
    from lightning_modules.options import Exact

    positional = FUNCTIONS[command][1]
    if command in IN_RECIPES:
        arguments = with_settings(command, positional, arguments)
    docs, hints = docstring_parser.parse(function.__doc__ or ""), get_type_hints(function)
    says = {param.arg_name: param.description for param in docs.params}
    parser = Exact(prog=f"lightning {command}", description=docs.description, exit_on_error=False)
    for argument, count in positional.items():
        name = argument.removeprefix("--")
        needed = {"required": True} if argument != name else {}
        parser.add_argument(argument, nargs=count, type=str if count else hints[name], help=says[name], **needed)
    parser.add_function_arguments(function, skip={name.removeprefix("--") for name in positional}, as_group=False)
    return vars(parser.instantiate(parser.parse_args(list(_spelled_out(arguments, hints)))))


def _spelled_out(arguments: list[str], hints: dict[str, Any]) -> Iterator[str]:
    """What people type, as jsonargparse reads it: `--json` as `--json=true`, `--layers 3,4` as `--layers [3,4]`."""
    flags = [f"--{name}" for name, kind in hints.items() if kind is bool]
    for before, argument, after in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False):
        option, _, value = argument.rpartition("=")
        if (option or before) in LISTS and value not in WORDS and not value.startswith("["):
            yield f"{argument.removesuffix(value)}[{value}]"
        elif argument in flags and after not in ("true", "false"):
            yield f"{argument}=true"
        else:
            yield argument
