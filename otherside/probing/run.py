"""`lightning probe`: measure every variant, keep what is measured, write the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from otherside.backbone import AnyDType, DTypes, fast_dtype
from otherside.encoder import Encoder
from otherside.files import make_folder
from otherside.lineage import sha256
from otherside.probing.anisotropy import anisotropy, sample
from otherside.probing.download import PROBING, WORDS, fetch
from otherside.probing.features import group_by_text
from otherside.probing.findings import write_findings
from otherside.probing.generation import generation, read_texts
from otherside.probing.measure import Protocol, measure
from otherside.probing.own import is_own, read_own
from otherside.probing.published import read_tasks
from otherside.probing.report import tables, write_report
from otherside.probing.results import Result, Row, keep, kept, settings_of, write_results
from otherside.probing.retrieval import Pair, read_pairs, retrieval
from otherside.probing.scores import regression
from otherside.probing.seeds import over_seeds, stages_of
from otherside.probing.session import VARIANTS, Layers, Session
from otherside.probing.similarity import Rated, read_rated, similarity
from otherside.probing.tasks import Condition, Mention, Task
from otherside.probing.templates import template_tasks
from otherside.probing.variants import Variant, find_variants
from otherside.probing.wordsim import WordList, mentions_of, read_contexts, read_lists, texts_of, wordsim
from otherside.waits import quiet_libraries

Measure = Callable[[Encoder, Any], list[Row]]
Split = Literal["published", "random"]


def load_tasks(data: str, names: list[str] | None = None) -> tuple[list[Task], list[Mention]]:
    """The tasks, and words for anisotropy: the WiC words, as in the paper, or the subjects of 200
    built-in sentences.

    Args:
        data: `builtin`, `published` (fetched where it is not in the cache), a folder in the published layout, or a
            table of one's own (`read_own`).
        names: of the tasks; None: all.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ValueError: no such task, or a malformed file.
        ConnectionError: the published data cannot be fetched.
    """
    if data == "builtin":
        tasks = template_tasks()
        known = [task.name for task in tasks]
        if unknown := [name for name in names or [] if name not in known]:
            raise ValueError(
                f"--tasks must be among {', '.join(known)} for the built-in sentences; got {', '.join(unknown)}. "
                "--data=published, or a folder, has the paper's tasks."
            )
        subjects = [words[1] for words in tasks[0].mentions[:200]]
        return [task for task in tasks if names is None or task.name in names], subjects
    if is_own(data):
        task = read_own(Path(data).expanduser())
        if names not in (None, [task.name]):
            raise ValueError(
                f"--tasks must be left out, or {task.name}, for a table of your own; got {', '.join(names)}"
            )
        return [task], [mention for item in task.mentions for mention in item]
    folder = fetch(PROBING) if data == "published" else Path(data).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--data must be builtin, published, a folder, or a .tsv, .csv or .jsonl; there is no folder {folder}"
        )
    [wic] = read_tasks(folder, ["wic"])
    return read_tasks(folder, names), [mention for item in wic.mentions for mention in item]


@dataclass(frozen=True)
class Material:
    """What is measured beside tasks and anisotropy; where there is none, it is left out.

    Args:
        pairs: for retrieval.
        rated: for similarity.
        texts: for generation.
        lists: for similarity of words.
        contexts: sentences to take these words from.
    """

    pairs: list[Pair] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    lists: list[WordList] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, files: Mapping[str, Path | None]) -> Material:
        """From files by name of the option; raises what their readers raise."""
        readers: dict[str, Callable[[Path], list[Any]]] = {
            "retrieval": read_pairs,
            "similarity": read_rated,
            "generation": read_texts,
            "words": read_lists,
            "contexts": read_contexts,
        }
        return cls(*(read(file) if (file := files.get(name)) else [] for name, read in readers.items()))


class Probing:
    """All that is measured of each variant.

    Args:
        tasks: see `load_tasks`.
        words: for anisotropy; none: it is left out.
        material: for what is no probe.
        protocol: of the probes.
        layers: numbers from 0 (embeddings), all, or the last.
        dtype: of the weights.
        device: such as cpu or cuda.
        out: folder for vectors and results.
    """

    def __init__(
        self,
        tasks: list[Task],
        words: Sequence[Mention],
        material: Material,
        protocol: Protocol,
        layers: Layers,
        dtype: DTypes,
        device: str,
        out: Path,
    ) -> None:
        self.tasks, self.words, self.material, self.protocol = tasks, sample(words), material, protocol
        self.mentions = mentions_of(material.lists, material.contexts)
        self.layers, self.dtype, self.device, self.out = layers, dtype, device, out

    @property
    def work(self) -> int:
        """Texts that go through each variant, those of the measures that are no tasks included."""
        texts = sum(len(group_by_text(self._mentions(t, c))) for t in self.tasks for c in self._taken(t))
        texts += 2 * len(self.material.pairs) + 2 * len(self.material.rated) + 2 * len(self.material.texts)
        return texts + len(self.words) + texts_of(self.mentions)

    def measure(self, variant: Variant, bar: tqdm) -> Result:
        """What was kept of a variant, and what is missing of it."""
        session = Session(variant, self.dtype, self.device, self.out)
        parts = [*self._tasks(session, bar), self._anisotropy(session, bar)]
        parts += [self._texts(session, bar, "retrieval", self.material.pairs, retrieval)]
        parts += [self._texts(session, bar, "similarity", self.material.rated, similarity)]
        parts += [self._words(session, bar), self._generation(session, bar)]
        rows = [row for part in parts for row in part]
        probed = session.chosen(self.layers)[-1]
        settings = {"model": variant.model, **session.settings, "layers": session.last, "probed": probed}
        if self.material.texts and variant.kind == "encoder":
            settings["completions"] = session.completions(self.material.texts[0])
        return Result(variant.name, rows, settings)

    def _tasks(self, session: Session, bar: tqdm) -> Iterator[list[Row]]:
        for task in self.tasks:
            content = [task.digest(), settings_of(self.protocol)]
            paths = {layer: session.path(*content, layer) for layer in session.chosen(self.layers)}
            if missing := [layer for layer, path in paths.items() if not path.exists()]:
                bar.set_postfix_str(task.name)
                taken = {c: self._vectors(session, task, c, missing, bar) for c in self._taken(task)}
                for layer in missing:  # one in memory, the others in files
                    vectors = {condition: found[layer][numbers] for condition, (numbers, found) in taken.items()}
                    keep(paths[layer], measure(task, vectors, layer, self.protocol, self.device))
            else:
                bar.update(sum(len(group_by_text(self._mentions(task, c))) for c in self._taken(task)))
            yield [row for path in paths.values() for row in kept(path)]

    def _taken(self, task: Task) -> list[Condition]:
        """Conditions that need vectors of their own."""
        return [c for c in self.protocol.conditions(task) if c != "shuffled labels"]

    def _mentions(self, task: Task, condition: Condition) -> list[Mention]:
        return list(dict.fromkeys(mention for item in task.words(condition) for mention in item))

    def _vectors(
        self, session: Session, task: Task, condition: Condition, layers: list[int], bar: tqdm
    ) -> tuple[np.ndarray, dict[int, np.ndarray]]:
        """(N, W) numbers of the words' vectors, and all vectors by layer."""
        mentions = self._mentions(task, condition)
        places = {mention: i for i, mention in enumerate(mentions)}
        numbers = np.array([[places[mention] for mention in item] for item in task.words(condition)])
        return numbers, session.store.vectors(mentions, layers, bar)

    def _anisotropy(self, session: Session, bar: tqdm) -> list[Row]:
        path = session.path("anisotropy", self.words)
        if not self.words:
            return []
        if path.exists():
            bar.update(len(self.words))
        else:
            bar.set_postfix_str("anisotropy")
            keep(path, anisotropy(session.encoder, self.words, range(session.last + 1), bar))
        return kept(path)

    def _words(self, session: Session, bar: tqdm) -> list[Row]:
        """Similarity of words, at every layer."""
        if not self.material.lists:
            return []
        path = session.path("words", [asdict(one) for one in self.material.lists], self.mentions)
        if path.exists():
            bar.update(texts_of(self.mentions))
        else:
            bar.set_postfix_str("words")
            keep(path, wordsim(session.encoder, self.material.lists, self.mentions, range(session.last + 1), bar))
        return kept(path)

    def _generation(self, session: Session, bar: tqdm) -> list[Row]:
        """Of decoders only."""
        if not self.material.texts or session.variant.kind != "encoder":
            return []
        path = session.path("generation", self.material.texts)
        if not path.exists():
            bar.set_postfix_str("generation")
            keep(path, generation(session.generator, self.material.texts))
        bar.update(2 * len(self.material.texts))
        return kept(path)

    def _texts(self, session: Session, bar: tqdm, name: str, pairs: list[Any], measure: Measure) -> list[Row]:
        """What is asked of vectors of whole texts."""
        if not pairs:
            return []
        card = session.variant.card
        further: list[Any] = [asdict(card.template)] if card.template else []
        further += [card.rescale] if card.rescaled else []
        path = session.path(name, pairs, card.pooling, card.max_length, card.pool_start, *further)
        if not path.exists():
            bar.set_postfix_str(name)
            keep(path, measure(session.encoder, pairs))
        bar.update(2 * len(pairs))
        return kept(path)


