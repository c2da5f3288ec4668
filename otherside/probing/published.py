"""The paper's five tasks, read from its published data sets.

The folder has the layout of github.com/Zhaoxin-Feng/semantic-probing-2025, folder `data`. Original sources: Klafka &
Ettinger 2020 (context probes), Metheniti et al. 2022 (telicity, duration), Gregori et al. 2020 (CONcreTEXT), Trott &
Bergen 2022 (contextualised sensorimotor norms), Pilehvar & Camacho-Collados 2019 (WiC). `docs/probing.md` lists what is
wrong with the published files; here it is put right the same way every time, and noted in the task.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import TypeVar

import numpy as np

from otherside.probing.tasks import (
    Input,
    Mention,
    Mlp,
    Task,
    absolute_difference,
    concatenation,
    cosine,
    word_spans,
    words,
)

CONTEXT = {"subject_animacy": 2, "verb_causative": 3, "verb_dynamic": 3, "object_animacy": 5}  # the word asked about
NORMS: tuple[str, ...] = ("Vision", "Hearing", "Olfaction", "Interoception", "Taste", "Touch")
NORMS += ("Foot_leg", "Mouth_throat", "Torso", "Head", "Hand_arm")
SIMILAR = 0.6  # of a rated word and its inflected form, by difflib; the least alike are break and broke
# Table 2 of the paper
SMALL, RATING = Mlp((20, 10), 16, 2e-5), Mlp((40, 20), 16, 2e-3)
CONCRETENESS = Mlp((40, 20), 8, 2e-3)
WIC = {
    "absolute difference": Input(absolute_difference, Mlp((20, 10), 16, 1e-5)),
    "cosine": Input(cosine, Mlp((5, 2), 8, 1e-3)),
    "concatenation": Input(concatenation, Mlp((20, 10), 16, 1.5e-5)),
}

Found = TypeVar("Found")


def read_tasks(folder: Path, names: list[str] | None = None) -> list[Task]:
    """The tasks named, in the paper's order; None: all nine.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there is no such task, or a file is malformed; it names file and line.
    """
    unknown = [name for name in names or [] if name not in READERS]
    if unknown:
        raise ValueError(f"--tasks must be among {', '.join(READERS)}; got {', '.join(unknown)}")
    return [READERS[name](folder, name) for name in READERS if names is None or name in names]


def context_probe(folder: Path, name: str) -> Task:
    """`the NOUN VERBed the NOUN,LABEL` a line, in a training and a test file."""
    place = CONTEXT[name] - 1
    items: list[tuple[tuple[Mention, ...], int, bool]] = []
    for part in ("train", "test"):

        def parse(line: str, part: str = part) -> tuple[tuple[Mention, ...], int, bool]:
            text, _, label = line.rpartition(",")
            spans = word_spans(text)
            if len(spans) != 5:
                raise ValueError(f"a sentence of five words and a label after a comma; it has {len(spans)} words")
            return tuple(Mention(text, *span) for span in spans), binary(label), part == "test"

        items += parsed(folder / f"Task1_Context-probes/{name}/{part}.txt", parse)
    items, notes = first_of_each(items)
    mentions, labels, test = zip(*items, strict=True)
    asked = [spelled(item[place]) for item in mentions]
    return Task(name, mentions, np.array(labels), np.array(asked), words(SMALL), np.array(test), notes=notes)


def lexical_aspect(folder: Path, name: str) -> Task:
    """id, sentence, verb, number of the verb from 0, label: separated by tabs."""

    def parse(line: str) -> tuple[tuple[Mention, ...], int, bool] | None:
        _, text, verb, index, label = fields(line, 5)
        if not any(map(str.isalpha, verb)):
            return None
        spans = spans_between_spaces(text)
        places = [i for i, (start, end) in enumerate(spans) if text[start:end] == verb]
        if not places:
            raise ValueError(f"a sentence that holds its verb; {verb!r} is no word of it")
        place = min(places, key=lambda i: abs(i - whole(index)))
        return (Mention(text, *spans[place]),), binary(label), place != whole(index)

    lines = list(parsed(folder / f"Task2_Lexical aspect binary classification/{name}_train.txt", parse))
    verbless = [str(number) for number, item in enumerate(lines, start=1) if item is None]
    found = [item for item in lines if item]
    items, notes = first_of_each(found)
    if moved := sum(elsewhere for *_, elsewhere in found):
        notes += (f"{moved} verbs stand elsewhere than their number says; the nearest one is taken",)
    if verbless:
        notes += (f"left out, their verb is no word: line {', '.join(verbless)}",)
    mentions, labels, _ = zip(*items, strict=True)
    verbs = np.array([spelled(item[0]) for item in mentions])
    return Task(name, mentions, np.array(labels), verbs, the_word(SMALL), notes=notes)


def concreteness(folder: Path, name: str) -> Task:
    """id, word, part of speech, its number from 0, sentence, mean rating from 1 to 7: separated by tabs; a header."""

    def parse(line: str) -> tuple[tuple[Mention, ...], str, float]:
        _, target, _, index, text, rating = fields(line, 6)
        return (numbered(text, index),), target, between(rating, 1, 7)

    path = folder / "Task3_CONcreTEXT/CONcreTEXT_test_EN.txt"
    items, notes = first_of_each(parsed(path, parse, header="testset_idx\tTARGET\tPOS\tINDEX\tTEXT\tAVG"))
    mentions, targets, ratings = zip(*items, strict=True)
    return Task(
        name,
        mentions,
        np.array(ratings)[:, None],
        np.array(targets),
        the_word(CONCRETENESS),
        aspects=("concreteness",),
        notes=notes,
    )


def sensorimotor(folder: Path, name: str) -> Task:
    """CSV with a header: word, sentence, and the mean of each norm, from 0 to 5, in its column `NORM.M`."""
    path = folder / "Task4_Sensorimotor norms/contextualized_sensorimotor_norms_with_ls.txt"
    header: list[str] = []

    def parse(line: str) -> tuple[tuple[Mention, ...], str, list[float]] | None:
        nonlocal header
        values = next(csv.reader([line]))
        if not header:
            header = values
            missing = [c for c in ("word", "sentence", *(f"{norm}.M" for norm in NORMS)) if c not in header]
            if missing:
                raise ValueError(f"a header with the columns word, sentence and NORM.M; it lacks {', '.join(missing)}")
            return None
        if len(values) != len(header):
            raise ValueError(f"{len(header)} values, as many as the header; it has {len(values)}")
        row = dict(zip(header, values, strict=True))
        return (inflected(row["word"], row["sentence"]),), row["word"], [between(row[f"{n}.M"], 0, 5) for n in NORMS]

    items, notes = first_of_each([item for item in parsed(path, parse) if item])
    mentions, targets, ratings = zip(*items, strict=True)
    return Task(name, mentions, np.array(ratings), np.array(targets), the_word(RATING), aspects=NORMS, notes=notes)


def word_in_context(folder: Path, name: str) -> Task:
    """Word, part of speech, `i-j`, two sentences, separated by tabs; the answers, T or F, in a file of their own."""

    def parse(line: str) -> tuple[tuple[Mention, ...], str]:
        lemma, _, indices, *texts = fields(line, 5)
        both = indices.split("-")
        if len(both) != 2:
            raise ValueError(f"the words' numbers as i-j; it has {indices!r}")
        return tuple(numbered(text, index) for text, index in zip(texts, both, strict=True)), lemma

    def answer(line: str) -> int:
        if line not in ("T", "F"):
            raise ValueError(f"T or F; it has {line[:20]!r}")
        return int(line == "T")

    questions, gold = (folder / f"Task5_Word-in-context/test.{part}.txt" for part in ("data", "gold"))
    asked, answers = list(parsed(questions, parse)), list(parsed(gold, answer))
    if len(asked) != len(answers):
        raise ValueError(f"{gold} must have a line per line of {questions.name}: {len(asked)}; it has {len(answers)}")
    items, notes = first_of_each([(*item, label) for item, label in zip(asked, answers, strict=True)])
    mentions, lemmas, labels = zip(*items, strict=True)
    return Task(name, mentions, np.array(labels), np.array(lemmas), WIC, alone=False, notes=notes)


READERS: dict[str, Callable[[Path, str], Task]] = {
    **dict.fromkeys(CONTEXT, context_probe),
    "telicity": lexical_aspect,
    "duration": lexical_aspect,
    "concreteness": concreteness,
    "sensorimotor": sensorimotor,
    "wic": word_in_context,
}


def parsed(path: Path, parse: Callable[[str], Found], header: str | None = None) -> Iterator[Found]:
    """`parse` of every line; what it refuses is named with file and line.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is malformed, the file is empty or not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"--data must be a folder in the layout of the published data; it has no {path}. Name another folder, or "
            "fetch the published files with --data=published."
        )
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data: {path} must be UTF-8; {error}. Convert or fetch it again.") from error
    if header is not None and (not lines or lines[0] != header):
        raise ValueError(f"--data: {path}, line 1, must be the header {header!r}; got {(lines or [''])[0][:80]!r}")
    first = 1 if header is None else 2
    if not any(lines[first - 1 :]):
        raise ValueError(f"--data: {path} must have rows; it has none. Fetch it again.")
    for number, line in enumerate(lines[first - 1 :], start=first):
        try:
            yield parse(line)
        except ValueError as error:
            raise ValueError(f"--data: {path}, line {number}, must have {error}. Correct the line.") from error


