"""Somebody's data as a recipe's own files: each row once, all texts, and a part that no stage trains on.

Rows of one query and positive become one with the negatives of all, as files of triplets have a row for each negative.
Of texts with labels, those that another text shares its label with are labelled rows, too.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from datamodules.recognise import Found
from datamodules.rows import BadRow, Skipped, asked, checked_rows
from datamodules.sources import Kind, read_records, row_check
from otherside.candidates import key

SHARE, MOST, FEWEST = 20, 500, 10  # held out: one of so many rows, at most so many, or none if fewer
SAMPLE = 2000  # texts of a role to measure lengths on
TEXTS, PAIRS, LABELLED, HELD_OUT = "texts.jsonl", "pairs.jsonl", "labelled.jsonl", "heldout.jsonl"


class Sample:
    """Some of any number of texts, each as likely as the others (reservoir sampling, algorithm R; Vitter, 1985)."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._seen, self._random = 0, random.Random(0)

    def add(self, text: str) -> None:
        """One more."""
        self._seen += 1
        if self._seen <= SAMPLE:
            self.texts.append(text)
        elif (place := self._random.randrange(self._seen)) < SAMPLE:
            self.texts[place] = text


@dataclass
class Written:
    """What was written.

    Args:
        texts: rows of `TEXTS`: every text of the training rows once.
        pairs: rows of `PAIRS`.
        labelled: rows of `LABELLED`.
        held_out: rows of `HELD_OUT`: pairs or texts with labels if there are any, else texts.
        repeated: rows left out, as they were there before, their negatives too.
        alone: texts that are the only one of their label, and not in `LABELLED`.
        merged: rows whose negatives went to an earlier row of the same pair.
        negatives: hard negatives of a pair, where they are most.
        sample: some of the training rows' texts, by their role, each as often as rows have it.
        skipped: rows left out, as they are malformed.
    """

    texts: int = 0
    pairs: int = 0
    labelled: int = 0
    held_out: int = 0
    repeated: int = 0
    alone: int = 0
    merged: int = 0
    negatives: int = 0
    sample: dict[str, Sample] = field(default_factory=lambda: defaultdict(Sample))
    skipped: Skipped = field(default_factory=Skipped)


def write(found: Sequence[Found], folder: Path, on_bad_row: str = "raise") -> Written:
    """Write `TEXTS`, `PAIRS` or `LABELLED` (if there are such rows) and `HELD_OUT` (if there is enough) into `folder`.

    Held out are rows whose texts are no other row's query or positive, nor among negatives any more: of pairs if there
    are pairs, else of texts; those with the lowest keys, so that the choice depends on nothing but the texts.

    Raises:
        BadRow: a row is malformed, and `on_bad_row` is not "skip"; or labels are all the same, or all different.
        BadFile: a file cannot be read.
    """
    out = Written()
    kind: Kind = next((each.kind for each in found if each.kind in ("pair", "labelled")), "blank_ok")
    held = _held_out(found, kind, on_bad_row)
    rows_seen: set[int] = set()
    unseen = {key(text) for row in held.values() for text in asked(row)}
    texts_seen = set(unseen)
    with (folder / TEXTS).open("w") as texts, tempfile.TemporaryFile() as file:
        pairs, labelled = _Pairs(file), _Labelled(file)
        for each, row in _rows(found, on_bad_row, out.skipped, "writing data"):
            known = _key(row)
            if known in held:
                continue
            if each.kind == "pair":
                row["negatives"] = [text for text in row["negatives"] if key(text) not in unseen]
                pairs.add(known, row)
            elif known in rows_seen:
                out.repeated += 1
                continue
            elif each.kind == "labelled":
                labelled.add(row)
            rows_seen.add(known)
            for role, text in _texts(row):
                out.sample[role].add(text)
                if (number := key(text)) not in texts_seen:
                    texts_seen.add(number)
                    _line(texts, {"text": text})
                    out.texts += 1
        pairs.write(folder / PAIRS, out)
        if kind == "labelled":
            labelled.write(folder / LABELLED, out)
    if held:
        with (folder / HELD_OUT).open("w") as file:
            for row in held.values():
                _line(file, row)
    out.held_out = len(held)
    return out