def run_probe(
    encoders: list[str],
    out: Path,
    *,
    data: str = "builtin",
    tasks: list[str] | None = None,
    split: Split = "published",
    layers: Layers = "last",
    protocol: Protocol | None = None,
    baselines: bool = True,
    retrieval: Path | None = None,
    similarity: Path | None = None,
    generation: Path | None = None,
    words: Literal["published"] | Path | None = None,
    contexts: Path | None = None,
    seeds: bool = False,
    dtype: AnyDType = "auto",
    device: str = "auto",
) -> list[Result]:
    """Measure every variant and write the report; what `otherside.probing.probe` does, see there.

    Raises:
        FileNotFoundError: no such encoder, data folder or file.
        ValueError: no encoders; a folder that is no encoder; with baselines, encoders of several bases; a malformed
            file; no such task or layer; with seeds, trainings that do not belong together (`stages_of`).
        ConnectionError: the published data cannot be fetched.
    """
    protocol = protocol or Protocol()
    variants = find_variants(encoders, baselines)
    stages = stages_of(variants) if seeds else []  # before anything is measured
    if contexts is not None and words is None:
        raise ValueError("--contexts needs --words, whose words are looked for in it; got --contexts alone")
    files = {"retrieval": retrieval, "similarity": similarity, "generation": generation}
    files |= {"words": fetch(WORDS) if words == "published" else words, "contexts": contexts}
    material = Material.read(files)
    found, random = load_tasks(data, tasks)
    if split == "random":
        found = [replace(task, test=None) for task in found]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = fast_dtype(device) if dtype == "auto" else dtype
    probing = Probing(found, random, material, protocol, layers, dtype, device, out)
    make_folder(out / VARIANTS, "--out")
    quiet_libraries()  # but one, of all texts
    results = []
    with tqdm(total=probing.work * len(variants), unit="text", smoothing=0) as bar:
        for variant in variants:
            bar.set_description(variant.name)
            results.append(probing.measure(variant, bar))
    if seeds:
        results = over_seeds(results, stages)
    about = {
        "data": data,
        "split": split,
        "protocol": settings_of(protocol),
        "tasks": [describe(task) for task in found],
    }
    about |= {name: sha256(file) for name, file in files.items() if file and file.is_file()}
    about |= {"words": [one.name for one in material.lists]} if words else {}
    write_results(results, about, out)
    write_findings(results, out)
    write_report(results, found, out)
    print("\n" + tables(results, found) + f"\nFigures, tables and numbers: {out}/probing.png, table.md, results.csv")
    return results


def describe(task: Task) -> dict[str, Any]:
    """A task's facts for the reader of its numbers."""
    train, test = task.split(42)
    facts = {"name": task.name, "train": len(train), "test": len(test), "words": len(set(task.groups))}
    if not task.regression:
        facts["majority"] = float(np.bincount(task.targets[test]).max() / len(test))
    facts["word_alone"] = word_alone(task, train, test)
    return {**facts, "sha256": task.digest(), "notes": list(task.notes)}


def word_alone(task: Task, train: np.ndarray, test: np.ndarray) -> float:
    """How well a test goes by knowing only which word is asked about: it has the answer, or mean rating, of the word in
    training, or of all words where it is not there. Accuracy, or Pearson's correlation, the mean over ratings.
    """

    def answer(items: np.ndarray) -> np.ndarray:
        found = task.targets[items]
        return found.mean(0) if task.regression else np.asarray(np.bincount(found).argmax())

    known = {group: answer(train[task.groups[train] == group]) for group in np.unique(task.groups[train])}
    predicted = np.array([known.get(group, answer(train)) for group in task.groups[test]])
    if task.regression:
        return float(np.mean(regression(predicted, task.targets[test])["pearson"]))
    return float(np.mean(predicted == task.targets[test]))
