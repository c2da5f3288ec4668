"""The texts that MTEB tasks test on, to look for them elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import datasets

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

NO_TEXTS = ("id", "_id", "lang", "language", "label", "labels", "label_text", "genre", "filename", "title")
CORPUS = "corpus"


def test_texts(task: AbsTask) -> Iterator[tuple[bool, str]]:
    """Each text of a loaded task's evaluation splits, and whether it is a document of a corpus to search, which others
    may know, not what is asked or compared.
    """
    for part in getattr(task.metadata, "tasks", [task]):
        yield from _texts(getattr(part, "dataset", None), set(part.metadata.eval_splits), False, False)


def _texts(data: Any, splits: set[str], inside: bool, document: bool) -> Iterator[tuple[bool, str]]:
    """Of language, split and part, in whatever order they are nested; only those below one of `splits`."""
    if isinstance(data, datasets.Dataset):
        names = [name for name in data.column_names if name.lower() not in NO_TEXTS]
        for batch in data.select_columns(names).iter(batch_size=1024) if inside and names else ():
            for column in batch.values():
                yield from ((document, text) for value in column for text in _strings(value))
    elif isinstance(data, Mapping):
        for name, inner in data.items():
            if name not in ("relevant_docs", "top_ranked"):
                yield from _texts(inner, splits, inside or name in splits, document or name == CORPUS)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _strings(each)
