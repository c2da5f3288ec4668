"""A probing task of one's own: a table of words in sentences with a label or a rating each."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otherside.probing.published import RATING, the_word
from otherside.probing.tasks import Mention, Mlp, Task
from otherside.words import span_of

CLASS = Mlp((20, 10), 16, 1e-3)
FORMATS = {".tsv": "\t", ".csv": ","}
NEEDS = "sentence; word, or start and end (characters); label or rating; and, if you like, split (train, test)"
FEWEST = 20
MORE = "more cells"


def is_own(data: str) -> bool:
    """Whether `--data` names such a table."""
    return Path(data).suffix in (*FORMATS, ".jsonl")


def read_own(path: Path) -> Task:
    """The task in a TSV, CSV or JSONL file with the columns of `NEEDS`; its name is the file's, with `own: ` before it,
    as `telicity.tsv` is not the paper's telicity.

    A word must stand in its sentence once, as a whole word; where it does not, `start` and `end` say which is meant.
    Without `split` a random fifth is the test set. Any number of classes; `label` may be any text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is malformed (it is named by its line); there are too few rows, or only one class.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--data must be builtin, published, a folder, or a table; there is no file {path}")
    rows = []
    for number, row in _rows(path):
        try:
            rows.append((_mention(row), _target(row), _split(row)))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
            raise ValueError(
                f"--data: {path}, line {number}, must have {NEEDS}; {reason}. Correct the line."
            ) from error
    mentions, targets, splits = zip(*rows, strict=True) if rows else ((), (), ())
    if len(rows) < FEWEST:
        raise ValueError(f"--data: {path} must have at least {FEWEST} rows; it has {len(rows)}")
    kinds, marked = {type(target) for target in targets}, Counter(splits)
    if len(kinds) > 1:
        raise ValueError(f"--data: {path} must have a label in every row, or a rating in every row; it has both")
    if set(marked) not in ({""}, {"train", "test"}):
        raise ValueError(
            f"--data: {path} must have a split of train or test in every row, or in none; got {dict(marked)}"
        )
    if repeated := [mention for mention, count in Counter(mentions).items() if count > 1]:
        raise ValueError(
            f"--data: {path} must have each word of a sentence once, as a test set must not repeat what was learned; "
            f"{len(repeated)} stand there more often, such as {repeated[0].alone().text!r} in {repeated[0].text[:60]!r}"
        )
    words = np.array([mention.text[mention.start : mention.end].lower() for mention in mentions])
    test = None if "" in marked else np.array([split == "test" for split in splits])
    items = [(mention,) for mention in mentions]
    if float in kinds:
        if len(set(targets)) < 2:
            raise ValueError(f"--data: {path} must have ratings that differ; all are {targets[0]}")
        ratings = np.array(targets)[:, None]
        return Task(name_of(path), items, ratings, words, the_word(RATING), test, aspects=("rating",))
    classes = sorted(set(targets))
    if len(classes) < 2:
        raise ValueError(f"--data: {path} must have at least two labels; it has {', '.join(classes)}")
    if alone := [label for label, count in Counter(targets).items() if count == 1]:
        raise ValueError(
            f"--data: {path} must have every label in two rows or more, to learn it and to test it; {len(alone)} stand "
            f"in one, such as {alone[0]}. Numbers that rate words go into a column named rating."
        )
    labels = np.array([classes.index(target) for target in targets])
    if test is not None:
        taught = set(labels[~test])
        if len(taught) < 2:
            raise ValueError(f"--data: {path} must have at least two labels in the rows of split train")
        if unknown := [classes[label] for label in sorted(set(labels[test]) - taught)]:
            raise ValueError(
                f"--data: {path} must have every label in rows of split train; of {', '.join(unknown)} all are test"
            )
    note = f"labels {', '.join(classes)}"
    return Task(name_of(path), items, labels, words, the_word(CLASS), test, notes=(note,))


def name_of(path: Path) -> str:
    """A table's task."""
    return f"own: {path.stem}"


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Number of its line, and each row."""
    try:
        file = io.StringIO(path.read_text(encoding="utf-8-sig"))  # Excel puts a mark first
    except UnicodeDecodeError as error:
        raise ValueError(f"--data: {path} must be text in UTF-8; {error}. Save it as UTF-8.") from error
    if path.suffix in FORMATS:
        options: dict[str, Any] = {"quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
        reader = csv.DictReader(file, delimiter=FORMATS[path.suffix], restkey=MORE, **options)
        if "sentence" not in (columns := reader.fieldnames or []):
            raise ValueError(f"--data: the first line of {path} must name columns: {NEEDS}; got {', '.join(columns)!r}")
        for row in reader:
            yield reader.line_num, _filled(row)
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            yield number, _filled(found) if isinstance(found, dict) else {}


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without cells that hold nothing: blank ones of CSV, null and NaN of JSON."""
    return {name: value for name, value in row.items() if value not in (None, "") and value == value}


def _mention(row: Mapping[str, Any]) -> Mention:
    if MORE in row:
        raise ValueError(f"it has more cells than there are columns: {', '.join(row[MORE])}")
    text = str(row["sentence"])
    if "start" in row:
        start, end = int(row["start"]), int(row["end"])
        if not 0 <= start < end <= len(text):
            raise ValueError(f"characters {start} to {end} are not inside {text[:60]!r}")
        return Mention(text, start, end)
    return Mention(text, *span_of(text, str(row["word"])))


def _target(row: Mapping[str, Any]) -> str | float:
    if ("label" in row) == ("rating" in row):
        raise ValueError("it has both or neither of label and rating")
    if "label" in row:
        return str(row["label"])
    if not math.isfinite(rating := float(row["rating"])):
        raise ValueError(f"its rating is {rating}")
    return rating


def _split(row: Mapping[str, Any]) -> str:
    return str(row.get("split", ""))
