"""Tasks by name, their data from a folder; real mteb."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from conftest import shared
from sts import write_sts

from otherside.evaluation.tasks import SUBSETS, check_instructions, find_tasks, load


@pytest.mark.parametrize("subset", SUBSETS)
def test_subsets_are_english_test_sets_of_mteb(subset: str) -> None:
    tasks = find_tasks(subset, ["eng"])
    assert [task.metadata.name for task in tasks] == SUBSETS[subset]
    assert all(task.eval_splits == ["test"] for task in tasks)
    assert len(find_tasks("llm2vec-15", ["eng"])) == 15


def test_a_benchmark_brings_its_own_settings() -> None:
    tasks = {task.metadata.name: task for task in find_tasks("MTEB(eng, v2)", None)}
    assert len(tasks) == 41
    assert tasks["STS17"].hf_subsets == ["en-en"] and tasks["MassiveIntentClassification"].eval_splits == ["test"]


def test_the_test_split_counts_where_there_is_one() -> None:
    """As on the leaderboard: mteb's own task averages validation data in."""
    named, validated = find_tasks(["MassiveIntentClassification", "MSMARCO"], ["eng"])
    assert named.eval_splits == ["test"] and validated.eval_splits == ["dev"]


def test_only_the_parts_in_the_languages_asked_for() -> None:
    assert find_tasks(["RTE3"], ["eng"])[0].hf_subsets == ["en"]
    assert find_tasks(["RTE3"], ["deu", "fra"])[0].hf_subsets == ["de", "fr"]
    assert len(find_tasks(["RTE3"], None)[0].hf_subsets) == 4
    assert find_tasks(["STS17"], ["eng"])[0].hf_subsets == ["en-en"]  # not en-de


def test_data_of_the_very_folder_are_read_and_metadata_stay_true(tmp_path: Path) -> None:
    for pairs in (12, 13):  # not what datasets keeps of a folder of the same name
        [task] = find_tasks(["STSBenchmark"], ["eng"])
        load(task, write_sts(tmp_path / str(pairs), pairs))
        assert len(task.dataset["test"]) == pairs
        assert task.metadata.dataset["path"] == "mteb/stsbenchmark-sts" and task.metadata.dataset["revision"]


def test_downloaded_data_are_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the layout that `hf download --repo-type dataset` leaves."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    [task] = find_tasks(["STSBenchmark"], ["eng"])
    revision = task.metadata.dataset["revision"]
    with pytest.raises(FileNotFoundError, match=f"dataset mteb/stsbenchmark-sts --revision {revision}"):
        load(task, tmp_path)
    repository = tmp_path / "hub" / "datasets--mteb--stsbenchmark-sts" / "snapshots"
    repository.mkdir(parents=True)
    (write_sts(tmp_path / "made", 14) / "mteb__stsbenchmark-sts").rename(repository / revision)
    load(task, None)
    assert len(task.dataset["test"]) == 14


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    next(write_sts(tmp_path).rglob("*.parquet")).write_bytes(b"PAR1")
    with pytest.raises(FileNotFoundError, match=r"data of STSBenchmark must be at .*mteb__stsbenchmark-sts"):
        load(find_tasks(["STSBenchmark"], ["eng"])[0], tmp_path)


def test_published_copies_are_whole() -> None:
    folder = shared("data/mteb")
    [task] = find_tasks("STSBenchmark", ["eng"])
    load(task, folder)
    assert len(task.dataset["test"]) == task.metadata.n_samples["test"]


def test_instructions_are_for_what_there_is() -> None:
    check_instructions({"SciFact": "a", "Retrieval-query": "b", "document": "c", "SciFact-query": "d"})
    with pytest.raises(ValueError, match=r"got 'Scifact'. Did you mean SciFact"):
        check_instructions({"Scifact": "a"})
