"""Files of JSON lines that `lightning probe` reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")


def read_lines(path: Path, option: str, needs: str, read: Callable[[dict[str, Any]], Item]) -> list[Item]:
    """What `read` makes of each line's object; other keys are ignored, empty lines skipped.

    Args:
        path: of the file.
        option: that names it.
        needs: what an object must have, in words.
        read: raises a KeyError, TypeError or ValueError where it has not.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{option} must be a JSONL file; there is none at {path}")
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            items.append(read(json.loads(line)))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{option}: every line must be a JSON object with {needs}; {path}, line {number}, is {line[:80]!r} "
                f"({error!r})"
            ) from error
    return items


def text(row: dict[str, Any], name: str) -> str:
    """The text under a name.

    Raises:
        KeyError: there is none.
        TypeError: it is empty or no text.
    """
    found = row[name]
    if not isinstance(found, str) or not found.strip():
        raise TypeError(f"{name} is empty or no text")
    return found
