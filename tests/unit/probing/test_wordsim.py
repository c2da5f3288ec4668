"""Similarity of single words: which vectors are taken, and what is correlated."""

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from otherside.encoder import Encoder
from otherside.probing.scores import count
from otherside.probing.wordsim import (
    ALONE,
    CONTEXTS,
    SPACE,
    WordList,
    mentions_of,
    rank_correlations,
    read_contexts,
    read_lists,
    wordsim,
)
from otherside.words import layer_vectors

WORDS = ["rain", "snow", "house", "roof", "cat", "dog", "river", "sea", "bread", "cake", "king", "queen"]
PAIRS = tuple((one, other) for i, one in enumerate(WORDS) for other in WORDS[i + 1 :])
RATINGS = tuple(float(i * 7 % 11) for i in range(len(PAIRS)))


def test_where_words_are_found() -> None:
    contexts = ["Rain fell. The rain stopped.", "A cat, a catalogue.", *(f"{i} dogs saw the dog" for i in range(9))]
    found = mentions_of([WordList("L", (("rain", "cat"), ("dog", "sea")), (1, 2))], contexts)
    places = {word: [(m.text, m.text[m.start : m.end]) for m in places] for word, places in found[CONTEXTS].items()}
    assert places["rain"] == [(contexts[0], "Rain")], "once a sentence"
    assert places["cat"] == [(contexts[1], "cat")], "whole words only"
    assert [text for text, _ in places["dog"]] == contexts[2:7]
    assert "sea" not in places
    assert [m[:3] for m in found[ALONE]["sea"] + found[SPACE]["sea"]] == [("sea", 0, 3), (" sea", 1, 4)]
    both = mentions_of([WordList("L", (("may", "May"),), (1,))], ["He may go.", "In May."])
    assert [both[CONTEXTS][word][0].text for word in ("may", "May")] == ["He may go.", "In May."]
    hindi = mentions_of([WordList("L", (("हम", "किताब"),), (1,))], ["हमें किताब दो"])
    assert list(hindi[CONTEXTS]) == ["किताब"]
    assert CONTEXTS not in mentions_of([WordList("L", (("rain", "cat"),), (1,))])
    assert mentions_of([]) == {}


def test_spearman_of_cosines_by_layer(tiny_llama: Path) -> None:
    """Against the definition: means over contexts, and pairs that are not there left out."""
    encoder = Encoder.load(tiny_llama)
    contexts = [f"{place} the {word} was old" for word in WORDS[:-1] for place in ("Here", "Over there")]
    lists = [WordList("A", PAIRS, RATINGS), WordList("B", PAIRS[:20], RATINGS[5:25])]
    rows = wordsim(encoder, lists, mentions_of(lists, contexts), [0, 2])
    assert {row.layer for row in rows if row.metric == "spearman"} == {0, 2}
    unit = {}
    for word in WORDS[:-1]:
        texts = [text for text in contexts if f" {word} " in text]
        spans = [[(text.index(word), text.index(word) + len(word))] for text in texts]
        vector = np.mean([v[0, 0] for _, v in layer_vectors(encoder, texts, spans, [2])], axis=0)
        unit[word] = vector / np.linalg.norm(vector)
    there = [(a, b, r) for (a, b), r in zip(PAIRS, RATINGS, strict=True) if a in unit and b in unit]
    expected = spearmanr([unit[a] @ unit[b] for a, b, _ in there], [r for *_, r in there]).statistic

    def value(**wanted: object) -> float:
        [row] = [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]
        return row.score.value

    assert value(input=CONTEXTS, target="A", layer=2) == pytest.approx(expected, abs=1e-5)
    assert value(input=CONTEXTS, target="A", metric="coverage") == pytest.approx(len(there) / len(PAIRS))
    assert value(input=ALONE, target="A", metric="coverage") == 1
    both = [value(input=SPACE, target=name, layer=2) for name in "AB"]
    assert value(input=SPACE, target="mean", layer=2) == pytest.approx(np.mean(both))
    assert value(input=SPACE, target="A", layer=2) != value(input=ALONE, target="A", layer=2)


