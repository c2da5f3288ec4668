"""Similarity of words: do cosines order pairs of words as people do? Layer by layer.

Shapes: n pairs of a list, W words, L layers, D hidden size, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import regex
from scipy.stats import rankdata
from tqdm import tqdm

from otherside.encoder import Encoder
from otherside.probing.features import group_by_text, mention_vectors
from otherside.probing.results import Row
from otherside.probing.scores import DRAWS, Score, count
from otherside.probing.tasks import Mention, normalised

ALONE, SPACE, CONTEXTS = "alone", "behind a space", "in contexts"
OCCURRENCES = 5  # of a word, whose vectors are averaged
FEWEST = 10  # pairs of a list that must be there for it to be measured


@dataclass(frozen=True)
class WordList:
    """Pairs of words with people's ratings.

    Args:
        name: such as EN-SIMLEX-999.
        pairs: n pairs.
        ratings: (n,).
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    ratings: tuple[float, ...]


def read_lists(folder: Path) -> list[WordList]:
    """The lists of a folder: NAME.txt, `word word rating` in each line, as such lists are published.

    Raises:
        FileNotFoundError: there is no such folder, or no list in it.
        ValueError: a line is something else, or a list has too few pairs.
    """
    files = sorted(folder.glob("*.txt")) if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(
            f"--words must be a folder with lists of word pairs, NAME.txt; there are none in {folder}"
        )
    return [_read(file) for file in files]


def _read(file: Path) -> WordList:
    pairs, ratings = [], []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            one, other, rating = line.split("\t") if "\t" in line else line.split()
            if not math.isfinite(value := float(rating)):
                raise ValueError(f"a rating of {rating}")
            ratings.append(value)
        except ValueError as error:
            raise ValueError(
                f"--words: every line must be two words and a rating; {file}, line {number}, is {line[:80]!r}"
            ) from error
        pairs.append((one.strip(), other.strip()))
    if len(pairs) < FEWEST or len(set(ratings)) < 2:
        raise ValueError(f"--words: a list must have at least {FEWEST} pairs and two different ratings; {file} has not")
    return WordList(file.stem, tuple(pairs), tuple(ratings))


