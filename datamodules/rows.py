"""Rows of local files, each with the place it comes from, and the checks every row must pass.

A reader yields `Record`s and names what it cannot read instead of raising, so that `on_bad_row` decides. What makes
the rest of a file unreadable (a truncated archive, say) raises `BadFile` under every setting.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from datamodules.delimited import Read, read_delimited

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
SKIP = "or leave such rows out by setting on_bad_row to skip"
NAMED_FAULTS = 5  # how many skipped rows are named in the log


class BadRow(ValueError):
    """A row that cannot be used; says where it is, what is wrong with it and what to do."""


class BadFile(ValueError):
    """A file that cannot be read, or not to its end."""


class Fault(Exception):
    """What is wrong with one row, and the remedy."""


@dataclass(frozen=True)
class Record:
    """One row as it stands in its file.

    Args:
        place: file and line (or row, in Parquet) for messages.
        values: the row's columns, or None if it could not be read.
        fault: why it could not be read.
    """

    place: str
    values: Mapping[str, Any] | None
    fault: str = ""


@dataclass
class Skipped:
    """Rows left out.

    Args:
        count: how many.
        first: messages about the first few.
        read: how many rows there are, good or not.
    """

    count: int = 0
    first: list[str] = field(default_factory=list)
    read: int = 0


Check = Callable[[Mapping[str, Any]], list[dict[str, Any]]]
"""From a record's columns to our rows: none if it is meant to be left out, a pair for each positive; raises `Fault`."""


def checked_rows(
    records: Iterable[Record], check: Check, on_bad_row: str, skipped: Skipped
) -> Iterator[list[dict[str, Any]]]:
    """The rows of each good record; bad ones raise, or are noted in `skipped` when `on_bad_row` is "skip".

    Raises:
        BadRow: at the first bad row, unless `on_bad_row` is "skip".
    """
    for record in records:
        skipped.read += 1
        try:
            if record.values is None:
                raise Fault(record.fault)
            rows = check(record.values)
        except Fault as fault:
            message = f"{record.place}: {fault}"
            if on_bad_row != "skip":
                raise BadRow(f"{message}, {SKIP}.") from None
            skipped.count += 1
            if len(skipped.first) < NAMED_FAULTS:
                skipped.first.append(message)
        else:
            yield rows


def check_text(values: Mapping[str, Any], columns: Mapping[str, str], blank_ok: bool = False) -> list[dict[str, Any]]:
    """`{"text": str}`; nothing for a blank text where `blank_ok`.

    Raises:
        Fault: the text is missing, no string, blank, or no valid Unicode.
    """
    text = _value(values, columns["text"], "text")
    if blank_ok and isinstance(text, str) and not text.strip():
        return []
    return [{"text": _text(text, columns["text"])}]


def check_pair(values: Mapping[str, Any], columns: Mapping[str, str], alone: bool = False) -> list[dict[str, Any]]:
    """`{"query": str, "positive": str, "negatives": list of str}`; absent or null negatives are an empty list. With a
    column for scores also `"scores"`, a list of floats: the positive's, then each negative's. Of a list of positives
    each makes a pair. A negative that is one of them is left out.

    Args:
        values: of the row.
        columns: our names of fields -> their columns.
        alone: its negatives are all that the query is told from: there must be one, and none that is the query.

    Raises:
        Fault: one of the texts is missing, no string, blank, or no valid Unicode; `alone`, and there is no negative; a
            score is missing or no finite number.
    """
    query = _text(_value(values, columns["query"], "query"), columns["query"])
    positives = _positives(values, columns["positive"])
    column = columns.get("negatives", "negatives")
    negatives = _negatives(values, column, "negatives" in columns)
    texts = [_text(text, f"{column}[{i}]") for i, text in enumerate(negatives)]
    known = {*positives, query} if alone else set(positives)
    kept = [i for i, text in enumerate(texts) if text not in known]
    if alone and not kept:
        raise Fault(
            f"field {column!r} must hold a text other than query and positive, as in_batch: false leaves no other "
            f"negatives; got {len(negatives)}. Add hard negatives (`lightning mine`), set in_batch: true"
        )
    negatives = [texts[i] for i in kept]
    pairs = [{"query": query, "positive": positive, "negatives": negatives} for positive in positives]
    if "scores" not in columns:
        return pairs
    own, others = (_value(values, columns[role], role) for role in ("positive_score", "scores"))
    own = _scores(own if isinstance(own, list) else [own], columns["positive_score"], len(positives), "positives")
    others = _scores([] if others is None else others, columns["scores"], len(texts), "negatives")
    return [{**pair, "scores": [score, *(others[i] for i in kept)]} for pair, score in zip(pairs, own, strict=True)]


