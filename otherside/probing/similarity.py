"""Similarity of texts: do cosines order pairs as their ratings do?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otherside.encoder import Encoder
from otherside.probing.lines import read_lines, text
from otherside.probing.results import Row
from otherside.probing.scores import count, resample, score

Rated = tuple[str, str, float]


def read_rated(path: Path) -> list[Rated]:
    """(sentence1, sentence2, score) of each line of a JSONL file; see `read_lines`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object, or all ratings are the same.
    """
    needs = "the texts sentence1 and sentence2 and the number score"
    rated = read_lines(path, "--similarity", needs, _rated)
    if len({rating for *_, rating in rated}) < 2:
        raise ValueError(f"--similarity must have at least two different scores to correlate with; {path} has not")
    return rated


def _rated(row: dict[str, Any]) -> Rated:
    rating = float(row["score"])
    if not math.isfinite(rating):
        raise ValueError(f"score is {rating}")
    return text(row, "sentence1"), text(row, "sentence2"), rating


def similarity(encoder: Encoder, rated: Sequence[Rated]) -> list[Row]:
    """Spearman's correlation of cosines and ratings; the interval resamples pairs.

    Args:
        encoder: encodes both texts of a pair, without instruction.
        rated: N pairs with their rating.
    """
    ones, others, ratings = zip(*rated, strict=True)
    place = {text: i for i, text in enumerate(dict.fromkeys([*ones, *others]))}
    vectors = encoder.encode(list(place), normalize=True)
    first, second = (vectors[[place[text] for text in texts]] for texts in (ones, others))
    cosines, draws = (first * second).sum(1).astype(float), resample(count(len(rated)))
    found = score([cosines], [np.array(ratings, float)], [draws])["spearman"]
    return [Row("similarity", "", "", None, "", "context", "spearman", found)]
