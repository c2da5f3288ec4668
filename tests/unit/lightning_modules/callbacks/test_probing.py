"""Probes while a stage trains; and training that does not notice them."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_modules.callbacks.monitors import Best
from lightning_modules.callbacks.probing import Probing
from otherside.encoder import Encoder
from otherside.probing.generation import perplexity
from otherside.probing.retrieval import read_pairs, retrieval
from otherside.probing.run import Material, load_tasks
from otherside.probing.similarity import read_rated, similarity

CALLBACK = "lightning_modules.callbacks.Probing"


def probing(**settings: Any) -> dict[str, Any]:
    return {"trainer.callbacks": [{"class_path": CALLBACK, "init_args": {"items": 40, **settings}}]}


def logged(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of what starts with probe/."""
    found = EventAccumulator(str(root / "tensorboard")).Reload()
    tags = [tag for tag in found.Tags()["scalars"] if tag.startswith("probe/")]
    return {tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags}


@pytest.mark.parametrize("stage", ["MNTP", "SimCSE"])
def test_training_does_not_notice(stage: str, tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path)
    runs.run("fit", "--config", runs.write_stage(tmp_path, stage, tiny_llama, root="plain", steps=4), cwd=tmp_path)
    config = runs.write_stage(tmp_path, stage, tiny_llama, root="probed", steps=4, **probing(every_n_steps=1))
    output = runs.run("fit", "--config", config, cwd=tmp_path)
    runs.assert_equal(runs.adapter(tmp_path / "plain"), runs.adapter(tmp_path / "probed"))
    found = logged(tmp_path / "probed")
    assert set(found) == {
        *(f"probe/{side}_animacy_{word}" for side in ("subject", "object") for word in (1, 5)),
        *("probe/anisotropy_random_words", "probe/anisotropy_same_sentence"),
    }
    for values in found.values():
        assert [step for step, _ in values] == [0, 1, 2, 3, 4]
        assert all(-1 <= value <= 1 for _, value in values)
    same = [value for _, value in found["probe/anisotropy_same_sentence"]]
    assert len(set(same)) == 5, "the encoder that is trained is measured"
    assert "probe at step 4  subject_animacy_1" in output


def test_measures_of_texts(tiny_llama: Path, sentences: list[str], tmp_path: Path) -> None:
    """At the start, the base's; at the end, the encoder's that the stage leaves behind; training notices nothing."""
    runs.write_data(tmp_path)
    files = {name: str(tmp_path / name) for name in ("retrieval", "similarity", "generation")}
    rows = [
        {"query": a, "positive": b, "sentence1": a, "sentence2": b, "score": len(a)} for a, b in pairwise(sentences)
    ]
    for name in ("retrieval", "similarity"):
        Path(files[name]).write_text("\n".join(map(json.dumps, rows)))
    Path(files["generation"]).write_text("\n".join(sentences))
    runs.run("fit", "--config", runs.write_stage(tmp_path, "MNTP", tiny_llama, root="plain", steps=2), cwd=tmp_path)
    options = probing(every_n_steps=100, tasks=["subject_animacy"], words=[1], **files)
    runs.run("fit", "--config", runs.write_stage(tmp_path, "MNTP", tiny_llama, steps=2, **options), cwd=tmp_path)
    runs.assert_equal(runs.adapter(tmp_path / "plain"), runs.adapter(tmp_path / "runs/mntp"))
    found = logged(tmp_path / "runs/mntp")
    pairs, rated = read_pairs(Path(files["retrieval"])), read_rated(Path(files["similarity"]))
    for step, model in ((0, str(tiny_llama)), (2, str(tmp_path / "runs/mntp/encoder"))):
        encoder = Encoder.load(model, max_length=64)
        expected = {
            "probe/MRR": retrieval(encoder, pairs)[0].score.value,
            "probe/similarity": similarity(encoder, rated)[0].score.value,
            "probe/perplexity": perplexity(encoder, sentences),
        }
        for name, value in expected.items():
            assert dict(found[name])[step] == pytest.approx(value, rel=1e-3), name
    with pytest.raises(FileNotFoundError, match="--generation must be a text file"):
        Material.read({"generation": tmp_path / "none"})


def test_start_and_end_and_after_a_resume(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path)
    options = {"root": "run", **probing(every_n_steps=100, tasks=["subject_animacy"], words=[1])}
    runs.run("fit", "--config", runs.write_stage(tmp_path, "MNTP", tiny_llama, steps=2, **options), cwd=tmp_path)
    assert [step for step, _ in logged(tmp_path / "run")["probe/subject_animacy_1"]] == [0, 2]
    longer = runs.write_stage(tmp_path, "MNTP", tiny_llama, steps=4, **options)
    content = yaml.safe_load(longer.read_text())
    content["model"]["init_args"]["schedule"]["total_steps"] = 2
    longer.write_text(yaml.safe_dump(content))
    runs.run("fit", "--config", longer, cwd=tmp_path)
    assert [step for step, _ in logged(tmp_path / "run")["probe/subject_animacy_1"]] == [0, 2, 4]