def check_labelled(values: Mapping[str, Any], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """`{"text": str, "label": str}`; a label may be a whole number, too.

    Raises:
        Fault: the text or the label is missing, no string, blank, or no valid Unicode.
    """
    text, label = (_value(values, columns[role], role) for role in ("text", "label"))
    label = str(label) if isinstance(label, int) else label
    return [{"text": _text(text, columns["text"]), "label": _text(label, columns["label"])}]


def asked(row: Mapping[str, Any]) -> list[str]:
    """What a row that was checked is about: its text, or its query and positive."""
    return [row["text"]] if "text" in row else [row["query"], row["positive"]]


def _negatives(values: Mapping[str, Any], column: str, named: bool) -> list[Any]:
    """A list, one text or nothing; of `negative_*` what stands in negative_1, negative_2, …"""
    if column.endswith("*") and column not in values:
        numbers = {name.removeprefix(column[:-1]): name for name in values if name.startswith(column[:-1])}
        names = [numbers[number] for number in sorted(filter(str.isdecimal, numbers), key=int)]
        if not names:
            _value(values, column, "negatives")  # is missing
        found = [_value(values, name, "negatives") for name in names]
        return [value for value in found if value not in (None, "")]
    given = _value(values, column, "negatives") if named or column in values else None
    if given is None or given == "":
        return []
    if isinstance(given, str):
        return [given]
    if not isinstance(given, list):
        raise Fault(f"field {column!r} must be a list of strings; got {type(given).__name__}. Put the texts in a list")
    return given


def _positives(values: Mapping[str, Any], column: str) -> list[str]:
    given = _value(values, column, "positive")
    if not isinstance(given, list):
        return [_text(given, column)]
    if not given:
        raise Fault(f"field {column!r} must hold a text, or a list of texts; got an empty list. Remove the row")
    return [_text(text, f"{column}[{i}]") for i, text in enumerate(given)]


def _scores(given: Any, column: str, texts: int, whose: str) -> list[float]:
    """Of so many texts."""
    if not isinstance(given, list) or len(given) != texts:
        got = len(given) if isinstance(given, list) else type(given).__name__
        raise Fault(
            f"field {column!r} must be a list of numbers, one for each of the {texts} {whose}; got {got}. Score all of "
            "them"
        )
    for score in given:
        if isinstance(score, bool) or not isinstance(score, int | float) or not abs(score) < 1e38:  # in float32
            got = "null" if score is None else repr(score)[:20]
            raise Fault(f"field {column!r} must hold finite numbers; got {got}. Score texts again, or correct fields")
    return [float(score) for score in given]


def _value(values: Mapping[str, Any], column: str, role: str) -> Any:
    if column not in values:
        got = ", ".join(map(repr, values)) or "none"
        remedy = f"Name the right one under fields: {role}" + ", or write null" * (role == "negatives")
        raise Fault(f"field {column!r} is missing; the row has {got}. {remedy}")
    value = values[column]
    if isinstance(value, Exception):
        raise Fault(f"field {column!r} cannot be read: {value}. Write texts in UTF-8")
    return value


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        got = "null" if value is None else type(value).__name__
        raise Fault(f"field {column!r} must be a string; got {got}. Write the text in quotes or correct fields")
    if not value.strip():
        raise Fault(f"field {column!r} must hold a text; got {value[:20]!r}, which is blank. Remove the row")
    if "\0" in value:
        raise Fault(f"field {column!r} holds a NUL character; is the file binary or UTF-16? Convert it to UTF-8")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Fault(
            f"field {column!r} is not valid UTF-8 at character {error.start + 1}. Convert the file to UTF-8"
        ) from None
    return value


def read_file(path: Path) -> Iterator[Record]:
    """Every row of a file, in order.

    Raises:
        BadFile: the file type is unknown, the file has no rows, or it is broken from some place on.
    """
    kind = file_type(path.name)
    if kind not in READERS:
        raise BadFile(f"path must name files of type {', '.join(READERS)} (or these with .gz or .zst); got {path}")
    rows, name, counted = 0, str(path), "row" if kind == ".parquet" else "line"  # not once a row: it takes long
    try:
        with (
            pa.input_stream(name, compression=COMPRESSIONS.get(path.suffix)) as raw,
            io.BufferedReader(raw) as stream,
        ):
            for rows, (number, values, fault) in enumerate(READERS[kind](stream), start=1):  # noqa: B007
                yield Record(f"{name}, {counted} {number}", values, fault)
    except (OSError, pa.ArrowException) as error:
        raise BadFile(f"{path}: unreadable after row {rows}: {error}. Make or download the file again.") from error
    if not rows:
        raise BadFile(f"{path}: the file must have rows; it has none. Remove it from path.")


def file_type(name: str) -> str:
    """The suffix that says how a file is read: ".jsonl" for "a.jsonl.gz"."""
    path = Path(name)
    return (Path(path.stem) if path.suffix in COMPRESSIONS else path).suffix.lower()


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines with their ends. Bytes that are not UTF-8 become lone surrogates, which `_text` finds in their row."""
    for number, line in enumerate(stream):
        text = line.decode("utf-8", errors="surrogateescape")
        yield text.removeprefix("\ufeff") if number == 0 else text


def _read_text(stream: IO[bytes]) -> Iterator[Read]:
    for number, line in enumerate(_lines(stream), start=1):
        yield number, {"text": line.rstrip("\r\n")}, ""


def _read_json(stream: IO[bytes]) -> Iterator[Read]:
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:  # no JSON, or a number of too many digits
            yield number, None, f"not a JSON object on one line ({error}). Write one object per line"
            continue
        if isinstance(values, dict):
            yield number, values, ""
        else:
            yield number, None, f"a row must be a JSON object; got {type(values).__name__}. Write one object per line"


def _read_csv(stream: IO[bytes]) -> Iterator[Read]:
    return read_delimited(_lines(stream), ",")


def _read_tsv(stream: IO[bytes]) -> Iterator[Read]:
    return read_delimited(_lines(stream), "\t")


def _read_parquet(stream: IO[bytes]) -> Iterator[Read]:
    number = 0
    # Archives cannot be read from the end, where Parquet keeps its index
    source = stream if stream.seekable() else pa.BufferReader(stream.read())
    for batch in pq.ParquetFile(source).iter_batches(batch_size=1024):
        for values in _python_rows(batch):
            number += 1
            yield number, values, ""


def _python_rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Of a cell that Python cannot hold (bytes that are not UTF-8, a date behind the year 9999) the error: `_value`
    raises it where the cell is asked for.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except (ValueError, OverflowError):
        columns = [[_python_cell(cell) for cell in column] for column in batch.columns]
        rows = [dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    return rows


def _python_cell(cell: pa.Scalar) -> Any:
    try:
        return cell.as_py()
    except (ValueError, OverflowError) as error:
        return error


READERS: dict[str, Callable[[IO[bytes]], Iterator[Read]]] = {
    ".jsonl": _read_json,
    ".ndjson": _read_json,
    ".json": _read_json,
    ".txt": _read_text,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
