"""Held-out retrieval: is a query's vector nearest to its own document's?"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from otherside.encoder import Encoder
from otherside.probing.lines import read_lines, text
from otherside.probing.results import Row
from otherside.probing.scores import bootstrap, check_numbers

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

    Equal positives count as one document. The intervals resample queries.

    Args:
        encoder: encodes queries and documents alike, without instruction.
        pairs: (query, positive), at least two different positives.
    """
    place = {document: i for i, document in enumerate(dict.fromkeys(positive for _, positive in pairs))}
    own = np.array([place[positive] for _, positive in pairs])
    queries = encoder.encode([query for query, _ in pairs], normalize=True)
    documents = encoder.encode(list(place), normalize=True)
    cosines = queries @ documents.T
    ranks = ranks_of(own, cosines)
    found = {"MRR": bootstrap(1 / ranks), "recall@1": bootstrap(ranks == 1)}
    return [Row("retrieval", "", "", None, "", "context", metric, score) for metric, score in found.items()]


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
    return (scores >= np.take_along_axis(scores, own[:, None], axis=1)).sum(1)
