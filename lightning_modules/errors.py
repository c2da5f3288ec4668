"""Errors as the user reads them: one line that says what was required, what was got, and what to do."""

from __future__ import annotations

import argparse
import errno
import re
import traceback
from pathlib import Path
from typing import get_args

from lightning_modules.sizing.job import Strategy

OURS = tuple(str(Path(__file__).parents[1] / p) for p in ("otherside", "lightning_modules", "datamodules"))
LONGEST = 700  # characters; some libraries answer with pages

LESS_MEMORY = (
    "A step must fit into memory: lower model.chunk_tokens with model.recompute: true, the batch or data.max_length, "
    "or share weights with configs/trainer/zero3.yaml; `lightning size CONFIG` says what each takes. The same command "
    "goes on from the newest checkpoint."
)

MORE_SPACE = (
    "The disk must hold what is written: free some space. The same command goes on from the newest whole checkpoint."
)

STRATEGY = r"(?s)You selected an invalid strategy name: `strategy=(.*?)`.*"  # Lightning goes on with all names it knows
SOURCES = r"'(\w*sources)'(?:, val=|: )\[?'([^']+)'"  # jsonargparse shows the lines of a file named here
HELPFUL = ("model", "data", "trainer.callbacks")  # take a class, whose settings `--SECTION.help CLASS` lists
# Lines of jsonargparse's report that say nothing about what is wrong
FRAME = (
    *("Parser key", "Problem with", "Does not validate", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>"),
    *("Not a valid subclass of", "Subclass types expect one of", "a class path (str)", "a dict with"),
)
UNKNOWN = r"\bno (?:setting |option --)?'?([\w.]+)"  # the name in what WORDS make of it
# jsonargparse's words -> ours
WORDS = (
    (r"^Type .* expects a function or a callable class: ", ""),
    (r"\. Got value: (Namespace|\{|\[).*", ""),
    (r"^Expected an? <class '(\w+)'>\. Got value: (.*)", r"must be \1; got \2"),
    (r"^Expected an? typing\.Literal\[(.*)\]\. Got value: (.*)", r"must be one of \1; got \2"),
    (r"^Expected an? <class '(\w+)'>$", r"must be \1"),
    (r"^must be bool\b", "must be true or false"),
    (r"^Expected an? typing\.Literal\[(.*)\]$", r"must be one of \1"),
    (r"^Option '(.*)' is not accepted", r"has no setting '\1'"),
    (r"^Group '(.*)' does not accept option '(.*)'", r"\1 has no setting '\2'"),
    (r"^Subcommand '\w+' does not accept option '(.*)'", r"there is no setting '\1'"),
    (r"^the following arguments are required: ", "must be given: "),
    (r"^unrecognized arguments: ", "there is no option "),
    (r"^module '(.*)' has no attribute '(.*)'", r"\1 has no '\2'"),
    (r"^Import path (\S+) does not correspond to a subclass of (\w+)", r"\1 is no \2"),
    (r"\bfit\.(data|model)\b", r"\1"),
)


def message(error: BaseException, command: str, reads_yaml: bool = True) -> str | None:
    """What to tell the user; None for an error that only a traceback explains.

    Args:
        error: raised by `command`.
        command: such as `fit`; for the remedy.
        reads_yaml: whether what it calls a setting may be misspelled, and another meant.
    """
    link: BaseException | None = error
    while link is not None:
        if _raised_by_us(link):
            return one_line(str(link))
        if from_worker := _from_worker(str(link)):
            return one_line(from_worker)
        if _about_the_trainer(link):
            said = re.sub(STRATEGY, f"strategy must be one of {', '.join(get_args(Strategy))}; got \\1.", str(link))
            return one_line(f"trainer: {said} Correct the settings under trainer.")
        if command == "fit" and _out_of_memory(link):
            return one_line(f"{str(link).split('Of the allocated')[0]} {LESS_MEMORY}")
        if _out_of_space(link):
            return one_line(f"{' '.join(str(link).split()[:40])}: no space is left on the device. {MORE_SPACE}")
        link = link.__cause__ if "jsonargparse" in _origin(link).filename else None  # it wraps what a class raises
    if isinstance(error, argparse.ArgumentError) or "jsonargparse" in _origin(error).filename:
        return _settings(str(error), command, reads_yaml)
    return None


def one_line(text: str) -> str:
    """`text` without line breaks, cut where it gets too long to read."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} … (OTHERSIDE_DEBUG=1 shows all)"


def _origin(error: BaseException) -> traceback.FrameSummary:
    frames = traceback.extract_tb(error.__traceback__)
    return frames[-1] if frames else traceback.FrameSummary("", 0, "")


def _raised_by_us(error: BaseException) -> bool:
    """Whether a `raise` of this project made it: then its message is addressed to the user."""
    origin = _origin(error)
    return origin.filename.startswith(OURS) and (origin.line or "").startswith("raise ")


def _about_the_trainer(error: BaseException) -> bool:
    """Whether Lightning refuses a setting: this, too, is addressed to the user."""
    refused = "accelerator_connector" in _origin(error).filename
    return refused or type(error).__name__ == "MisconfigurationException"


def _out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator, or the host where it says so, had no more memory to give."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator: " in str(error)


def _out_of_space(error: BaseException) -> bool:
    """Whether a disk, or what a user may have of it, is full; torch and safetensors have words of their own for it."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "No space left" in str(error) or "PytorchStreamWriter failed writing" in str(error)


def _from_worker(text: str) -> str | None:
    """The message of an error of ours in a process that prepares batches: torch hands over its traceback as text."""
    files = re.findall(r'^ +File "(.*)", line \d+, in .*\n +(.*)', text, re.MULTILINE)
    if "in DataLoader worker process" not in text or not files:
        return None
    file, line = files[-1]
    last = re.search(r"^[\w.]+: ([^\n]*(?:\n(?! ).*)*)\Z", text.strip(), re.MULTILINE)
    return last[1] if last and file.startswith(OURS) and line.startswith("raise ") else None


def _settings(text: str, command: str, reads_yaml: bool) -> str:
    """jsonargparse's report of all it tried, as the setting and what is wrong with it."""
    report, _, rest = text.partition("Given value type:")
    if named := re.search(SOURCES, rest):
        return f"data.{named[1]} must be a list of sources, such as '[{{path: {named[2]}}}]'; got {named[2]}"
    lines = [line.strip().removeprefix("- ") for line in report.splitlines()]
    keys = re.findall(r'Parser key "(.*)":', report)
    classes = re.findall(r"Problem with given class_path '(.*)':", report)
    wrong = [line for line in lines if line and not line.startswith(FRAME)]
    for pattern, ours in WORDS:
        wrong = [re.sub(pattern, ours, line) for line in wrong]
    got = re.search(r"^\s*Given value: ([^{\[(\n]{1,60})$", rest, re.MULTILINE)
    wrong = [line for line in wrong if not line.startswith(("must be ", "Expected "))] or wrong  # more telling ones
    if got and not any("; got" in line for line in wrong):
        wrong[-1:] = [f"{line}; got {got[1]}" for line in wrong[-1:]]
    said = ", or ".join([*wrong[:1], *(line.removeprefix("must be ") for line in wrong[1:])])
    if reads_yaml and (name := re.search(UNKNOWN, said)) and "did you mean" not in said:
        from lightning_modules.suggestions import like  # all that a YAML may name, which other commands never import

        said += like(name[1])
    where = ".".join(keys) + (f" ({classes[-1]})" if classes else "")
    said = said if where else said.replace("has no setting", "there is no setting", 1)
    # A class that is not there has no help
    helpful = keys and classes and keys[0] in HELPFUL and " has no '" not in said
    options = f"--{keys[0]}.help {classes[0]}" if helpful else "--help"
    remedy = f"`lightning {command} {options}` lists the settings."
    return one_line(f"{where + ': ' if where else ''}{said}{'' if said.endswith('?') else '.'} {remedy}")
