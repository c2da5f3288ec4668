"""Rows of results: what was measured, kept in files, and written as tidy tables.

`docs/probing.md` describes the files for their readers.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from otherside.files import atomic
from otherside.probing.scores import Score

FORMAT = 2
OFF, ON = "adapters off", "adapters on"  # what generates
KEYS = ("task", "input", "target", "layer", "probe", "condition", "metric")


@dataclass(frozen=True)
class Row:
    """One number.

    Args:
        task: such as `telicity`; also `anisotropy`, `retrieval`, `similarity`, `words` and `generation`.
        input: what the probe read, such as the number of a word, or `cosine`.
        target: one of several ratings or lists, `mean` for the mean of all; else empty.
        layer: 0 is the embeddings; None for vectors of texts.
        probe: `linear`, `mlp`, or empty.
        condition: `context`, `shuffled labels` or `no context`.
        metric: accuracy, mse, r2, pearson, spearman, cosine, MRR, recall@1, coverage or perplexity.
        score: the number.
    """

    task: str
    input: str
    target: str
    layer: int | None
    probe: str
    condition: str
    metric: str
    score: Score

    @property
    def key(self) -> tuple[Any, ...]:
        """What was measured; equal in two variants."""
        return tuple(getattr(self, name) for name in KEYS)

    def tidy(self) -> dict[str, Any]:
        """As a row of a table."""
        numbers = {"value": self.score.value, "low": self.score.low, "high": self.score.high}
        return {**{name: getattr(self, name) for name in KEYS}, **numbers}


@dataclass(frozen=True)
class Result:
    """What was measured of one variant.

    Args:
        name: of the variant.
        rows: numbers.
        settings: of the variant that they depend on.
    """

    name: str
    rows: list[Row]
    settings: dict[str, Any] = field(default_factory=dict)

    def find(self, **wanted: Any) -> list[Row]:
        """The rows with these values."""
        return [row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items())]


def keep(path: Path, rows: Sequence[Row]) -> None:
    """Write rows with the draws of their scores."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draws = np.stack([row.score.draws for row in rows])
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, rows=json.dumps([row.tidy() for row in rows]), draws=draws)


def kept(path: Path) -> list[Row]:
    """The rows that `keep` wrote."""
    with np.load(path, allow_pickle=False) as content:
        tidy, draws = json.loads(str(content["rows"])), content["draws"]
    return [_from_tidy(row, drawn) for row, drawn in zip(tidy, draws, strict=True)]


def _from_tidy(row: dict[str, Any], draws: np.ndarray) -> Row:
    score = Score(row["value"], row["low"], row["high"], draws)
    return Row(**{name: row[name] for name in KEYS}, score=score)


def write_results(results: Sequence[Result], about: dict[str, Any], out: Path) -> None:
    """results.json, results.csv and differences.csv; each appears whole or not at all."""
    tidy = [{"variant": result.name, **row.tidy()} for result in results for row in result.rows]
    variants = [{"name": result.name, **result.settings} for result in results]
    with atomic(out / "results.json") as path:
        content = {"format": FORMAT, **about, "variants": variants, "rows": tidy}
        path.write_text(json.dumps(content, indent=1) + "\n")
    _write_csv(out / "results.csv", ["variant", *KEYS, "value", "low", "high"], tidy)
    _write_csv(out / "differences.csv", ["variant", "minus", *KEYS, "value", "low", "high"], differences(results))


def differences(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Each later variant minus each earlier one, in context: paired, so intervals are smaller than the scores' own."""
    rows = []
    for earlier, later in combinations(results, 2):
        there = {row.key: row.score for row in earlier.rows}
        for row in later.rows:
            other = there.get(row.key)
            if row.condition == "context" and other is not None:
                found = replace(row, score=row.score.minus(other))
                rows.append({"variant": later.name, "minus": earlier.name, **found.tidy()})
    return rows


def _write_csv(path: Path, header: list[str], rows: list[dict[str, Any]]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, header)
        writer.writeheader()
        writer.writerows(rows)


def settings_of(value: Any) -> dict[str, Any]:
    """A dataclass as JSON has it."""
    return json.loads(json.dumps(asdict(value)))


@dataclass(frozen=True)
class Measured:
    """A task as its rows show it: what tables and figures need to know of it."""

    name: str
    inputs: tuple[str, ...]
    regression: bool
    aspects: tuple[str, ...]

    @classmethod
    def of(cls, name: str, results: Sequence[Result]) -> Measured:
        """The task of this name."""
        rows = [row for result in results for row in result.find(task=name, condition="context")]
        inputs, targets = (tuple(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("input", "target"))
        aspects = tuple(target for target in targets if target != "mean")
        return cls(name, inputs, any(row.metric == "pearson" for row in rows), aspects)


def read_results(folder: Path) -> tuple[dict[str, Any], list[Result], list[Measured]]:
    """What `write_results` wrote: all but the rows, the rows by variant (scores without draws), the tasks.

    Raises:
        FileNotFoundError: there is no results.json.
        ValueError: it is broken, or of another format.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"results of lightning probe must be in {folder}; it has no results.json")
    try:
        about = json.loads(path.read_text())
        if about["format"] != FORMAT:
            raise ValueError(f"its format must be {FORMAT}; got {about['format']}")
        tidy, nothing = about.pop("rows"), np.empty(0)
        results = [
            Result(v["name"], [_from_tidy(row, nothing) for row in tidy if row["variant"] == v["name"]], v)
            for v in about["variants"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold results of lightning probe, and cannot be read: {error!r}") from error
    return about, results, [Measured.of(task["name"], results) for task in about["tasks"]]