def first_of_each(items: Iterator[Found] | list[Found]) -> tuple[list[Found], tuple[str, ...]]:
    """The items without those about the same words in the same sentences as an earlier one, and a note of how many."""
    items = list(items)
    kept = list({item[0]: item for item in reversed(items)}.values())[::-1]  # type: ignore[index]
    repeated = len(items) - len(kept)
    return kept, (f"{repeated} repeated items left out",) if repeated else ()


def fields(line: str, count: int) -> list[str]:
    """The values between tabs."""
    values = line.split("\t")
    if len(values) != count:
        raise ValueError(f"{count} values separated by tabs; it has {len(values)}")
    return values


def binary(label: str) -> int:
    """0 or 1."""
    if label not in ("0", "1"):
        raise ValueError(f"the label 0 or 1; it has {label[:20]!r}")
    return int(label)


def whole(number: str) -> int:
    """A number from 0."""
    if not re.fullmatch(r"\d+", number):
        raise ValueError(f"a word's number, from 0; it has {number[:20]!r}")
    return int(number)


def between(number: str, low: float, high: float) -> float:
    """A rating."""
    try:
        value = float(number)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"a rating from {low} to {high}; it has {number[:20]!r}")
    return value


def spans_between_spaces(text: str) -> list[tuple[int, int]]:
    """As the data count words: two spaces in a row have an empty word between them."""
    starts = [0, *(match.end() for match in re.finditer(" ", text))]
    return [(start, end - 1) for start, end in zip(starts, [*starts[1:], len(text) + 1], strict=True)]


def numbered(text: str, index: str) -> Mention:
    """The word of this number, counted from 0."""
    spans, place = spans_between_spaces(text), whole(index)
    if place >= len(spans) or spans[place][0] == spans[place][1]:
        raise ValueError(f"the number of a word of its sentence; it has {place} for {text[:60]!r}")
    return Mention(text, *spans[place])


def inflected(target: str, text: str) -> Mention:
    """The word of `text` that is spelled most like `target`: itself, or a form such as `broke` of `break`."""
    spans = [match.span() for match in re.finditer(r"\w+", text)]
    likeness = [SequenceMatcher(None, target.lower(), text[start:end].lower()).ratio() for start, end in spans]
    if not likeness or max(likeness) < SIMILAR:
        raise ValueError(f"a sentence with its word; {target!r} is not in {text[:60]!r}")
    return Mention(text, *spans[likeness.index(max(likeness))])


def spelled(mention: Mention) -> str:
    """The word itself, in lower case."""
    return mention.text[mention.start : mention.end].lower()


def the_word(mlp: Mlp) -> dict[str, Input]:
    """The one word's vector."""
    return {"word": words(mlp, 1)["1"]}