@pytest.mark.parametrize(
    ("metric", "mode"),
    [
        ("val/loss", "min"),
        ("probe/perplexity", "min"),
        ("probe/anisotropy_random_words", "min"),
        ("probe/subject_animacy_1", "max"),
        ("mteb/mean", "max"),
    ],
)
def test_which_of_a_metric_is_best(metric: str, mode: str, tmp_path: Path) -> None:
    assert Best(tmp_path, metric).mode == mode


def test_the_encoder_is_that_of_the_best_probe(tiny_llama: Path, sentences: list[str], tmp_path: Path) -> None:
    """Looked at where it is measured, and only there: a validation comes at each step."""
    runs.write_data(tmp_path)
    (tmp_path / "texts").write_text("\n".join(sentences))
    watched = probing(every_n_steps=2, tasks=["subject_animacy"], words=[1], generation=str(tmp_path / "texts"))
    validated = {
        "data.init_args.val_sources": [{"path": str(tmp_path / "sentences.txt")}],
        "trainer.val_check_interval": 1,
    }
    settings = {**watched, **validated, "checkpoints.best": "probe/perplexity"}
    settings["model.init_args.schedule.total_steps"] = 100
    config = runs.write_stage(tmp_path, "SimCSE", tiny_llama, root="run", steps=5, **settings)
    runs.run("fit", "--config", config, cwd=tmp_path)
    found = dict(logged(tmp_path / "run")["probe/perplexity"])
    assert found.keys() == {0, 2, 4, 5}
    best = min((2, 4, 5), key=found.__getitem__)
    [kept] = (tmp_path / "run" / "best").iterdir()
    assert kept.name == f"step={best}.ckpt"
    assert json.loads((tmp_path / "run" / "encoder" / "encoder.json").read_text())["steps"] == best
    wrong = runs.write_stage(
        tmp_path, "SimCSE", tiny_llama, root="run2", **{**watched, "checkpoints.best": "probe/subject_animacy_2"}
    )
    status, output = runs.start("fit", "--config", wrong, cwd=tmp_path).wait()
    assert status == 1 and "Did you mean probe/subject_animacy_1?" in output


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_several_ranks(strategy: str, tiny_llama: Path, tmp_path: Path) -> None:
    """The same numbers as one rank, and none of the ranks waits for ever."""
    runs.write_data(tmp_path)
    extra: dict[str, Any] = {"trainer.strategy": "ddp"}
    if strategy == "zero3":
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_reuse_distance": 0}
        config = {"zero_optimization": zero}
        init = {"stage": 3, "config": config, "process_group_backend": "gloo"}
        extra = {"trainer.strategy": {"class_path": "lightning_modules.strategies.ZeRO", "init_args": init}}
    alone = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="one", steps=2, **probing(every_n_steps=1))
    runs.run("fit", "--config", alone, cwd=tmp_path)
    options = {**probing(every_n_steps=1), **extra}
    many = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="two", steps=2, **options)
    runs.run_ranks(2, "fit", "--config", many, cwd=tmp_path, timeout=280)
    one, two = logged(tmp_path / "one"), logged(tmp_path / "two")
    assert one.keys() == two.keys()
    for tag, values in one.items():
        (first, *_), (begun, *later) = values, two[tag]
        assert begun == pytest.approx(first, abs=1e-4), "before training"
        assert [step for step, _ in later] == [1, 2]


def test_a_failure_names_the_callback(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path)
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", steps=2, **probing(data="nowhere"))
    status, output = runs.start("fit", "--config", config, cwd=tmp_path).wait()
    assert status == 1 and "error: --data must be builtin, published, a folder, or a .tsv" in output
    long = tmp_path / "long.yaml"
    content = yaml.safe_load(
        runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run2", steps=2, **probing()).read_text()
    )
    content["trainer"]["callbacks"][0]["init_args"] |= {"data": str(too_long(tmp_path / "data")), "tasks": ["telicity"]}
    long.write_text(yaml.safe_dump(content))
    status, output = runs.start("fit", "--config", long, cwd=tmp_path).wait()
    assert status == 1, output
    assert (
        "error: the callback Probing failed at step 0: ValueError: every text must fit into the model's 512" in output
    )


def too_long(folder: Path) -> Path:
    from probing_data import put, write_published

    rows = [f"{i}\tWe go on {'and on ' * 400}, day {i} .\tgo\t1\t{i % 2}" for i in range(20)]
    put(write_published(folder) / "Task2_Lexical aspect binary classification/telicity_train.txt", *rows)
    return folder


def test_tables_may_be_sorted(tmp_path: Path) -> None:
    rows = [
        f"{label} text number {i}, a bank\tbank\t{label}\t{'train' if i % 3 else 'test'}"
        for label in "ab"
        for i in range(60)
    ]
    (tmp_path / "own.tsv").write_text("\n".join(["sentence\tword\tlabel\tsplit", *rows]) + "\n")
    callback, [task] = Probing(items=20), load_tasks(str(tmp_path / "own.tsv"), None)[0]
    for items in callback._items(task):
        assert set(task.targets[items]) == {0, 1}


def test_settings() -> None:
    with pytest.raises(ValueError, match="every_n_steps of at least 1"):
        Probing(every_n_steps=0)
    with pytest.raises(ValueError, match="words must lie in 1 … 5; got 6"):
        Probing(words=[1, 6])
