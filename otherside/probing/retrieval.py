"""Held-out retrieval: is a query's vector nearest to its own document's?

Shapes: N pairs, M documents, B draws.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from otherside.encoder import Encoder
from otherside.probing.lines import read_lines, text
from otherside.probing.results import Row
from otherside.probing.scores import Score, check_numbers, count

Pair = tuple[str, str]


def read_pairs(path: Path) -> list[Pair]:
    """(query, positive) of each line of a JSONL file; see `read_lines`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not such an object, or there are fewer than two different positives.
    """
    needs = "the texts query and positive"
    pairs = read_lines(path, "--retrieval", needs, lambda row: (text(row, "query"), text(row, "positive")))
    if len({positive for _, positive in pairs}) < 2:
        raise ValueError(f"--retrieval needs at least two different positives to choose from; {path} has fewer")
    return pairs


def retrieval(encoder: Encoder, pairs: list[Pair]) -> list[Row]:
    """MRR and recall@1 of finding each query's positive among all positives, by cosine.

    Equal positives count as one document. The intervals resample pairs, see `scores_of`.

    Args:
        encoder: encodes queries and documents alike, without instruction.
        pairs: (query, positive), at least two different positives.
    """
    place = {document: i for i, document in enumerate(dict.fromkeys(positive for _, positive in pairs))}
    own = np.array([place[positive] for _, positive in pairs])
    queries = encoder.encode([query for query, _ in pairs], normalize=True)
    documents = encoder.encode(list(place), normalize=True)
    found = scores_of(own, queries @ documents.T)
    return [Row("retrieval", "", "", None, "", "context", metric, score) for metric, score in found.items()]


def scores_of(own: np.ndarray, cosines: np.ndarray) -> dict[str, Score]:
    """MRR and recall@1; their intervals resample pairs, queries with their documents.

    Other documents would give other ranks, to many queries at once: where a few are near to all queries, an interval of
    resampled queries alone covers nothing. In a draw, a document that is drawn twice is nearer twice, and one that is
    not is none. A rank that varies is 1 more often than its mean, so that draws are too good; they are moved to the
    value of the whole.

    Args:
        own: (N,) number of each query's document.
        cosines: (N, M).
    """
    ranks, times = ranks_of(own, cosines), count(len(own), own)
    ranks_BN, weights = ranks_in_draws(own, cosines, times), times / times.sum(1, keepdims=True)
    found = {}
    for metric, values, drawn in (("MRR", 1 / ranks, 1 / ranks_BN), ("recall@1", ranks == 1, ranks_BN == 1)):
        draws = (weights * drawn).sum(1)
        found[metric] = Score.of(values.mean(), (draws - draws.mean() + values.mean()).clip(0, 1))
    return found


def ranks_of(own: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) rank of document `own[i]`, from 1, among the M documents by `scores[i]`.

    A tie counts against the query, so that vectors that are all the same score nothing.

    Args:
        own: (N,) number of each query's document.
        scores: (N, M).

    Raises:
        ValueError: a score is NaN, which no comparison would tell from rank 0.
    """
    check_numbers("cosines of queries and documents", scores)
    return _nearer(own, scores).sum(1)


def ranks_in_draws(own: np.ndarray, scores: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(B, N) ranks among a draw's documents; a query's own is there once.

    Args:
        own: (N,) number of each query's document.
        scores: (N, M).
        times: (B, N) how often each draw has each pair; pairs of one document as often.
    """
    others = _nearer(own, scores)
    np.put_along_axis(others, own[:, None], False, axis=1)
    first = np.unique(own, return_index=True)[1]  # a pair of each document
    return 1 + times[:, first].astype(np.float32) @ others.T.astype(np.float32)


def _nearer(own: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N, M) whether a document is as near as the query's own, or nearer."""
    return scores >= np.take_along_axis(scores, own[:, None], axis=1)
