"""Texts with labels as pairs: the positive is another text of the same label, negatives are texts of other labels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from datamodules.rows import BadRow
from datamodules.sources import Table
from otherside.candidates import key


class Examples:
    """N rows by label, from which other rows are drawn.

    Args:
        labels: (N,) int64, numbers from 0.
    """

    def __init__(self, labels: NDArray[np.int64]) -> None:
        self.labels = labels
        self.order = np.argsort(labels, kind="stable")  # label by label, ascending in each
        self.borders = np.searchsorted(labels[self.order], np.arange(labels.max(initial=-1) + 2))

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each label."""
        return np.diff(self.borders)

    def draw(self, row: int, negatives: int, random: np.random.Generator) -> list[int]:
        """Another row of the same label, then so many different rows of others (all, if there are fewer)."""
        start, stop = self.borders[self.labels[row]], self.borders[self.labels[row] + 1]
        place = start + np.searchsorted(self.order[start:stop], row)
        positive = start + (place - start + 1 + random.integers(stop - start - 1)) % (stop - start)
        others = len(self.order) - (stop - start)
        drawn = random.choice(others, min(negatives, others), replace=False)
        places = [positive, *((stop + drawn) % len(self.order))]
        return self.order[places].tolist()


@dataclass(frozen=True)
class LabelledTable(Table):
    """Texts with labels, read as pairs that (seed, epoch, row) draws.

    Args:
        negatives: texts of other labels for each row.
        seed: draws them, together with the row id.
        keys: of each label.
        examples: the rows by label.
    """

    negatives: int = 1
    seed: int = 0
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    examples: Examples = field(default_factory=lambda: Examples(np.zeros(0, np.int64)))

    @classmethod
    def of(cls, table: Table, negatives: int, seed: int) -> LabelledTable:
        """With the labels of its rows.

        Raises:
            BadRow: there is but one label, or a label has but one text.
        """
        labels = table.rows.data.column("label").dictionary_encode().chunks  # of one dictionary
        numbers = np.concatenate([chunk.indices.to_numpy() for chunk in labels]).astype(np.int64)
        names = labels[0].dictionary.to_pylist()
        texts = (text for chunk in table.rows.data.column("text").chunks for text in chunk.to_pylist())
        rows = np.stack([numbers, np.fromiter(map(key, texts), np.int64, len(numbers))], axis=1)
        first = np.sort(np.unique(rows, axis=0, return_index=True)[1])  # a text is no positive of itself
        if len(first) < len(rows):
            table, numbers = replace(table, rows=table.rows.select(first)), numbers[first]
        examples = Examples(numbers)
        if len(names) < 2:
            raise BadRow(
                f"{table.source}: labels: true must find texts of two labels or more, as negatives are of another; all "
                f"{len(table)} are of {names[0]!r}. Name the right column under fields: label, or leave the source out."
            )
        if alone := [names[i] for i in np.flatnonzero(examples.sizes < 2)]:
            raise BadRow(
                f"{table.source}: labels: true must find two texts or more of each label, one for the other; "
                f"{len(alone)} of {len(names)} labels have one, such as {alone[0]!r}. Remove these rows."
            )
        keys = np.array([key(str(name)) for name in names], np.int64)  # the same in every process
        return cls(**vars(table), negatives=negatives, seed=seed, keys=keys, examples=examples)

    @override
    def read(self, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> dict[str, list[Any]]:
        """See `Table.read`."""
        drawn = [
            self.examples.draw(int(row), self.negatives, np.random.default_rng((self.seed, int(number))))
            for row, number in zip(rows, ids, strict=True)
        ]
        wanted = [number for row, others in zip(rows.tolist(), drawn, strict=True) for number in (row, *others)]
        texts = iter(self.rows[wanted]["text"])
        labels = [self.keys[self.examples.labels[[row, *others]]] for row, others in zip(rows, drawn, strict=True)]
        return _columns([[next(texts) for _ in range(1 + len(others))] for others in drawn], labels)


def _columns(rows: list[list[str]], labels: list[NDArray[np.int64]]) -> dict[str, list[Any]]:
    """Of each row's text, positive and negatives, and the keys of their labels."""
    return {
        "query": [query for query, *_ in rows],
        "positive": [positive for _, positive, *_ in rows],
        "negatives": [negatives for _, _, *negatives in rows],
        "labels": [[own, *others] for own, _, *others in (keys.tolist() for keys in labels)],
    }
