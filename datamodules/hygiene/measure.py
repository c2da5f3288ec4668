"""One pass over a source: counts, lengths, repeated rows, negatives that are none, texts that should not be there."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodules.hygiene.known import Known, number
from datamodules.keys import places_of
from datamodules.rows import asked
from datamodules.sources import Source, Table
from otherside.candidates import key
from otherside.tokenising import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AT_ONCE = 1024  # rows
EXAMPLES = 3
WHOLE = 1_000_000  # tokens; nothing is cut where lengths are measured

Row = dict[str, Any]


@dataclass
class Leak:
    """Texts of one place that are in the training data.

    Args:
        rows: that have one.
        examples: the first few.
    """

    rows: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass
class Measured:
    """What a source is like.

    Args:
        repeated: rows of which an equal one is before them.
        other_negatives: rows of which one with other negatives, else equal, is before them.
        other_labels: rows of which one with another label, else equal, is before them.
        same: pairs whose positive is the query.
        no_negatives: rows with a negative that is the query or the positive.
        lengths: (texts,) of each role.
        leaks: by what `Known.places` says.
        keys: (rows,) equal for rows that are equal but for their negatives or label.
        negatives: (negatives,) of each the `keys` of a row of which it would be the positive.
        owners: (negatives,) the row of each.
    """

    repeated: int = 0
    other_negatives: int = 0
    other_labels: int = 0
    same: int = 0
    no_negatives: int = 0
    lengths: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    leaks: dict[int, Leak] = field(default_factory=dict)
    keys: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    negatives: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    owners: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def other_positives(self, keys: NDArray[np.int64]) -> int:
        """Rows with a negative that is a positive of the same query among rows of these `keys`, which are sorted."""
        return len(np.unique(self.owners[places_of(self.negatives, keys) >= 0]))


def measure(
    table: Table, tokenizer: PreTrainedTokenizerBase | None, known: Known, step: Callable[[int], Any]
) -> Measured:
    """Read all rows of `table` once.

    Args:
        table: of a source.
        tokenizer: lengths are in its tokens, instruction included, as training reads texts; None: in words.
        known: texts that should not be there.
        step: called with the number of rows read.
    """
    found, keys, whole, negatives, owners = Measured(), *(array("q") for _ in range(4))
    lengths = {role: array("i") for role in table.rows.column_names if role not in ("label", "scores")}
    for batch in table.rows.iter(batch_size=AT_ONCE):
        for role, measured in lengths.items():
            texts = [text for value in batch[role] for text in (value if isinstance(value, list) else [value])]
            instruction = table.source.instruction if role in ("text", "query") else table.source.document_instruction
            measured.extend(_lengths(texts, instruction, tokenizer))
        rows = rows_of(batch)
        for place, row in enumerate(rows):
            texts = row.get("negatives", ())
            negatives.extend(key("\0".join([row["query"], text])) for text in texts)
            owners.extend([len(keys) + place] * len(texts))
        keys.extend(key("\0".join(asked(row))) for row in rows)
        whole.extend(key("\0".join([*asked(row), *row.get("negatives", ()), row.get("label", "")])) for row in rows)
        _look(rows, known, found)
        step(len(rows))
    found.keys, found.negatives, found.owners = (np.frombuffer(each, np.int64) for each in (keys, negatives, owners))
    different = len(np.unique(np.frombuffer(whole, np.int64)))
    found.repeated, others = len(keys) - different, different - len(np.unique(found.keys))
    found.other_labels, found.other_negatives = (others, 0) if "label" in table.rows.column_names else (0, others)
    found.lengths = {role: np.frombuffer(measured, np.int32) for role, measured in lengths.items() if measured}
    return found


def named(source: Source) -> str:
    """Its path, and columns that have other names than ours: two sources may be of one file."""
    columns = [column for role, column in source.fields.items() if column != role]
    return f"{source} ({', '.join(columns)})" if columns else str(source)


def rows_of(batch: dict[str, list[Any]]) -> list[Row]:
    """Columns as rows."""
    return [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]


def _lengths(texts: Sequence[str], instruction: str, tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    if tokenizer is None or not texts:
        return [len(text.split()) for text in texts]
    return [len(tokens.ids) for tokens in tokenise(tokenizer, texts, WHOLE, instruction)]


def _look(rows: Sequence[Row], known: Known, found: Measured) -> None:
    """Which texts say the same as others of their row, and which should not be there."""
    for row in rows:
        texts = [*asked(row), *row.get("negatives", ())]
        numbers = [number(text) for text in texts]
        if "query" in row:
            found.same += numbers[0] == numbers[1]
            found.no_negatives += not set(numbers[:2]).isdisjoint(numbers[2:])
        if not known.names:
            continue
        places = known.places(numbers).tolist()
        for place in {place for place in places if place >= 0}:
            leak, text = found.leaks.setdefault(place, Leak()), texts[places.index(place)]
            leak.rows += 1
            if len(leak.examples) < EXAMPLES and text not in leak.examples:
                leak.examples.append(text)
