"""`lightning check-data`: what a stage, or files, would be trained on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import datasets

from lightning_modules.includes import merged
from lightning_modules.sizing.job import base_of
from otherside.files import atomic

YAML = (".yaml", ".yml")
KINDS = {"Pairs": "pair", "Sentences": "text", "Blocks": "blank_ok"}


@dataclass
class Asked:
    """What to check, against what.

    Args:
        sources: of training, each with the kind of its rows.
        validation: the same.
        base: whose tokenizer measures; None: words are counted.
        max_length: tokens behind which texts are cut.
        tasks: of MTEB.
        languages: of these, as the default of the YAML.
        mteb_data: folder with local copies of them.
        may_skip: whether training leaves out malformed rows.
    """

    sources: list[Any]
    validation: list[Any]
    base: str | None = None
    max_length: int | None = None
    tasks: str | list[str] | None = None
    languages: list[str] | None = field(default_factory=lambda: ["eng"])
    mteb_data: str | None = None
    may_skip: bool = False


def check_data(
    inputs: list[str],
    fields: dict[str, str] | None = None,
    base: str | None = None,
    max_length: int | None = None,
    mteb: list[str] | str | None = None,
    mteb_data: str | None = None,
    out: Path | None = None,
) -> None:
    """Look through training data before anybody trains on them: counts, lengths, languages, malformed, repeated and
    nearly repeated rows, negatives that are none, and texts of validation and of MTEB's tests among those of training.

    Texts are the same if their words are, whatever case and punctuation; whole texts are compared. Queries and
    sentences of tests must not be trained on; documents of a corpus to search are only counted. Ends with status 1 if
    there are such texts, or malformed rows that training would stop at; duplicates are only told.

    Args:
        inputs: a stage's YAML, or data files, globs or hub datasets.
        fields: columns of files, where they have other names, such as '{query: Frage, positive: Antwort}'.
        base: whose tokenizer measures the texts; the YAML's, if not said; of files words are counted.
        max_length: tokens behind which texts are cut; the YAML's, if not said.
        mteb: whose test texts are looked for: sts-fast, "MTEB(eng, v2)", '[STSBenchmark, SciFact]'; the YAML's, if not
            said.
        mteb_data: folder with local copies of tasks, ORG__NAME; the hub has the others.
        out: file for the numbers, as JSON.

    Raises:
        FileNotFoundError: a file, the base or a task's data are nowhere.
        ValueError: a setting is wrong.
        SystemExit: with status 1, see above.
    """
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    asked = _asked(inputs, fields)
    asked.base, asked.max_length = base or asked.base, max_length or asked.max_length
    asked.tasks, asked.mteb_data = mteb or asked.tasks, mteb_data or asked.mteb_data
    hygiene = import_module("datamodules.hygiene.run")  # by name: data modules and stages never import each other
    tests, tokenizer = _tests(asked), _tokenizer(asked.base)
    report = hygiene.check(asked.sources, asked.validation, tokenizer, asked.max_length, tests)
    failures = hygiene.failures(report, asked.may_skip)
    if out:
        with atomic(out) as file:
            file.write_text(json.dumps({**report, "failures": failures}, indent=1, ensure_ascii=False) + "\n")
    print(import_module("datamodules.hygiene.page").page(report, failures))
    if failures:
        sys.exit(1)


def _asked(inputs: list[str], fields: dict[str, str] | None) -> Asked:
    """What the inputs name.

    Raises:
        ValueError: a YAML and files are mixed.
    """
    configs = [name for name in inputs if name.endswith(YAML)]
    if configs and (len(inputs) > 1 or fields):
        raise ValueError(
            f"check-data must get one stage's YAML and no --fields, or data files; got {', '.join(inputs)}"
            f"{' and --fields' * bool(fields)}. Run it once for each."
        )
    if configs:
        return _of_stage(Path(configs[0]))
    recognise = import_module("datamodules.recognise").recognise
    return Asked([(each.source, each.kind) for name in inputs for each in recognise(name, fields)], [])


def _of_stage(config: Path) -> Asked:
    """What a stage reads, and is evaluated on."""
    settings = merged(config)
    data, mteb = settings.get("data") or {}, settings.get("mteb") or {}
    kind, init = KINDS.get(str(data.get("class_path")).rpartition(".")[2]), data.get("init_args") or {}
    if kind is None or not init.get("sources"):
        raise ValueError(
            f"a YAML for check-data must be a stage's, with data.init_args.sources of {', '.join(KINDS)}; {config} has "
            f"data.class_path {data.get('class_path')} and {len(init.get('sources') or [])} sources"
        )
    if init.get("streaming"):
        raise ValueError(
            f"data.streaming must be false, as check-data reads all rows; got true in {config}. Name files instead."
        )
    backbone = (settings.get("model") or {}).get("init_args", {}).get("backbone") or {}
    return Asked(
        sources=list(_sources(init["sources"], kind)),
        validation=list(_sources(init.get("val_sources") or [], kind)),
        base=base_of(config, backbone),
        max_length=None if kind == "blank_ok" else init.get("max_length"),  # blocks have all of a text
        tasks=mteb.get("tasks"),
        languages=mteb.get("languages", ["eng"]),
        mteb_data=mteb.get("data"),
        may_skip=init.get("on_bad_row") == "skip",
    )


def _sources(listed: list[Mapping[str, Any]], kind: str) -> Iterator[tuple[Any, str]]:
    Source = import_module("datamodules").Source
    for settings in listed:
        try:
            yield Source(**settings), kind
        except TypeError as error:
            said = str(error).partition("() ")[2] or error
            raise ValueError(f"each of data.sources must be settings of a source, such as path; {said}") from error


def _tokenizer(base: str | None) -> Any:
    if base is None:
        return None
    from otherside.tokenizer import load_tokenizer

    return load_tokenizer(base)


def _tests(asked: Asked) -> dict[str, Iterator[tuple[bool, str]]]:
    """The texts of each task."""
    if not asked.tasks:
        return {}
    from otherside.evaluation.tasks import find_tasks, load
    from otherside.evaluation.texts import test_texts

    found, folder = {}, Path(asked.mteb_data).expanduser() if asked.mteb_data else None
    for task in find_tasks(asked.tasks, asked.languages):
        load(task, folder)
        found[task.metadata.name] = test_texts(task)
    return found
