"""Similarity of texts: do cosines order pairs as their ratings do?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from otherside.encoder import Encoder
from otherside.probing.results import Row
from otherside.probing.scores import count, resample, score

Rated = tuple[str, str, float]


def read_rated(path: Path) -> list[Rated]:
    """(sentence1, sentence2, score) of each line of a JSONL file; other keys are ignored, empty lines skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object, or all ratings are the same.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--similarity must be a JSONL file; there is none at {path}")
    rated: list[Rated] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            one, other, rating = row["sentence1"], row["sentence2"], float(row["score"])
            if not (isinstance(one, str) and one.strip() and isinstance(other, str) and other.strip()):
                raise TypeError("one of the two is empty or no text")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"--similarity: every line must be a JSON object with the texts sentence1 and sentence2 and the number "
                f"score; {path}, line {number}, is {line[:80]!r} ({error!r})"
            ) from error
        rated.append((one, other, rating))
    if len({rating for *_, rating in rated}) < 2:
        raise ValueError(f"--similarity must have at least two different scores to correlate with; {path} has not")
    return rated


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
