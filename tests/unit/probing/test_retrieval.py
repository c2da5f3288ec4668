import json
from pathlib import Path

import numpy as np
import pytest

from otherside.encoder import Encoder
from otherside.probing.retrieval import Pair, ranks_in_draws, ranks_of, read_pairs, scores_of
from otherside.probing.retrieval import retrieval as rows_of
from otherside.probing.scores import Score


def retrieval(encoder: Encoder, pairs: list[Pair]) -> dict[str, Score]:
    return {row.metric: row.score for row in rows_of(encoder, pairs)}


def test_ranks() -> None:
    scores = np.array([[0.9, 0.1, 0.2], [0.9, 0.1, 0.2], [0.5, 0.5, 0.5]])
    assert ranks_of(np.array([0, 2, 1]), scores).tolist() == [1, 2, 3]  # the last: a tie counts against the query


def test_ranks_in_draws() -> None:
    """A document is nearer as often as it is drawn; a query's own is there, drawn or not."""
    scores = np.array([[0.9, 0.95, 0.2], [0.1, 0.5, 0.7], [0.9, 0.8, 0.7]])
    times = np.array([[1, 1, 1], [0, 3, 0], [0, 0, 3]])
    assert ranks_in_draws(np.arange(3), scores, times).tolist() == [[2, 2, 3], [4, 1, 4], [1, 4, 1]]


def test_intervals_cover_what_other_pairs_would_give() -> None:
    """A fifth of documents is nearer to all other queries than their own: a test of other pairs has more, or fewer."""
    random = np.random.default_rng(0)

    def measured() -> Score:
        cosines = 0.1 * random.random((50, 50)) + (random.random(50) < 0.2)
        np.fill_diagonal(cosines, 0.5)
        return scores_of(np.arange(50), cosines)["MRR"]

    found = [measured() for _ in range(200)]
    expected = np.mean([score.value for score in found])
    covered = [score.low <= expected <= score.high for score in found]
    assert 0.92 < np.mean(covered) < 0.995, "as of resampled queries alone, 0"


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="cosines of queries and documents must be numbers; got NaN in 1 of 4"):
        ranks_of(np.array([0, 1]), np.array([[0.9, np.nan], [0.5, 0.1]]))


def test_a_text_finds_itself(tiny_llama: Path, sentences: list[str]) -> None:
    encoder = Encoder.load(tiny_llama)
    found = retrieval(encoder, [(text, text) for text in sentences])
    assert found["MRR"].value == found["recall@1"].value == 1


def test_mrr_of_shifted_pairs(tiny_llama: Path, sentences: list[str]) -> None:
    """Against the definition, one query at a time."""
    encoder = Encoder.load(tiny_llama)
    pairs = list(zip(sentences, sentences[1:] + sentences[:1], strict=True))
    reciprocal, first = [], []
    documents = encoder.encode([positive for _, positive in pairs], normalize=True)
    for i, (query, _) in enumerate(pairs):
        order = np.argsort(-(documents @ encoder.encode([query], normalize=True)[0])).tolist()
        reciprocal.append(1 / (order.index(i) + 1))
        first.append(order[0] == i)
    found = retrieval(encoder, pairs)
    assert found["MRR"].value == pytest.approx(np.mean(reciprocal))
    assert found["recall@1"].value == np.mean(first) == 0  # each query finds itself, which is another's positive
    assert found["MRR"].low < found["MRR"].value < found["MRR"].high


def test_equal_positives_are_one_document(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    found = retrieval(encoder, [("Rain.", "Rain."), ("Rain.", "Rain."), ("Snow fell.", "Snow fell.")])
    assert found["recall@1"].value == 1


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


GOOD = [json.dumps({"query": f"q{i}", "positive": f"p{i}\u2028x", "title": "t"}, ensure_ascii=False) for i in range(3)]


def test_read_pairs(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", GOOD[0], "", *GOOD[1:])
    assert read_pairs(path) == [(f"q{i}", f"p{i}\u2028x") for i in range(3)]  # U+2028 ends no line of JSONL


@pytest.mark.parametrize(
    "bad", ['{"query": "q"}', '{"query": "q", "positive": 3}', '{"query": "q", "positive": " "}', "[1]", "{", '"text"']
)
def test_bad_line_is_named(tmp_path: Path, bad: str) -> None:
    path = write(tmp_path / "pairs.jsonl", *GOOD, bad)
    with pytest.raises(ValueError, match=r"pairs\.jsonl, line 4, is"):
        read_pairs(path)


def test_too_few_documents(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="two different positives"):
        read_pairs(write(tmp_path / "pairs.jsonl", GOOD[0], GOOD[0]))
    with pytest.raises(FileNotFoundError, match="--retrieval"):
        read_pairs(tmp_path / "none.jsonl")