def read_contexts(path: Path) -> list[str]:
    """The lines of a text file, once each.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--contexts must be a text file with a sentence in each line; there is none at {path}")
    return list(dict.fromkeys(line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()))


def mentions_of(lists: Sequence[WordList], contexts: Sequence[str] = ()) -> dict[str, dict[str, list[Mention]]]:
    """Where each word's vectors are taken: alone, behind a space, and in the sentences that have it.

    Args:
        lists: of words.
        contexts: sentences; the first five with a word, as it is written in the list or with a capital, are taken.

    Returns:
        Mentions by input and word; words that no sentence has are left out.
    """
    words = dict.fromkeys(word for wordlist in lists for pair in wordlist.pairs for word in pair)
    if not words:
        return {}
    found: dict[str, dict[str, list[Mention]]] = {
        ALONE: {word: [Mention(word, 0, len(word))] for word in words},
        SPACE: {word: [Mention(f" {word}", 1, len(word) + 1)] for word in words},
    }
    if contexts:
        inside: dict[str, list[Mention]] = {word: [] for word in words}
        spelled = {word.capitalize(): word for word in words} | {word: word for word in words}
        for text in contexts:
            for match in regex.finditer(r"[^\W\d_]+", text):
                places = inside.get(spelled.get(match[0], ""))
                if places is not None and len(places) < OCCURRENCES and all(m.text != text for m in places):
                    places.append(Mention(text, *match.span()))
        found[CONTEXTS] = {word: places for word, places in inside.items() if places}
    return found


def texts_of(mentions: Mapping[str, Mapping[str, Sequence[Mention]]]) -> int:
    """How many texts must be read."""
    return sum(len(group_by_text(_all(words))) for words in mentions.values())


def _all(words: Mapping[str, Sequence[Mention]]) -> list[Mention]:
    return list(dict.fromkeys(mention for places in words.values() for mention in places))


def wordsim(
    encoder: Encoder,
    lists: Sequence[WordList],
    mentions: Mapping[str, Mapping[str, Sequence[Mention]]],
    layers: Sequence[int],
    progress: tqdm | None = None,
) -> list[Row]:
    """Spearman's correlation of cosines and ratings for each list, by layer, and the mean over lists that were measured
    in all inputs; intervals resample pairs. Coverage is the share of a list's pairs whose words are both there.

    Args:
        encoder: whose words' vectors are taken.
        lists: what people say.
        mentions: from `mentions_of`.
        layers: numbers from 0, the embeddings.
        progress: advanced by one per text.
    """
    rows: list[Row] = []
    numbers = {pair: i for i, pair in enumerate(dict.fromkeys(_unordered(pair) for one in lists for pair in one.pairs))}
    times = count(len(numbers))  # of each pair: lists share some
    everywhere = [one for one in lists if all(len(_there(one, words)) >= FEWEST for words in mentions.values())]
    for name, words in mentions.items():
        places, vectors_WLD = _vectors(encoder, words, layers, progress)
        by_list: list[tuple[np.ndarray, np.ndarray]] = []
        for wordlist in lists:
            there = _there(wordlist, places)
            rows.append(_row(name, wordlist.name, None, "coverage", _certain(len(there) / len(wordlist.pairs))))
            if len(there) < FEWEST:
                continue
            one, other = (np.array([places[wordlist.pairs[i][side]] for i in there]) for side in (0, 1))
            cosines_nL = np.stack([_cosines(vectors_WLD[:, at], one, other) for at in range(len(layers))], axis=1)
            ratings = np.array([wordlist.ratings[i] for i in there])
            drawn = times[:, [numbers[_unordered(wordlist.pairs[i])] for i in there]]
            drawn = np.where(drawn.any(1, keepdims=True), drawn, 1)  # a draw without any of a short list has all
            found = rank_correlations(cosines_nL, ratings, drawn)
            rows += _by_layer(name, wordlist.name, layers, *found)
            if wordlist in everywhere:
                by_list.append(found)
        if by_list:
            values, draws = (np.mean(part, axis=0) for part in zip(*by_list, strict=True))
            rows += _by_layer(name, "mean", layers, values, draws)
    return rows


def _unordered(pair: tuple[str, str]) -> tuple[str, ...]:
    return tuple(sorted(pair))


def _there(wordlist: WordList, words: Collection[str]) -> list[int]:
    """Numbers of the pairs whose words are both among `words`."""
    return [i for i, pair in enumerate(wordlist.pairs) if all(word in words for word in pair)]


def _vectors(
    encoder: Encoder, words: Mapping[str, Sequence[Mention]], layers: Sequence[int], progress: tqdm | None
) -> tuple[dict[str, int], np.ndarray]:
    """Number of each word, and (W, L, D) sums over its mentions: cosines know no lengths."""
    places = {word: i for i, word in enumerate(words)}
    owners: dict[Mention, list[int]] = {}
    for word, taken in words.items():
        for mention in taken:
            owners.setdefault(mention, []).append(places[word])
    mentions = list(owners)
    found = np.zeros((len(places), len(layers), encoder.backbone.hidden_size), np.float32)
    for number, vector_LD in mention_vectors(encoder, mentions, layers, progress):
        for owner in owners[mentions[number]]:
            found[owner] += vector_LD
    return places, found


def _cosines(vectors_WD: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    unit = normalised(vectors_WD)
    return (unit[one] * unit[other]).sum(1)


def rank_correlations(values_nL: np.ndarray, ratings: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's correlation of each column with the ratings: (L,), and (L, B) in each draw.

    A draw weighs the ranks among all pairs, which does not rank anew in each of thousands of draws.

    Args:
        values_nL: (n, L).
        ratings: (n,).
        times: (B, n) how often each draw has each pair.
    """
    x, y = rankdata(values_nL, axis=0), rankdata(ratings)[:, None]
    weights = np.vstack([np.ones(len(y)), times]).astype(float)
    weights /= weights.sum(1, keepdims=True)
    mean_x, mean_y = weights @ x, weights @ y
    covariance = weights @ (x * y) - mean_x * mean_y
    variances = (weights @ x**2 - mean_x**2) * (weights @ y**2 - mean_y**2)
    found = covariance / np.sqrt(variances.clip(1e-12))
    return found[0], found[1:].T


def _by_layer(name: str, target: str, layers: Sequence[int], values: np.ndarray, draws: np.ndarray) -> Iterator[Row]:
    for layer, value, drawn in zip(layers, values, draws, strict=True):
        yield _row(name, target, layer, "spearman", Score.of(value, drawn))


def _row(name: str, target: str, layer: int | None, metric: str, score: Score) -> Row:
    return Row("words", name, target, layer, "", "context", metric, score)


def _certain(value: float) -> Score:
    return Score.of(value, np.full(DRAWS, value))
