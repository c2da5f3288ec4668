"""What somebody's data file holds: texts or pairs, and which of its columns are our fields."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from datamodules.rows import BadRow, Skipped, checked_rows
from datamodules.sources import ROLES, Kind, Source, is_remote, read_records, row_check

# Names of columns, as published data sets have them; lower case, the first that are there are taken
PAIRS = (
    ("query", "positive"),
    ("query", "pos"),
    ("anchor", "positive"),
    ("query", "document"),
    ("query", "passage"),
    ("query", "answer"),
    ("query", "response"),
    ("question", "answer"),
    ("questions", "answers"),
    ("question", "response"),
    ("question", "passage"),
    ("question", "context"),
    ("instruction", "response"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("premise", "hypothesis"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("title", "abstract"),
    ("title", "body"),
    ("title", "content"),
    ("title", "text"),
)
NEGATIVES = ("negatives", "negative", "neg", "hard_negatives", "hard_negative")
NUMBERED = re.compile(r"((hard_)?neg(ative)?_?)\d+")  # negative_1, negative_2, …
SCORES = ("scores", "neg_scores")
TEXTS = ("text", "sentence", "content", "document", "passage", "body", "abstract", "description")
# Beside these two texts are more or less alike, or not at all: such rows are no pairs of a query and its positive
GRADES = ("score", "label", "labels", "gold_label", "similarity", "similarity_score", "relatedness", "relevance")
LABELS = ("label", "labels", "category", "class", "intent")
FIRST = 1000  # rows whose negatives are counted
ROWS = 100  # whose columns are looked at: JSON lines may leave out what is null
REMEDY = "Name them: --fields '{query: COLUMN, positive: COLUMN}' or '{text: COLUMN}'."


@dataclass(frozen=True)
class Found:
    """Rows of one kind in a file.

    Args:
        source: with our names of its columns.
        kind: "pair", "labelled", or "blank_ok" for texts.
        note: what else a user should know of it.
    """

    source: Source
    kind: Kind
    note: str = ""

    def __str__(self) -> str:
        taken = ", ".join(f"{role} = {column}" for role, column in self.source.fields.items())
        kinds = {"pair": "pairs", "labelled": "texts with labels"}
        return f"{kinds.get(self.kind, 'texts')} ({taken})"


def recognise(path: str, fields: dict[str, str] | None = None) -> list[Found]:
    """What a file, glob or hub dataset holds, by the columns of its first rows; more than one if several are texts.

    Args:
        path: see `Source`.
        fields: our name of a field -> its column; None: those that are known are looked for.

    Raises:
        ValueError: nothing is known of its columns, or `fields` names none of ours.
        BadFile: it cannot be read.
    """
    columns = {column.lower(): column for column in _columns(path)}
    if fields is not None:
        return [_named(path, fields)]
    pair = next((pair for pair in PAIRS if set(pair) <= columns.keys()), None)
    grade = next((name for name in GRADES if name in columns), None)
    if pair and grade:
        note = (
            f"{columns[grade]} says how alike two texts are, so rows are read as texts, not as pairs. If each is a "
            f"pair, pass --fields '{{query: {columns[pair[0]]}, positive: {columns[pair[1]]}}}'"
        )
        note += _not_read(columns, {*pair, grade})
        return [Found(Source(path, {"text": columns[name]}), "blank_ok", note) for name in pair]
    if pair:
        names = dict(zip(("query", "positive"), (columns[name] for name in pair), strict=True))
        taken, negatives = _negatives(columns)
        names |= {"negatives": negatives} if negatives else {}
        scored = next((name for name in SCORES if negatives and name in columns), "")
        note = f"; {columns[scored]} are read in a YAML with loss.teacher only" if scored else ""
        note += _not_read(columns, {*pair, *taken, scored})
        return [Found(Source(path, names), "pair", note.removeprefix("; "))]
    if text := next((name for name in TEXTS if name in columns), None):
        label = next((name for name in LABELS if name in columns), "")
        named = f"--fields '{{text: {columns[text]}, label: {columns[label]}}}'" if label else ""
        note = f"; to train on texts of one {columns[label]} as pairs, pass {named}" if label else ""
        note += _not_read(columns, {text, label})
        return [Found(Source(path, {"text": columns[text]}), "blank_ok", note.removeprefix("; "))]
    if any(";" in column for column in columns):
        remedy = "Separate them by commas: CSV is read with no other, and TSV with tabs."
    else:
        remedy = REMEDY
    raise ValueError(
        f"{path} must have columns whose meaning is known, such as question and answer, or text; it has "
        f"{', '.join(columns.values()) or 'none'}. {remedy}"
    )


def pairs_of(path: str, fields: dict[str, str] | None = None) -> Source:
    """As `recognise`, of what must hold pairs.

    Raises:
        ValueError: it holds something else.
        BadFile: it cannot be read.
    """
    found = recognise(path, fields and {"query": "query", "positive": "positive", **fields})[0]
    if found.kind != "pair":
        raise ValueError(f"{path} must hold pairs; got {found}. {found.note or REMEDY}")
    return replace(found.source, fields={role: name for role, name in found.source.fields.items() if role != name})


def most_negatives(sources: Iterable[Mapping[str, Any]]) -> int | None:
    """Most hard negatives of a row, among the first good ones of each source; None where one cannot be read here.

    Args:
        sources: settings of each, as in a YAML.
    """
    most = 0
    try:
        for source in (Source(**settings) for settings in sources):
            if is_remote(source):
                return None
            first = checked_rows(islice(read_records(source), FIRST), row_check(source, "pair"), "skip", Skipped())
            most = max([most, *(len(row["negatives"]) for rows in first for row in rows)])
    except (KeyError, OSError, TypeError, ValueError):  # training says what is wrong; here the file may be elsewhere
        return None
    return most


def _named(path: str, fields: dict[str, str]) -> Found:
    """With the columns that the user names."""
    kind: Kind = "labelled" if "label" in fields else "blank_ok" if "text" in fields else "pair"
    needed = set(ROLES[kind]) - {"negatives"}
    if not needed <= set(fields) <= set(ROLES[kind]):
        raise ValueError(
            "--fields must map text, text and label, or query and positive (and negatives), to columns; got "
            f"{', '.join(fields)}"
        )
    return Found(Source(path, fields, labels=kind == "labelled"), kind)


def _negatives(columns: Mapping[str, str]) -> tuple[list[str], str]:
    """The columns of negatives, and what `fields` says of them: one column, or `negative_*` for those with numbers."""
    if name := next((name for name in NEGATIVES if name in columns), None):
        return [name], columns[name]
    numbered = [name for name in columns if NUMBERED.fullmatch(name)]
    if not numbered:
        return [], ""
    prefix = columns[numbered[0]].rstrip("0123456789")
    return [name for name in numbered if columns[name].rstrip("0123456789") == prefix], f"{prefix}*"


def _not_read(columns: Mapping[str, str], taken: set[str]) -> str:
    others = [column for name, column in columns.items() if name not in taken]
    return f"; not read: {', '.join(others)}" if others else ""


def _columns(path: str) -> list[str]:
    """Of the first rows that can be read."""
    records = list(islice(read_records(Source(path)), ROWS))
    columns = dict.fromkeys(column for record in records for column in record.values or ())
    if columns:
        return list(columns)
    raise BadRow(f"{records[0].place}: {records[0].fault}." if records else f"--data must have rows; {path} has none.")
