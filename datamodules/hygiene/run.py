"""Check sources against themselves, each other, validation and MTEB's tests: numbers for programs, and for the page."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from datamodules.hygiene.known import Known
from datamodules.hygiene.measure import AT_ONCE, Measured, measure, named, rows_of
from datamodules.hygiene.near import ALIKE, near
from datamodules.keys import first_ones, places_of
from datamodules.rows import asked
from datamodules.sources import Kind, Source, Table, open_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Asked = tuple[Source, Kind]
SAMPLE = 500  # rows of a source whose language is guessed
BEGINNING = 1000  # characters that it is guessed by
RARE = 0.01  # share of a language; rarer ones are bad guesses


def check(
    sources: Sequence[Asked],
    validation: Sequence[Asked],
    tokenizer: PreTrainedTokenizerBase | None,
    max_length: int | None,
    tests: Mapping[str, Iterable[tuple[bool, str]]],
) -> dict[str, Any]:
    """What is found in the data, as JSON has it.

    Args:
        sources: of training, with the kind of their rows.
        validation: the same, not to be in training.
        tokenizer: of the model; None: lengths are in words.
        max_length: tokens behind which texts are cut; None: they are not.
        tests: of each task its texts, and whether they are documents of a corpus, which training may know.
    """
    known = Known()
    for name, texts in tests.items():
        known.add(name, tqdm(texts, desc=f"reading {name}", unit=" texts", delay=2, mininterval=1))
    for source, kind in validation:
        known.add(f"validation {named(source)}", _texts(_open(source, kind)))
    known.close()
    tables = [_open(source, kind) for source, kind in sources]
    with _bar("reading", tables) as bar:
        measured = [measure(table, tokenizer, known, bar.update) for table in tables]
    with _bar("near duplicates", tables) as bar:
        alike = near(tables, first_ones(np.concatenate([found.keys for found in measured])), bar.update)
    both = list(zip(tables, measured, strict=True))
    keys = [np.unique(found.keys) for found in measured]
    everywhere = np.unique(np.concatenate(keys))
    return {
        "unit": "words" if tokenizer is None else "tokens",
        "max_length": max_length if tokenizer is not None else None,
        "sources": [
            {
                **_source(table, found, max_length if tokenizer is not None else None),
                "negative_is_positive_of_another_row": found.other_positives(everywhere),
            }
            for table, found in both
        ],
        "across": [
            {"sources": [named(one.source), named(other.source)], "rows": rows}
            for (one, a), (other, b) in combinations(zip(tables, keys, strict=True), 2)
            if (rows := int((places_of(a, b) >= 0).sum()))
        ],
        "near": {"rows": alike.rows, "too_short": alike.short, "alike": ALIKE, "examples": alike.examples},
        "leaks": [
            {"source": named(table.source), "of": known.names[place // 2], "documents": bool(place % 2), **vars(leak)}
            for table, found in both
            for place, leak in sorted(found.leaks.items())
        ],
        "looked_for": dict(zip(known.names, known.counts, strict=True)),
    }


def failures(report: Mapping[str, Any], may_skip: bool) -> list[str]:
    """Why the data should not be trained on; none: they may.

    Args:
        report: of `check`.
        may_skip: whether training leaves out malformed rows.
    """
    bad = sum(source["malformed"] for source in report["sources"])
    leaked = sorted({leak["of"] for leak in report["leaks"] if not leak["documents"]})
    found = [f"{bad:,} rows are malformed"] if bad and not may_skip else []
    return found + ([f"texts of {', '.join(leaked)} are among those of training"] if leaked else [])


def languages(table: Table) -> dict[str, float] | None:
    """Share of each language in a sample of rows, the most frequent first; None: the library is not there."""
    try:
        from py3langid import classify
    except ModuleNotFoundError:
        return None
    rows = np.linspace(0, len(table) - 1, min(len(table), SAMPLE), dtype=np.int64).tolist()
    found = Counter(classify("\n".join(asked(row))[:BEGINNING])[0] for row in rows_of(table.rows[rows]))
    return {name: count / len(rows) for name, count in found.most_common() if count >= RARE * len(rows)}


def _open(source: Source, kind: Kind) -> Table:
    """Its rows, bad ones noted."""
    print(f"reading {source}", file=sys.stderr, flush=True)
    return open_table(source, kind, "skip")


def _texts(table: Table) -> Iterator[tuple[bool, str]]:
    """What is asked, and positives, as documents."""
    for batch in table.rows.iter(batch_size=AT_ONCE):
        for first, *others in map(asked, rows_of(batch)):
            yield False, first
            yield from ((True, text) for text in others)


def _source(table: Table, found: Measured, max_length: int | None) -> dict[str, Any]:
    lengths: dict[str, Any] = {}
    for role, values in found.lengths.items():
        middle, most = np.quantile(values, [0.5, 0.95]).tolist()
        lengths[role] = {"texts": len(values), "median": middle, "95%": most, "most": int(values.max())}
        if max_length:
            lengths[role]["cut"] = float((values > max_length).mean())
    return {
        "source": named(table.source),
        "rows": len(table),
        "malformed": table.skipped,
        "faults": list(table.faults),
        "repeated": found.repeated,
        "repeated_with_other_negatives": found.other_negatives,
        "repeated_with_another_label": found.other_labels,
        "positive_is_query": found.same,
        "negative_is_positive_or_query": found.no_negatives,
        "lengths": lengths,
        "languages": languages(table),
    }


def _bar(doing: str, tables: Sequence[Table]) -> Any:
    return tqdm(total=sum(map(len, tables)), desc=doing, unit=" rows", delay=2, mininterval=1, smoothing=0)
