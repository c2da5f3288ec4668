"""What was found, in numbers: scores, rows without enough negatives, likely false negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH = 0.05  # of a bar of the histogram
BINS = round(2 / WIDTH)  # from -1 to 1
LONGEST = 30  # characters of its longest bar


class Quality:
    """Numbers over all rows, added part by part.

    Args:
        negatives: asked for, of each row.
    """

    def __init__(self, negatives: int) -> None:
        self.negatives = negatives
        self.rows = self.short = self.bare = self.suspected = self.beaten = self.suspects = 0
        self.positive, self.negative = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)

    def add(self, part: dict[str, list[Any]]) -> None:
        """Rows with scores, positive_score, suspects (documents above the ceiling) and nearest (best score)."""
        found = np.array([len(scores) for scores in part["scores"]])
        positive, suspects = np.array(part["positive_score"]), np.array(part["suspects"])
        self.rows += len(found)
        self.short += int((found < self.negatives).sum())
        self.bare += int((found == 0).sum())
        self.suspects += int(suspects.sum())
        self.suspected += int((suspects > 0).sum())
        self.beaten += int((np.array(part["nearest"]) >= positive).sum())
        self.positive += _histogram(positive)
        self.negative += _histogram(np.array([score for scores in part["scores"] for score in scores]))

    def numbers(self) -> dict[str, Any]:
        """As JSON has them; shares are of rows."""
        return {
            "rows": self.rows,
            "rows_without_enough": self.short / self.rows,
            "rows_without_any": self.bare / self.rows,
            "rows_with_likely_false_negatives": self.suspected / self.rows,
            "likely_false_negatives_per_row": self.suspects / self.rows,
            "rows_whose_positive_is_not_nearest": self.beaten / self.rows,
            "histogram": {
                "from": [round(-1 + i * WIDTH, 2) for i in range(BINS)],
                "positives": self.positive.tolist(),
                "negatives": self.negative.tolist(),
            },
        }


def told(numbers: dict[str, Any]) -> str:
    """For people."""
    histogram = numbers["histogram"]
    counts = np.array([histogram["positives"], histogram["negatives"]])
    shown = np.flatnonzero(counts.sum(0))
    lines = [f"{'cosine from':>11}  {'positives':<{LONGEST + 8}}negatives"]
    for i in range(shown.min(), shown.max() + 1):
        bars = [
            f"{n:>7} {'#' * round(LONGEST * n / max(row.max(), 1))}"
            for n, row in zip(counts[:, i], counts, strict=True)
        ]
        lines.append(f"{histogram['from'][i]:>11.2f}  {bars[0]:<{LONGEST + 8}}{bars[1]}".rstrip())
    lines += [
        "",
        f"rows: {numbers['rows']:,}; with fewer negatives than asked for: {numbers['rows_without_enough']:.1%}, "
        f"with none: {numbers['rows_without_any']:.1%}",
        "likely false negatives (nearer than the ceiling, left out): "
        f"in {numbers['rows_with_likely_false_negatives']:.1%} of rows, "
        f"{numbers['likely_false_negatives_per_row']:.2f} a row",
        f"rows whose positive is not the nearest document: {numbers['rows_whose_positive_is_not_nearest']:.1%}",
    ]
    return "\n".join(lines)


def _histogram(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.bincount(((scores + 1) / WIDTH).astype(int).clip(0, BINS - 1), minlength=BINS)