def _held_out(found: Sequence[Found], kind: str, on_bad_row: str) -> dict[int, dict[str, Any]]:
    """Rows to hold out, by their key."""
    keys = array("q")  # of each row, and of its texts
    others = array("q")  # texts of rows of another kind
    for each, row in _rows(found, on_bad_row, Skipped(), "reading data"):
        texts = [key(text) for text in asked(row)]
        if each.kind == kind:
            keys.extend([_key(row), *texts])
        else:
            others.extend(texts)
    rows = np.frombuffer(keys, np.int64).reshape(-1, 3 if kind == "pair" else 2)
    rows = np.unique(rows, axis=0)
    wanted = min(MOST, len(rows) // SHARE)
    if wanted < FEWEST:
        return {}
    numbers, counts = np.unique(np.concatenate([rows[:, 1:].ravel(), others]), return_counts=True)
    alone = np.isin(rows[:, 1:], numbers[counts == 1]).all(1)
    chosen = set(np.sort(rows[alone, 0])[:wanted].tolist())
    if len(chosen) < FEWEST:
        return {}
    held: dict[int, dict[str, Any]] = {}
    for each, row in _rows(found, on_bad_row, Skipped(), "choosing what is held out"):
        if each.kind == kind and (known := _key(row)) in chosen:
            _join(held.setdefault(known, row), row)
    if kind == "labelled":
        sizes = Counter(row["label"] for row in held.values())
        held = {known: row for known, row in held.items() if sizes[row["label"]] > 1}
        return held if len(held) >= FEWEST and len({row["label"] for row in held.values()}) > 1 else {}
    return held


class _Pairs:
    """Pairs on the way to `PAIRS`, each row as it was; memory has their keys and places.

    Args:
        file: to keep them in.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.keys, self.places = file, array("q"), array("q")

    def add(self, known: int, row: dict[str, Any]) -> None:
        """One more; `known` says of which query and positive."""
        self.keys.append(known)
        self.places.append(self.file.tell())
        self.file.write(json.dumps(row).encode() + b"\n")

    def write(self, path: Path, out: Written) -> None:
        """A row for each query and positive, in the order of the first of each; no file without any."""
        if not self.keys:
            return
        _, first, inverse = np.unique(np.frombuffer(self.keys, np.int64), return_index=True, return_inverse=True)
        order = np.argsort(first[inverse], kind="stable").tolist()
        with path.open("w") as pairs:
            for _, numbers in groupby(order, lambda number: inverse[number]):
                row, *others = map(self._read, numbers)
                for other in others:
                    new = _join(row, other)
                    out.merged, out.repeated = out.merged + new, out.repeated + (not new)
                _line(pairs, row)
                out.pairs += 1
                out.negatives = max(out.negatives, len(row["negatives"]))

    def _read(self, number: int) -> dict[str, Any]:
        self.file.seek(self.places[number])
        row: dict[str, Any] = json.loads(self.file.readline())
        return row


class _Labelled:
    """Texts with labels on the way to `LABELLED`; memory has the labels' numbers of texts.

    Args:
        file: to keep them in.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sizes = file, Counter[str]()

    def add(self, row: dict[str, Any]) -> None:
        """One more."""
        self.sizes[row["label"]] += 1
        self.file.write(json.dumps(row).encode() + b"\n")

    def write(self, path: Path, out: Written) -> None:
        """Those that are not alone with their label, in their order.

        Raises:
            BadRow: there are not two such labels.
        """
        shared = {label for label, size in self.sizes.items() if size > 1}
        if len(shared) < 2:
            raise BadRow(
                "--fields must map label to a column in which at least two labels have two texts each; got "
                f"{len(self.sizes)} labels, {len(shared)} of which have. Name another column, or map text alone."
            )
        self.file.seek(0)
        with path.open("w") as labelled:
            for row in map(json.loads, self.file):
                if row["label"] in shared:
                    _line(labelled, row)
                    out.labelled += 1
        out.alone = sum(self.sizes.values()) - out.labelled


def _join(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Add the negatives of another row of the same query and positive; whether there are new ones."""
    known = row.get("negatives", [])
    new = [text for text in dict.fromkeys(other.get("negatives", [])) if text not in known]
    known += new
    return bool(new)


def _rows(
    found: Sequence[Found], on_bad_row: str, skipped: Skipped, doing: str
) -> Iterator[tuple[Found, dict[str, Any]]]:
    """All good rows; a line with their number, where it takes long."""
    with tqdm(desc=doing, unit=" rows", delay=2, mininterval=1, leave=False, file=sys.stderr) as bar:
        for each in found:
            records = read_records(each.source)
            for rows in checked_rows(records, row_check(each.source, each.kind), on_bad_row, skipped):
                bar.update()
                yield from ((each, row) for row in rows)


def _texts(row: dict[str, Any]) -> list[tuple[str, str]]:
    """With their roles."""
    named = ((role, row[role]) for role in ("text", "query", "positive") if role in row)
    return [*named, *(("negatives", text) for text in row.get("negatives", ()))]


def _key(row: dict[str, Any]) -> int:
    """Of what makes it another row."""
    return key("\0".join([*asked(row), *([row["label"]] if "label" in row else [])]))


def _line(file: IO[str], row: dict[str, Any]) -> None:
    file.write(json.dumps(row, ensure_ascii=False) + "\n")
