"""What is searched: every text of the pairs and the corpus once, and which of them are a query's own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import compress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datamodules.cache import cached
from datamodules.keys import first_ones, places_of
from datamodules.rows import Skipped
from datamodules.sources import FEATURES, Table
from otherside.candidates import key

AT_ONCE = 1024  # rows read together


class Documents:
    """The documents of P pairs, as a memory-mapped table whose row number is a document's.

    Args:
        pairs: rows with query, positive and negatives.
        corpus: rows with text; None: only the pairs' own.
    """

    def __init__(self, pairs: Table, corpus: Table | None) -> None:
        self.pairs, self.corpus = pairs, corpus

        def texts(_: Skipped) -> Iterator[dict[str, Any]]:
            new = first_ones(np.fromiter(map(key, _texts(pairs, corpus)), np.int64))
            yield from ({"text": text} for text in compress(_texts(pairs, corpus), new))

        self.rows, _, self.content = cached(
            ["documents", pairs.content, corpus and corpus.content], FEATURES["text"], texts
        )
        keys = _keys(self.rows, "text")
        self._places = np.argsort(keys)
        self._keys = keys[self._places]
        self._places = np.append(self._places, -1)  # of what is no document
        self._queries = _keys(pairs.rows, "query")
        self.positives = self._number(_keys(pairs.rows, "positive"))  # (P,) document of each pair
        self._by_query = np.argsort(self._queries, kind="stable")
        self._sorted_queries = self._queries[self._by_query]

    def __len__(self) -> int:
        return len(self.rows)

    def queries(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Different queries of the pairs from `start` to `stop`: the first pair of each, counted from `start`; and of
        each pair which one it has.
        """
        _, first, query = np.unique(self._queries[start:stop], return_index=True, return_inverse=True)
        return first, query

    def left_out(self, pairs: NDArray[np.int64]) -> Tensor:
        """(M, 2) int64: numbers among these Q pairs, and the documents that are positives of their query, or the query
        itself.

        Args:
            pairs: (Q,).
        """
        queries = self._queries[pairs]
        first, last = (np.searchsorted(self._sorted_queries, queries, side) for side in ("left", "right"))
        own = [self.positives[self._by_query[a:b]] for a, b in zip(first, last, strict=True)]
        own = [np.append(found, number) for found, number in zip(own, self._number(queries), strict=True)]
        rows = np.repeat(np.arange(len(own)), [len(found) for found in own])
        table = torch.from_numpy(np.stack([rows, np.concatenate(own)], axis=1))
        return table[table[:, 1] >= 0]

    def _number(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """Documents with these keys; -1 where there is none."""
        return self._places[places_of(keys, self._keys)]


def _texts(pairs: Table, corpus: Table | None) -> Iterator[str]:
    for batch in pairs.rows.iter(batch_size=AT_ONCE):
        yield from batch["positive"]
    for batch in pairs.rows.iter(batch_size=AT_ONCE):
        yield from (text for texts in batch["negatives"] for text in texts)
    for batch in corpus.rows.iter(batch_size=AT_ONCE) if corpus else ():
        yield from batch["text"]


def _keys(rows: Any, column: str) -> NDArray[np.int64]:
    found = (key(text) for batch in rows.iter(batch_size=AT_ONCE) for text in batch[column])
    return np.fromiter(found, dtype=np.int64, count=len(rows))
