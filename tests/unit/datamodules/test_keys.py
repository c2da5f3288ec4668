"""Keys of texts, many at once."""

from __future__ import annotations

import numpy as np

from datamodules.keys import first_ones, places_of


def test_first_ones() -> None:
    assert first_ones(np.array([3, 1, 3, -2, 1])).tolist() == [True, True, False, True, False]
    assert first_ones(np.array([], np.int64)).tolist() == []


def test_places() -> None:
    keys = np.array([9, -5, 4, 0, 2**62])
    assert places_of(keys, np.array([-5, 4, 9])).tolist() == [2, 0, 1, -1, -1]
    assert places_of(keys, np.array([], np.int64)).tolist() == [-1] * 5
