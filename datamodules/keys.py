"""Keys of texts (`otherside.candidates.key`), millions at once: arrays of 8 bytes each, sorted to find them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def first_ones(keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(N,) whether no equal key is before it."""
    found = np.zeros(len(keys), bool)
    found[np.unique(keys, return_index=True)[1]] = True
    return found


def places_of(keys: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.int64]:
    """(N,) where each key is in `known` (M,), which is sorted; -1 where it is not."""
    if not len(known):
        return np.full(len(keys), -1)
    places = np.searchsorted(known, keys).clip(max=len(known) - 1)
    return np.where(known[places] == keys, places, -1)
