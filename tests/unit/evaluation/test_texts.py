"""Texts that tasks test on; real mteb."""

from __future__ import annotations

from pathlib import Path

import datasets
from conftest import shared
from ranks import run_ranks
from sts import write_sts

from otherside.evaluation.tasks import find_tasks, load
from otherside.evaluation.texts import test_texts as texts_of


def test_sentences_of_the_test_split(tmp_path: Path) -> None:
    [task] = find_tasks(["STSBenchmark"], ["eng"])
    load(task, write_sts(tmp_path, 12))
    rows = task.dataset["test"]
    task.dataset["train"] = datasets.Dataset.from_list([{"sentence1": "training", "sentence2": "may be known"}])
    assert sorted(texts_of(task)) == sorted((False, text) for name in ("sentence1", "sentence2") for text in rows[name])


def test_queries_are_told_from_documents() -> None:
    [task] = find_tasks(["SciFact"], ["eng"])
    folder = shared("data/mteb")

    def read() -> list[tuple[bool, str]]:
        load(task, folder)
        return list(texts_of(task))

    [found] = run_ranks(1, read, group=False)
    queries = [text for document, text in found if not document]
    assert (len(found) - len(queries), len(queries)) == (5183, 300)  # of the test split; no ids, no titles
    assert "0-dimensional biomaterials show inductive properties." in queries
