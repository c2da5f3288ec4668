"""Texts that are looked for in training data, as numbers: 12 bytes for each, however long it is."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import regex
from numpy.typing import NDArray

from datamodules.keys import places_of
from otherside.candidates import key

NO_WORD = regex.compile(r"[\W_]+")
SHORTEST = 12  # letters and digits; shorter texts, such as "Thank you.", are anywhere


def words(text: str) -> list[str]:
    """What is compared: neither case nor punctuation nor spaces."""
    return NO_WORD.sub(" ", text.casefold()).split()


def number(text: str) -> int:
    """64 bits that texts of the same words have in common."""
    return key(" ".join(words(text)))


class Known:
    """Texts by the place they are from, such as a task; each is a document of a corpus to search, or is not."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.counts: list[int] = []  # texts of each
        self._keys, self._places = array("q"), array("i")
        self._sorted: NDArray[np.int64] = np.zeros(0, np.int64)
        self._of: NDArray[np.int32] = np.full(1, -1, np.int32)  # of each sorted key; the last: of what is none of them

    def add(self, name: str, texts: Iterable[tuple[bool, str]]) -> None:
        """Look for these, too; short ones are left out.

        Args:
            name: of the place.
            texts: each with whether it is a document.
        """
        before = len(self._keys)
        for document, text in texts:
            if sum(map(len, words(text))) >= SHORTEST:
                self._keys.append(number(text))
                self._places.append(2 * len(self.names) + document)
        self.names.append(name)
        self.counts.append(len(self._keys) - before)

    def close(self) -> None:
        """All texts are there: sort them. One that is both a document and none is none; else its first place counts."""
        keys, places = np.frombuffer(self._keys, np.int64), np.frombuffer(self._places, np.int32)
        order = np.lexsort((places, places % 2, keys))
        self._sorted, first = np.unique(keys[order], return_index=True)
        self._of = np.append(places[order][first], np.int32(-1))

    def places(self, keys: Sequence[int]) -> NDArray[np.int32]:
        """(N,) of each key twice the number of its place, and 1 more for a document; -1 where it is in none."""
        return self._of[places_of(np.asarray(keys, np.int64), self._sorted)]
