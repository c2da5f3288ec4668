"""What an encoder folder says of how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePath
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

    `query` and `document` where all have the same; else those of each source, by its file's name (with folders, as far
    as it takes to tell sources apart), and again with `-document` where documents have another.
    """
    sides = [(s.instruction, s.instruction if kind == "text" else s.document_instruction) for s in sources]
    if not any(map(any, sides)):
        return {}
    if len(set(sides)) == 1:
        return dict(zip(("query", "document"), sides[0], strict=True))
    files = [PurePath(str(source).split(", ")[0]) for source in sources]
    known = dict.fromkeys(zip(files, sides, strict=True))
    names = short_names([file.with_name(file.name.split(".")[0] or file.name).parts for file, _ in known])
    named: dict[str, str] = {}
    for name, (_, (query, document)) in zip(names, known, strict=True):
        named |= {name: query} if query else {}
        named |= {f"{name}-document": document} if document and document != query else {}
    return named


def short_names(paths: Sequence[Sequence[str]]) -> list[str]:
    """Of paths by their parts: as short as possible, and all different."""
    for depth in range(1, max(map(len, paths)) + 1):
        names = ["-".join(path[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(number) for number in range(1, len(paths) + 1)]
