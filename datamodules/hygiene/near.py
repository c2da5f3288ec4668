"""Rows that are nearly the same: MinHash finds candidates (Broder, 1997), their words decide.

Two texts are as alike as the runs of three words that they share, of all that they have (Jaccard); two pairs as their
queries, or their positives, whichever are less alike. A letter is a word where words have no spaces between them. A row
has 96 minima in 16 bands of 6; rows that agree in a band are compared, each with the first. Two rows of .8 are found
with a probability of .99.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import regex
from numpy.typing import NDArray

from datamodules.hygiene.known import words
from datamodules.hygiene.measure import AT_ONCE, EXAMPLES, named, rows_of
from datamodules.rows import asked
from datamodules.sources import Table

BANDS, EACH, RUN = 16, 6, 3
ALIKE = 0.8
SHORTEST = 8  # words of a row; a single other word makes too much of shorter ones
# Letters of Chinese, Japanese, Thai and others
UNSPACED = regex.compile(r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])")

_random = np.random.default_rng(0)
_FACTORS = _random.integers(1, 2**63, BANDS * EACH, dtype=np.uint64) | np.uint64(1)
_SUMMANDS = _random.integers(0, 2**63, BANDS * EACH, dtype=np.uint64)
_MIX = _random.integers(1, 2**63, EACH, dtype=np.uint64) | np.uint64(1)


@dataclass
class Near:
    """What was found.

    Args:
        rows: that are nearly another one before them.
        short: that are too short to compare.
        examples: a few: two sources and two texts.
    """

    rows: int = 0
    short: int = 0
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)


def units(text: str) -> list[str]:
    """Its words, and letters where those have no spaces between them."""
    return words(UNSPACED.sub(r" \1 ", text))


def runs(text: str) -> set[int]:
    """Numbers of a text's runs of three words; a shorter text is a run."""
    found = units(text)
    return {zlib.crc32(" ".join(found[i : i + RUN]).encode()) for i in range(max(1, len(found) - RUN + 1))}


def alike(one: Sequence[str], other: Sequence[str]) -> float:
    """How much two rows are, from 0 to 1; rows of other numbers of texts are not."""
    pairs = [(runs(a), runs(b)) for a, b in zip(one, other, strict=False)]
    return min(len(x & y) / len(x | y) for x, y in pairs) if len(one) == len(other) else 0.0


def bands(row: Sequence[str]) -> NDArray[np.uint64]:
    """(BANDS,) numbers, of which two rows have the more in common the more alike they are."""
    numbers = {(run + i) % 2**32 for i, text in enumerate(row) for run in runs(text)}
    hashed = np.fromiter(numbers, np.uint64, len(numbers))
    minima = ((hashed[:, None] * _FACTORS + _SUMMANDS) >> np.uint64(32)).min(0)
    return (minima.reshape(BANDS, EACH) * _MIX).sum(1)


def near(tables: Sequence[Table], new: NDArray[np.bool_], step: Callable[[int], Any]) -> Near:
    """Rows of all tables that are nearly one before them.

    Numbers stand in a temporary file (128 bytes a row); memory has one band of them.

    Args:
        tables: of all sources.
        new: (rows,) of all tables, whether no equal row is before it; others are not looked at.
        step: called with the number of rows read.
    """
    first = np.cumsum([0, *(len(table) for table in tables)])
    found, usable = Near(), new.copy()
    with tempfile.TemporaryFile() as file:
        numbers: NDArray[np.uint64] = np.memmap(file, np.uint64, "w+", shape=(BANDS, len(new)))
        row = 0
        for table in tables:
            for batch in table.rows.iter(batch_size=AT_ONCE):
                rows = rows_of(batch)
                for texts in map(asked, rows):
                    if usable[row] and sum(len(units(text)) for text in texts) < SHORTEST:
                        usable[row] = False
                        found.short += 1
                    if usable[row]:
                        numbers[:, row] = bands(texts)
                    row += 1
                step(len(rows))
        for band in numbers:
            for pairs in _candidates(band, usable):
                one, other = (_read(rows, tables, first) for rows in pairs.T)
                for (a, texts), (b, later), at in zip(one, other, pairs[:, 1], strict=True):
                    if alike(texts, later) < ALIKE:
                        continue
                    usable[at] = False
                    found.rows += 1
                    if len(found.examples) < EXAMPLES:
                        found.examples.append((named(a), " | ".join(texts), named(b), " | ".join(later)))
    return found


def _candidates(numbers: NDArray[np.uint64], usable: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """(N, 2) rows that agree: each with the first of its kind."""
    rows = np.flatnonzero(usable)
    _, first, inverse = np.unique(numbers[rows], return_index=True, return_inverse=True)
    pairs = np.stack([rows[first[inverse]], rows], 1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    yield from (pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE))


def _read(rows: NDArray[np.int64], tables: Sequence[Table], first: NDArray[np.int64]) -> list[tuple[Any, list[str]]]:
    """Source and texts of each row."""
    which = np.searchsorted(first, rows, side="right") - 1
    texts: dict[int, list[str]] = {}
    for number in np.unique(which):
        here = np.unique(rows[which == number])
        batch = tables[number].rows[(here - first[number]).tolist()]
        texts |= zip(here.tolist(), map(asked, rows_of(batch)), strict=True)
    return [(tables[number].source, texts[row]) for number, row in zip(which, rows.tolist(), strict=True)]
