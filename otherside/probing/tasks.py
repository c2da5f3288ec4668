"""What a probing task is: words in sentences, what is asked about them, and which vectors a probe reads.

Shapes: N items, W words of one item, D hidden size, F features that a probe reads, K ratings.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np

SEED = 42  # the paper's
TEST_SHARE = 0.2  # the paper's, where the data come without a test set
Condition = Literal["context", "shuffled labels", "no context"]


class Mention(NamedTuple):
    """A word where it stands: its sentence, its first and its last + 1 character."""

    text: str
    start: int
    end: int

    def alone(self) -> Mention:
        """The same word without its sentence."""
        word = self.text[self.start : self.end]
        return Mention(word, 0, len(word))


@dataclass(frozen=True)
class Mlp:
    """A multilayer perceptron as a probe: sizes of its hidden layers, batch size and learning rate."""

    hidden: tuple[int, ...]
    batch_size: int
    learning_rate: float


@dataclass(frozen=True)
class Input:
    """What a probe reads: (N, W, D) word vectors -> (N, F) features; and its MLP, or None for linear probes only."""

    read: Callable[[np.ndarray], np.ndarray]
    mlp: Mlp | None = None


@dataclass(frozen=True)
class Task:
    """N items, and what is asked about them.

    Args:
        name: such as `telicity`.
        mentions: the W words of each item whose vectors are taken.
        targets: (N,) int64 classes, or (N, K) float64 ratings.
        groups: (N,) the word each item is about; items of one word depend on each other.
        inputs: what probes read, by name.
        test: (N,) bool, the published test set; None: a random fifth, by seed.
        aspects: names of the K ratings.
        alone: whether the words mean something without context; a comparison of two contexts does not.
        notes: what was wrong with the data, and what was done about it.
    """

    name: str
    mentions: Sequence[Sequence[Mention]]
    targets: np.ndarray
    groups: np.ndarray
    inputs: dict[str, Input]
    test: np.ndarray | None = None
    aspects: tuple[str, ...] = ()
    alone: bool = True
    notes: tuple[str, ...] = ()

    @property
    def regression(self) -> bool:
        """Ratings are predicted, not classes."""
        return self.targets.ndim == 2

    def split(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Item numbers of training and test set: as published, else a random fifth drawn by `seed` is the test set,
        less the items of a class that would be in no other.
        """
        from sklearn.model_selection import train_test_split

        numbers = np.arange(len(self.targets))
        if self.test is not None:
            return numbers[~self.test], numbers[self.test]
        train, test = train_test_split(numbers, test_size=TEST_SHARE, random_state=seed)
        if not self.regression and (unknown := ~np.isin(self.targets[test], self.targets[train])).any():
            train, test = np.concatenate([train, test[unknown]]), test[~unknown]
        return train, test

    def words(self, condition: Condition) -> list[list[Mention]]:
        """The mentions, or for `no context` the bare words."""
        bare = condition == "no context"
        return [[mention.alone() if bare else mention for mention in item] for item in self.mentions]

    def digest(self) -> str:
        """SHA-256 of all that results depend on: mentions, targets, split, inputs."""
        content = [self.name, self.mentions, self.targets.tolist(), self.groups.tolist(), list(map(str, self.aspects))]
        content += [None if self.test is None else self.test.tolist(), {k: str(v.mlp) for k, v in self.inputs.items()}]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def word(place: int, vectors: np.ndarray) -> np.ndarray:
    """The vector of one word."""
    return vectors[:, place]


def words(mlp: Mlp | None, count: int = 5) -> dict[str, Input]:
    """One input per word of the sentence, named 1 to `count`."""
    return {str(i + 1): Input(partial(word, i), mlp) for i in range(count)}


def absolute_difference(vectors: np.ndarray) -> np.ndarray:
    """|a − b| of the two words' vectors."""
    return np.abs(vectors[:, 0] - vectors[:, 1])


def normalised(vectors: np.ndarray) -> np.ndarray:
    """Of length 1."""
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True).clip(1e-30)


def cosine(vectors: np.ndarray) -> np.ndarray:
    """(N, 1) cosine of the two words' vectors."""
    unit = normalised(vectors)
    return (unit[:, 0] * unit[:, 1]).sum(1, keepdims=True)


def concatenation(vectors: np.ndarray) -> np.ndarray:
    """Both words' vectors, one behind the other."""
    return vectors.reshape(len(vectors), -1)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where the words of a text begin and end, as words between spaces."""
    return [match.span() for match in re.finditer(r"\S+", text)]
