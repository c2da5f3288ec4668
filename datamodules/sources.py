"""Sources: files or hub datasets as the YAML names them, turned once into memory-mapped Arrow tables."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Features, Value
from numpy.typing import NDArray

from datamodules.cache import cached
from datamodules.rows import (
    READERS,
    BadRow,
    Check,
    Record,
    Skipped,
    check_labelled,
    check_pair,
    check_text,
    checked_rows,
    file_type,
    read_file,
)
from otherside.hub import downloaded

MISSING = {"keep_default_na": False, "na_values": [""]}  # nothing but an empty cell; "NA" is a text
# Builders of `datasets` that read URLs
BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".json": ("json", {}),
    ".txt": ("text", {}),
    ".csv": ("csv", MISSING),
    ".tsv": ("csv", {"sep": "\t", **MISSING}),
    ".parquet": ("parquet", {}),
}
HUB_ID = re.compile(r"(?P<path>[\w.-]+/[\w.-]+)(:(?P<name>[\w.-]+))?")

Kind = Literal["text", "blank_ok", "corpus", "pair", "scored", "labelled"]
ROLES: dict[Kind, tuple[str, ...]] = {
    "text": ("text",),
    "blank_ok": ("text",),
    "corpus": ("text",),
    "pair": ("query", "positive", "negatives"),
    "scored": ("query", "positive", "negatives", "scores", "positive_score"),
    "labelled": ("text", "label"),
}
_PAIR = {"query": Value("string"), "positive": Value("string"), "negatives": datasets.List(Value("string"))}
FEATURES: dict[Kind, Features] = {
    "text": Features({"text": Value("string")}),
    "blank_ok": Features({"text": Value("string")}),
    "corpus": Features({"text": Value("string"), "row": Value("int64")}),
    "pair": Features(_PAIR),
    "scored": Features({**_PAIR, "scores": datasets.List(Value("float32"))}),  # the positive's, then the negatives'
    "labelled": Features({"text": Value("string"), "label": Value("string")}),
}


@dataclass
class Source:
    """Where texts come from.

    Args:
        path: a file, a glob, a list of these, a URL, or a hub dataset ("org/name" or "org/name:config"). Files are JSON
            lines, Parquet, CSV or TSV with a header, or plain text with one text a line; .gz and .zst are unpacked.
        fields: our name of a field -> its column, where they differ. Ours are `text`, or `query`, `positive` and
            `negatives` (a list of texts, one text, null or left out) for pairs, of which a list of positives makes one
            for each; `negatives: negative_*` takes negative_1, negative_2, …; with scores also `scores` and
            `positive_score`; with labels `text` and `label`.
        instruction: put before queries, and before texts (not of `Blocks`).
        document_instruction: put before positives and negatives.
        in_batch: whether other rows' texts are negatives of a pair, too. False: only its own hard negatives, of which
            every row must have one; for data in which other rows' texts are often positives.
        labels: rows are a `text` and its `label`, and become pairs, drawn anew in each epoch: another text of the label
            is the positive; texts of other labels are the negatives: `data.negatives` of each row's own, and those of
            other rows.
        scores: read a teacher's scores for `loss.teacher`, too, which every row must have: `scores`, a list of numbers,
            one for each of its negatives, and `positive_score`. `lightning mine` writes them.
        weight: how often this source is drawn against the others; null in all: an epoch holds each of their rows once.
        split: split of a hub dataset.
        revision: revision of a hub dataset: a branch, tag or commit.
    """

    path: str | list[str]
    fields: dict[str, str] = field(default_factory=dict)
    instruction: str = ""
    document_instruction: str = ""
    in_batch: bool = True
    labels: bool = False
    scores: bool = False
    weight: float | None = None
    split: str = "train"
    revision: str | None = None

    def __str__(self) -> str:
        return self.path if isinstance(self.path, str) else ", ".join(self.path)


@dataclass(frozen=True)
class Table:
    """The good rows of one source.

    Args:
        source: where they come from.
        rows: memory-mapped, in file order.
        skipped: number of bad rows left out (with `on_bad_row: skip`).
        faults: messages about the first few of them.
        content: digest of all rows in their order, as `fields` maps them.
        records: rows of the source, those left out included.
    """

    source: Source
    rows: datasets.Dataset
    skipped: int = 0
    faults: tuple[str, ...] = ()
    content: str = ""
    records: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: NDArray[np.int64], ids: NDArray[np.int64]) -> dict[str, list[Any]]:
        """Columns of these rows.

        Args:
            rows: (B,) row numbers.
            ids: (B,) a number of its own for every (source, epoch, row), for what is drawn.
        """
        columns: dict[str, list[Any]] = self.rows[rows.tolist()]
        return columns

    @property
    def extent(self) -> int:
        """How many `numbers` there are."""
        return self.records if "row" in self.rows.column_names else len(self)

    def numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """(B,) of these rows: of a corpus where they stand in their source, else their own."""
        if "row" not in self.rows.column_names:
            return rows
        found: NDArray[np.int64] = self.rows.data.column("row").take(pa.array(rows)).to_numpy()
        return found

    def sizes(self, longest: int) -> NDArray[np.int32]:
        """(N,) how long the texts of each row are together, in bytes; no text is read.

        Args:
            longest: what a text counts at most, as what is behind will be cut off.
        """
        stored = self.rows.data  # with rows that are not selected, too
        columns = [column for column in stored.columns if not _of_numbers(column.type)]
        sizes = (np.zeros if columns else np.ones)(len(stored), np.int32)
        for column in columns:
            borders = np.cumsum([0, *map(len, column.chunks)])
            for chunk, (start, stop) in zip(column.chunks, pairwise(borders), strict=True):
                sizes[start:stop] += _bytes(chunk, longest)
        selected = self.rows._indices
        return sizes if selected is None else sizes[selected.column(0).to_numpy()]


def _of_numbers(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) and not pa.types.is_string(kind.value_type)


def _bytes(texts: pa.Array, longest: int) -> NDArray[np.int64]:
    """(N,) of texts, or of lists of texts."""
    if pa.types.is_list(texts.type):
        ends = np.cumsum(np.append(0, _bytes(texts.values, longest)))
        borders = texts.offsets.to_numpy()
        return ends[borders[1:]] - ends[borders[:-1]]
    return np.minimum(pc.binary_length(texts).to_numpy(), longest).astype(np.int64)


def open_table(source: Source, kind: Kind, on_bad_row: str = "raise") -> Table:
    """All rows of `source`, checked, as a memory-mapped table; built on the first call, then taken from the cache.

    The cache is keyed by the path, size and modification time of every file and by the settings.

    Args:
        source: what to read.
        kind: "text", "pair", "blank_ok" for texts among which blank ones are dropped without a word, or "corpus" for
            the same with the number of each, of all rows of the source from 0.
        on_bad_row: "raise" or "skip".

    Raises:
        BadRow: a row is malformed and `on_bad_row` is "raise", or no row at all is good.
        BadFile: a file is empty or broken.
        ValueError: `path` or `fields` names what does not exist.
    """
    kind = kind_of(source, kind)
    check = row_check(source, kind)
    if is_remote(source):
        remote = load_remote(source, streaming=False)
        identity: Any = remote._fingerprint
        records: Callable[[], Iterator[Record]] = partial(remote_records, remote, str(source))
    else:
        files = find_files(source.path)
        identity = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
        records = partial(file_records, files)

    def rows(skipped: Skipped) -> Iterator[dict[str, Any]]:
        good = 0
        for found in checked_rows(records(), check, on_bad_row, skipped):
            good += len(found)
            yield from ({**row, "row": skipped.read - 1} for row in found) if kind == "corpus" else found
        if not good:
            first = skipped.first[0] if skipped.first else "every text is blank"
            raise BadRow(f"{source}: at least one row must be good; all {skipped.count} are bad. The first: {first}.")

    key = [identity, kind, source.fields, on_bad_row, *([] if source.in_batch else ["alone"])]
    dataset, skipped, content = cached(key, FEATURES[kind], rows)
    return Table(source, dataset, skipped.count, tuple(skipped.first), content, skipped.read)


def kind_of(source: Source, kind: Kind) -> Kind:
    """What rows of `source` are where rows of `kind` are read: pairs may have scores, or be texts with labels."""
    if kind != "pair":
        return kind
    return "labelled" if source.labels else "scored" if source.scores else "pair"


def row_check(source: Source, kind: Kind) -> Check:
    """The check for rows of `source`.

    Raises:
        ValueError: `fields` has a key that is none of our fields, rows that are no pairs have settings of pairs, or
            files those of a hub dataset.
    """
    check_hub_settings(source)
    kind = kind_of(source, kind)
    roles = ROLES[kind]
    if unknown := set(source.fields) - set(roles):
        raise ValueError(f"fields must map {', '.join(roles)} to columns; got {sorted(unknown)} for {source}")
    if kind in ("pair", "scored"):
        columns = {role: role for role in roles if role != "negatives"} | source.fields
        return partial(check_pair, columns=columns, alone=not source.in_batch)
    if kind == "labelled":
        if source.scores:
            raise ValueError(
                f"scores and labels must not both be true, as pairs of labels are drawn; got {source}. Remove one."
            )
        return partial(check_labelled, columns={"text": "text", "label": "label", **source.fields})
    if source.scores or source.labels or not source.in_batch:
        raise ValueError(
            f"in_batch, labels and scores must be for datamodules.Pairs; got {source}, which is read as texts. Remove "
            "them."
        )
    if source.document_instruction:
        raise ValueError(
            f"document_instruction must be for datamodules.Pairs; got {source.document_instruction!r} for {source}, "
            "which is read as texts. Set instruction instead."
        )
    return partial(check_text, columns={"text": "text", **source.fields}, blank_ok=kind in ("blank_ok", "corpus"))


def check_hub_settings(source: Source) -> None:
    """Of files there is no split or revision.

    Raises:
        ValueError: one of them is set.
    """
    if is_remote(source) and HUB_ID.fullmatch(str(source.path)):
        return
    given = {"split": source.split != "train", "revision": source.revision}
    if wrong := [setting for setting, is_set in given.items() if is_set]:
        raise ValueError(
            f"split and revision must be for hub datasets; got {', '.join(wrong)} for {source}, which is files. "
            "Remove them, and name the files of the split in path."
        )


def find_files(path: str | list[str]) -> list[Path]:
    """Files that `path` names, globs sorted by name, each file once.

    Raises:
        ValueError: a path names no file, or a folder; a glob matches nothing.
    """
    files: list[Path] = []
    for pattern in [path] if isinstance(path, str) else path:
        here = Path(pattern).expanduser()
        if here.is_file():
            files.append(here)
        elif here.is_dir():
            raise ValueError(f"path must name files; got the folder {pattern!r}. Write for example {pattern}/*.jsonl")
        elif glob.has_magic(pattern):
            matches = sorted(glob.glob(str(here), recursive=True))  # noqa: PTH207 -- Path.glob takes no absolute patterns
            found = [Path(match) for match in matches if Path(match).is_file()]
            if not found:
                raise ValueError(f"path {pattern!r} must match a file; nothing does from the folder {Path.cwd()}")
            files += found
        else:
            raise ValueError(
                f"path {pattern!r} must name a file, a glob or a hub dataset (org/name); no such file from the folder "
                f"{Path.cwd()}. Correct path."
            )
    if not files:
        raise ValueError("path must name at least one file; got an empty list")
    known: dict[Path, Path] = {}
    for file in files:
        known.setdefault(file.resolve(), file)
    return list(known.values())


def read_records(source: Source) -> Iterator[Record]:
    """Every row of `source` as it stands, in order, without a table of it."""
    if is_remote(source):
        return remote_records(load_remote(source, streaming=False), str(source))
    return file_records(find_files(source.path))


def file_records(files: list[Path]) -> Iterator[Record]:
    """Every row of `files`, in order."""
    for file in files:
        yield from read_file(file)


def is_remote(source: Source) -> bool:
    """Whether `path` is a URL or a hub dataset: it looks like one and like no data file, and no such file is here."""
    path = source.path
    if not isinstance(path, str) or Path(path).exists():
        return False
    return "://" in path or (HUB_ID.fullmatch(path) is not None and file_type(path) not in READERS)


def load_remote(source: Source, streaming: bool) -> Any:
    """The URL or hub dataset of `source` as a `Dataset`, or an `IterableDataset` when `streaming`.

    Raises:
        ValueError: it cannot be had: unknown, no right to read it, or no network.
    """
    path = str(source.path)
    match = HUB_ID.fullmatch(path)
    try:
        if match is None:
            builder, options = BUILDERS[file_type(path)]
            return datasets.load_dataset(builder, data_files=path, split="train", streaming=streaming, **options)
        options = {"name": match["name"], "split": source.split, "streaming": streaming}
        if folder := downloaded(match["path"], source.revision):
            return datasets.load_dataset(folder, **options)
        return datasets.load_dataset(match["path"], revision=source.revision, **options)
    except KeyError:
        raise ValueError(f"path must be a URL of a file of type {', '.join(BUILDERS)}; got {path!r}") from None
    except (OSError, ValueError) as error:
        offline = " The hub is switched off here (HF_HUB_OFFLINE)." if datasets.config.HF_HUB_OFFLINE else ""
        raise ValueError(
            f"path {path!r} must name a file here, a URL or a dataset on the hub; there is no such file here, and the "
            f"answer from outside is: {error}.{offline} Check path, split and revision."
        ) from error


def remote_records(rows: Any, name: str) -> Iterator[Record]:
    """Every row of a dataset from outside, numbered from 1."""
    for number, values in enumerate(rows, start=1):
        yield Record(f"{name}, row {number}", values)
