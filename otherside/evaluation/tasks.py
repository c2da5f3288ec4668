"""MTEB tasks by name or as a named subset, their data from a local folder or from the hub."""

from __future__ import annotations

import copy
import difflib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from otherside.hub import downloaded

if TYPE_CHECKING:
    from mteb.abstasks.abstask import AbsTask

SUBSETS: dict[str, list[str]] = {
    # 4,165 sentence pairs: for scores every few minutes
    "sts-fast": ["BIOSSES", "STS13", "STS16", "STSBenchmark"],
    # what LLM2Vec's ablations report (BehnamGhader et al., 2024)
    "llm2vec-15": [
        *("ArguAna", "NFCorpus", "SciFact"),
        *("SciDocsRR", "StackOverflowDupQuestions"),
        *("BiorxivClusteringS2S", "MedrxivClusteringS2S", "TwentyNewsgroupsClustering"),
        "SprintDuplicateQuestions",
        *("Banking77Classification", "EmotionClassification", "MassiveIntentClassification"),
        *("SICK-R", "STS17", "STSBenchmark"),
    ],
}


def find_tasks(tasks: str | Sequence[str], languages: Sequence[str] | None) -> list[AbsTask]:
    """Tasks, not yet loaded, of which the test split counts, as on leaderboards, where there is one.

    Args:
        tasks: a subset of `SUBSETS`, a benchmark of mteb such as `MTEB(eng, v2)`, or task names.
        languages: ISO 639-3 codes; of a task in several languages, only the parts that are wholly in these. None: all.
            A benchmark knows its languages itself.

    Raises:
        ValueError: no such task; none of its parts is in `languages`; it is not about texts.
    """
    if isinstance(tasks, str) and tasks in SUBSETS:
        found = [_find(name, languages) for name in SUBSETS[tasks]]
    elif isinstance(tasks, str) and (benchmark := _benchmark(tasks)):
        found = [copy.copy(task) for task in benchmark.tasks]  # mteb keeps one object of each
    else:
        found = [_find(name, languages) for name in ([tasks] if isinstance(tasks, str) else tasks)]
    names = [task.metadata.name for task in found]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"mteb.tasks must name tasks, each once; got {', '.join(names) or 'none'}")
    for task in found:
        if other := set(task.metadata.modalities) - {"text"}:
            raise ValueError(f"mteb.tasks must be about texts; {task.metadata.name} needs {', '.join(sorted(other))}")
    return found


def _benchmark(name: str) -> Any:
    import mteb

    return next((b for b in mteb.get_benchmarks() if name in (b.name, *(b.aliases or ()))), None)


def _find(name: str, languages: Sequence[str] | None) -> AbsTask:
    import mteb
    from mteb.get_tasks import _TASKS_REGISTRY

    if name not in _TASKS_REGISTRY:
        known = [*SUBSETS, *(benchmark.name for benchmark in mteb.get_benchmarks()), *_TASKS_REGISTRY]
        lower = {candidate.lower(): candidate for candidate in known}
        near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, cutoff=0.5)]
        remedy = f"Did you mean {', '.join(near)}?" if near else "Correct it."
        raise ValueError(
            f"mteb.tasks must name tasks or a benchmark of mteb, or be one of {', '.join(SUBSETS)}; got {name!r}. "
            + remedy
        )
    splits = ["test"] if "test" in _TASKS_REGISTRY[name].metadata.eval_splits else None
    try:
        return mteb.get_task(name, languages=languages, eval_splits=splits, exclusive_language_filter=bool(languages))
    except ValueError as error:
        raise ValueError(
            f"mteb.languages must hold a language of {name}; got {', '.join(languages or [])}. Set mteb.languages, "
            "or null for all."
        ) from error


def load(task: AbsTask, folder: Path | None) -> None:
    """Load a task's data, from `folder/ORG__NAME` where that is there, else from the hub, or what was downloaded of it.

    Raises:
        FileNotFoundError: it is in neither.
    """
    for part in getattr(task.metadata, "tasks", [task]):
        metadata = part.metadata
        name, revision = metadata.dataset["path"], metadata.dataset.get("revision")
        place = folder / name.replace("/", "__") if folder else None
        if not (place and place.is_dir()) and (cached := downloaded(name, revision)):
            place = Path(cached)
        try:
            if place and place.is_dir():
                local = {**metadata.dataset, "path": str(place.resolve())}
                part.metadata = metadata.model_copy(update={"dataset": local})
                with _cache_of(place):
                    part.load_data()
            else:
                part.load_data()
        except Exception as error:  # of many kinds: no network, no such repository, a broken file
            where = f"at {place} or on the hub" if place else "on the hub, or in the folder that mteb.data names"
            where += f" (`hf download --repo-type dataset {name} --revision {revision}` brings them here)"
            raise FileNotFoundError(
                f"the data of {metadata.name} must be {where}, and could not be read: "
                f"{type(error).__name__}: {str(error).strip() or 'no reason given'}"
            ) from error
        finally:
            part.metadata = metadata


@contextmanager
def _cache_of(folder: Path) -> Iterator[None]:
    """datasets knows a local folder by its name and card alone: what another one of that name had held would be read
    again. So each state of a folder gets a cache of its own.
    """
    import datasets

    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.resolve().rglob("*"))]
    digest = hashlib.sha256(repr(files).encode()).hexdigest()[:16]
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = Path(before) / "local" / digest
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


def check_instructions(instructions: Mapping[str, str]) -> None:
    """Raise unless every key is one that mteb knows for prompts.

    Raises:
        ValueError: it names no task, task type, or side (`query`, `document`).
    """
    from mteb.abstasks.task_metadata import TaskType
    from mteb.get_tasks import _TASKS_REGISTRY
    from mteb.types import PromptType

    sides = [side.value for side in PromptType]
    names = {*_TASKS_REGISTRY, *get_args(TaskType)}
    known = {*sides, *names, *(f"{name}-{side}" for name in names for side in sides)}
    for key in instructions:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise ValueError(
                "mteb.instructions must have keys that are a task (SciFact), a type of task (Retrieval), a side "
                f"(query, document) or both (SciFact-query); got {key!r}. "
                + (f"Did you mean {near[0]}?" if near else "Correct it.")
            )
