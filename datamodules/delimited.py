"""Rows of CSV and TSV, in which one stray quotation mark may join any number of lines."""

from __future__ import annotations

import ast
import csv
import json
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

MOST_LINES = 100_000  # of a record; a book in a cell has some ten thousands
FEWEST_LINES = 5  # of a record, from which on they may be rows that a stray quotation mark joins

Read = tuple[int, Mapping[str, Any] | None, str]
"""Number of the line or row, its columns if it can be read, else what is wrong."""


def read_delimited(lines: Iterator[str], delimiter: str) -> Iterator[Read]:
    """Every record behind the header; of one that cannot be read its fault.

    Args:
        lines: with their ends.
        delimiter: between cells.
    """
    csv.field_size_limit(sys.maxsize)  # the default refuses a text of more than 131,072 characters
    record = _Record(lines)
    reader = csv.reader(record, delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        number = record.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, None, f"broken CSV ({error}, in line {record.last}). Double the quotes inside quoted texts"
            record.again()
            continue
        if not cells:
            continue
        if header is None:
            header = cells
            if repeated := [name for name in cells if name and cells.count(name) > 1]:
                yield number, None, f"the header must name each column once; got {repeated[0]!r} twice. Rename one"
        elif cells == header:
            yield number, None, "a row must not be the header once more; files were joined. Remove the line"
        elif _are_rows(record.taken, len(header), delimiter):
            yield (
                number,
                None,
                f"a cell must not hold rows; a quotation mark joins those to line {record.last}. Quote the text, and "
                "double the quotes inside",
            )
            record.again()
        elif len(cells) != len(header):
            yield (
                number,
                None,
                f"the header has {len(header)} columns; got {len(cells)}. Quote texts that hold {delimiter!r}",
            )
        elif delimiter == "\t" and any("\n" in cell for cell in cells):  # a quotation mark without another, probably
            yield number, None, "a cell of TSV must be on one line; a quotation mark joins some. Write JSON lines"
            record.again()
        else:
            yield number, dict(zip(header, map(_cell, cells), strict=True)), ""


def _cell(text: str) -> str | list[str]:
    """The texts of a cell that is a list of texts, in JSON or as Python (and pandas) has it; else what stands there.

    Strings without a comma between them, as NumPy writes them, are no such list: Python would join them.
    """
    if not (text.startswith("[") and text.endswith("]")):
        return text
    found: Any = None
    with suppress(ValueError, RecursionError):
        found = json.loads(text)
    if found is None:
        with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            found = ast.literal_eval(text)
            found = found if "".join(repr(found).split()) == "".join(text.split()) else None
    return found if isinstance(found, list) and all(isinstance(item, str) for item in found) else text


class _Record:
    """Lines of a CSV file for a `csv.reader`, of which those behind a broken record's first can be read again."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines
        self.ahead: deque[str] = deque()
        self.taken: list[str] = []  # lines of the present record
        self.first = 1  # number of the line that it begins with

    def begin(self) -> int:
        """The number of the line with which the next record begins."""
        self.first += len(self.taken)
        self.taken = []
        return self.first

    @property
    def last(self) -> int:
        """The number of the line with which the present record ends."""
        return self.first + len(self.taken) - 1

    def again(self) -> None:
        """Let the next record begin behind this one's first line: what a stray quotation mark joins are rows."""
        self.ahead.extendleft(reversed(self.taken[1:]))
        self.taken = self.taken[:1]

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self.taken) == MOST_LINES:
            raise csv.Error(f"a record of more than {MOST_LINES:,} lines")
        self.taken.append(self.ahead.popleft() if self.ahead else next(self.lines))
        return self.taken[-1]


def _are_rows(lines: Sequence[str], columns: int, delimiter: str) -> bool:
    """Whether the lines of one record are rows: nearly all divide into as many cells as there are columns, none of
    which begins with a space, as what follows a comma of prose does.
    """
    if columns == 1 or len(lines) < FEWEST_LINES:
        return False
    rows = sum(line.count(delimiter) == columns - 1 and f"{delimiter} " not in line for line in lines)
    return rows >= 0.9 * len(lines)