def test_lists_that_share_pairs_share_their_draws(tiny_llama: Path) -> None:
    """Or the interval of their mean would be too narrow."""
    same = tuple((other, one) for one, other in PAIRS)
    lists = [WordList("A", PAIRS, RATINGS), WordList("B", same, RATINGS), WordList("C", PAIRS[:20], RATINGS[:20])]
    rows = wordsim(Encoder.load(tiny_llama), lists, mentions_of(lists), [2])
    drawn = {row.target: row.score.draws for row in rows if row.input == ALONE and row.metric == "spearman"}
    np.testing.assert_allclose(drawn["A"], drawn["B"], atol=1e-6)
    assert np.corrcoef(drawn["A"], drawn["C"])[0, 1] > 0.3


def test_a_list_without_words_in_the_contexts_is_left_out(tiny_llama: Path) -> None:
    lists = [WordList("A", PAIRS, RATINGS)]
    rows = wordsim(Encoder.load(tiny_llama), lists, mentions_of(lists, ["The rain and the snow"]), [2])
    assert {row.metric for row in rows if row.input == CONTEXTS} == {"coverage"}


def test_the_mean_is_over_the_same_lists_in_all_inputs(tiny_llama: Path) -> None:
    lists = [WordList("A", PAIRS, RATINGS), WordList("B", (("yes", "no"), *PAIRS[:9]), RATINGS[:10])]
    contexts = [f"Here the {word} was old" for word in WORDS]
    rows = wordsim(Encoder.load(tiny_llama), lists, mentions_of(lists, contexts), [2])
    by_key = {(row.input, row.target): row.score.value for row in rows if row.metric == "spearman"}
    assert (ALONE, "B") in by_key and (CONTEXTS, "B") not in by_key
    for name in (ALONE, SPACE, CONTEXTS):
        assert by_key[name, "mean"] == by_key[name, "A"]


def test_rank_correlations_and_their_draws() -> None:
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 5, 400).astype(float)
    values = np.stack([ratings + rng.normal(size=400) * noise for noise in (0, 3)], axis=1)
    times = count(400)
    found, draws = rank_correlations(values, ratings, times)
    for column, value in enumerate(found):
        assert value == pytest.approx(spearmanr(values[:, column], ratings).statistic)
    exact = [spearmanr(np.repeat(values[:, 1], t), np.repeat(ratings, t)).statistic for t in times[:50]]
    assert np.abs(draws[1, :50] - exact).max() < 0.02, "without ranking each draw anew"
    constant, _ = rank_correlations(np.ones((400, 1)), ratings, times[:2])
    assert abs(constant[0]) < 1e-6


def test_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="--words must be a folder with lists"):
        read_lists(tmp_path)
    file = tmp_path / "L.txt"
    file.write_text("".join(f"{a}\t{b}\t{r}\n" for (a, b), r in zip(PAIRS, RATINGS, strict=True)))
    assert read_lists(tmp_path) == [WordList("L", PAIRS, RATINGS)]
    file.write_text("a b c\n")
    with pytest.raises(ValueError, match=r"two words and a rating; .*line 1, is 'a b c'"):
        read_lists(tmp_path)
    file.write_text("rain snow nan\n")
    with pytest.raises(ValueError, match=r"two words and a rating; .*line 1, is 'rain snow nan'"):
        read_lists(tmp_path)
    file.write_text("rain snow 1\n" * 20)
    with pytest.raises(ValueError, match="two different ratings"):
        read_lists(tmp_path)
    file.write_text("A sentence.\n\nA sentence.\nAnother.\n")
    assert read_contexts(file) == ["A sentence.", "Another."]
    with pytest.raises(FileNotFoundError, match="--contexts must be a text file"):
        read_contexts(tmp_path / "none")
