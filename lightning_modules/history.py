"""What an encoder folder says of how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from otherside.lineage import Training


def of(stage: str, steps: int, data: Any, loss: Any) -> Training:
    """A stage that has come so far.

    Args:
        stage: its name.
        steps: optimizer steps.
        data: its data module, or none.
        loss: with Matryoshka sizes, or none.
    """
    sources = getattr(data, "sources", None) or []
    sizes = tuple(getattr(loss, "matryoshka", ()))
    paths = [path for s in sources for path in ([s.path] if isinstance(s.path, str) else s.path)]
    return Training(stage, steps, tuple(paths), prompts(sources, getattr(data, "kind", "text")), sizes)


def prompts(sources: Sequence[Any], kind: str) -> dict[str, str]:
    """Instructions of a stage's sources, by name.

    `query` and `document` where all have the same; else those of each source, by its file's name, and again with
    `-document` where documents have another.
    """
    sides = [(s.instruction, s.instruction if kind == "text" else s.document_instruction) for s in sources]
    if not any(map(any, sides)):
        return {}
    if len(set(sides)) == 1:
        return dict(zip(("query", "document"), sides[0], strict=True))
    named: dict[str, str] = {}
    for source, (query, document) in zip(sources, sides, strict=True):
        name = str(source).split(", ")[0].rstrip("/").rpartition("/")[2].split(".")[0]
        named |= {name: query} if query else {}
        named |= {f"{name}-document": document} if document and document != query else {}
    return named
