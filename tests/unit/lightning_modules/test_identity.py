"""Invariant 11: a run knows what it is and goes on as that only; what is changed is named, and refused or in force."""

from __future__ import annotations

import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from conftest import build_tiny_llama
from transformers import AutoModelForCausalLM

from lightning_modules import identity


class TestValues:
    def test_settings_have_the_names_of_their_options(self) -> None:
        sources = [{"path": "a", "weight": 1, "fields": {"text": "title"}}]
        config = {
            "model": {"class_path": "A", "init_args": {"lora": {"r": 4}, "optimizer": print, "seed": 1}},
            "data": {"class_path": "B", "init_args": {"sources": sources, "num_workers": 3, "val_sources": sources}},
        }
        assert identity.settings(config) == {
            "model.class_path": "A",
            "model.lora.r": 4,
            "model.optimizer": "print",
            "data.class_path": "B",
            "data.sources": 1,
            "data.sources.0.weight": 1,
            "data.sources.0.fields": {"text": "title"},
        }

    def test_what_is_given_is_the_same_in_files_and_options(self, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text(
            "model: {init_args: {lora: {r: 4, alpha: 8}}}\ntrainer: {max_steps: 3, devices: 2}"
        )
        file = ["--config", str(tmp_path / "a.yaml")]
        assert identity.given(file) == {"model.lora.r": 4, "model.lora.alpha": 8, "trainer.max_steps": 3}
        options = ["--model.lora.r=5", "--model.init_args.lora.alpha", "9", "--trainer.devices", "1", "--data", "{"]
        assert identity.given([*file, *options]) == {
            "model.lora.r": 5,
            "model.lora.alpha": 9,
            "trainer.max_steps": 3,
            "data": "{",
        }

    def test_a_removed_setting_is_a_difference_and_one_of_a_newer_version_is_none(self) -> None:
        changed = identity.differences({"a": 1, "b": 2}, {"a": 1, "c": None})
        assert identity.refused(changed) == {"b": (2, None)} == identity.untrained(changed)
        assert identity.told(changed) == "b 2 -> none, c not noted -> none"

    @pytest.mark.parametrize("name", ["model.loss.teacher", "model.lora"])
    def test_null_and_a_mapping_are_others(self, name: str) -> None:
        none, some = {name: None}, {f"{name}.kind": "margin", f"{name}.weight": None}
        assert identity.refused(identity.differences(none, some)) == {f"{name}.kind": (None, "margin")}
        assert identity.refused(identity.differences(some, none)) == {f"{name}.kind": ("margin", None)}
        assert not identity.differences(none, none) and not identity.differences(some, some)

    def test_vectors_of_other_settings_are_others(self) -> None:
        """As `predict` and `test` take a checkpoint of a run whose YAML was changed."""
        model = {"pooling", "pool_start", "rescaled", "lora.r", "frozen_layers"}
        backbone = {"backbone.attention", "backbone.start_token", "backbone.keep_sink"}
        changed = {f"model.{name}": (1, 2) for name in (*model, *backbone)}
        assert identity.of_vectors({**changed, "model.lora.dropout": (1, 2), "data.max_length": (1, 2)}) == changed

    def test_a_line_shows_the_first_differences_and_short_digests(self) -> None:
        changed = {f"s{i}": (f"mntp {'ab' * 32}", None) for i in range(7)}
        assert identity.told(changed).startswith("s0 mntp abababababab… -> none, s1")
        assert identity.told(changed).endswith("and 2 more")


@pytest.mark.parametrize("pattern", [*identity.APPLIED, *identity.FREE, *identity.SILENT])
def test_what_may_change_is_in_the_docs(pattern: str) -> None:
    """By its last part; of sources, that their paths may change."""
    page = (Path(__file__).parents[3] / "docs" / "resume.md").read_text()
    words = {"ranks": "number of ranks", "*.seed": "`seed_everything`", "data.tokenizer": "tokenizer"}
    words |= {"model.backbone.model": "`base`", "model.backbone.revision": "`revision`"}
    words |= {"data.val_sources*": "validation and prediction sources"}
    words["data.predict_sources*"] = words["data.val_sources*"]
    source = "paths of the data" if pattern.startswith("data.sources") else f"`{pattern}`"
    assert words.get(pattern, source) in page


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A run that was cut at step 2 of 6, and a finished one."""
    folder = tmp_path_factory.mktemp("identity")
    runs.write_data(folder, rows=24)
    for stage in ("MNTP", "SimCSE"):
        config = runs.write_stage(folder, stage, tiny_llama, steps=6)
        runs.run("fit", "--config", config, "--trainer.max_steps", "2", cwd=folder)
    return folder


@pytest.fixture
def cut(place: Path, tmp_path: Path) -> Path:
    """A copy of it, to go on with."""
    return Path(shutil.copytree(place / "runs", tmp_path / "runs")).parent


def stage(place: Path, cut: Path, tiny_llama: Path, name: str, **settings: Any) -> Path:
    """Its YAML, in a folder of its own."""
    for file in ("sentences.txt", "pairs.jsonl"):
        if not (cut / file).exists():
            shutil.copy(place / file, cut / file)
    return runs.write_stage(cut, name, tiny_llama, **settings)


def fails(*arguments: str | Path, cwd: Path) -> str:
    status, output = runs.start(*arguments, cwd=cwd).wait()
    assert status == 1, output
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in output, output
    return errors[0]


def other_llama(folder: Path) -> Path:
    """Of the same shape."""
    build_tiny_llama(folder)
    lm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        lm.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    lm.save_pretrained(folder)
    return folder


def shuffled(file: Path) -> None:
    """The same rows, in another order."""
    rows = file.read_text().splitlines()
    random.Random(0).shuffle(rows)
    file.write_text("\n".join(rows) + "\n")


# All differences of a line are in one run: at most identity.SHOWN
CHANGES: list[tuple[str, dict[str, tuple[Any, str]]]] = [
    (
        "MNTP",
        {
            "model.init_args.lora.alpha": (16, "model.lora.alpha 8.0 -> 16.0"),
            "model.init_args.lora.dropout": (0.2, "model.lora.dropout 0.1 -> 0.2"),
            "model.init_args.backbone.attention": ("causal", "model.backbone.attention bidirectional -> causal"),
            "model.init_args.backbone.dtype": ("bfloat16", "model.backbone.dtype float32 -> bfloat16"),
            "model.init_args.pooling": ("last_token", "model.pooling mean -> last_token"),
        },
    ),
    (
        "MNTP",
        {
            "model.init_args.masking": ({"probability": 0.4}, "model.masking.probability 0.2 -> 0.4"),
            "model.init_args.optimizer.init_args.weight_decay": (0.1, "model.optimizer.weight_decay 0.01 -> 0.1"),
            "trainer.gradient_clip_val": (1.0, "trainer.gradient_clip_val none -> 1.0"),
            "trainer.accumulate_grad_batches": (2, "trainer.accumulate_grad_batches 1 -> 2"),
            "seed_everything": (7, "seed_everything 42 -> 7"),
        },
    ),
    (
        "MNTP",
        {
            "data.init_args.max_length": (16, "data.max_length 32 -> 16"),
            "data.init_args.global_batch_size": (6, "data.global_batch_size 8 -> 6"),
            "data.init_args.sources": (
                [{"path": "sentences.txt", "weight": 2, "instruction": "Read: "}, {"path": "pairs.txt", "weight": 1}],
                'data.sources 1 -> 2, data.sources.0.instruction "" -> "Read: ", data.sources.0.weight none -> 2.0',
            ),
        },
    ),
    (
        "SimCSE",
        {
            "model.init_args.loss": ({"scale": 50}, "model.loss.scale 20.0 -> 50.0"),
            "model.init_args.backbone.attention_dropout": (0.3, "model.backbone.attention_dropout 0.1 -> 0.3"),
            "model.init_args.backbone.keep_sink": (False, "model.backbone.keep_sink true -> false"),
            "model.init_args.backbone.quantized": ("nf4", "model.backbone.quantized none -> nf4"),
        },
    ),
]


@pytest.mark.parametrize(("name", "changes"), CHANGES, ids=["model", "training", "data", "loss"])
def test_a_run_goes_on_as_it_began(
    name: str, changes: dict[str, tuple[Any, str]], place: Path, cut: Path, tiny_llama: Path
) -> None:
    config = stage(place, cut, tiny_llama, name, **{key: value for key, (value, _) in changes.items()})
    shutil.copy(cut / "sentences.txt", cut / "pairs.txt")
    error = fails("fit", "--config", config, cwd=cut)
    assert error.startswith("error: a run must go on as it began; changed since ")
    assert "Set it back, or start in a new trainer.default_root_dir" in error
    for _, said in changes.values():
        assert said in error


@pytest.mark.parametrize("steps", [6, 2], ids=["cut", "finished"])
def test_rows_in_another_order_are_noticed(steps: int, place: Path, cut: Path, tiny_llama: Path) -> None:
    config = stage(place, cut, tiny_llama, "MNTP")
    shuffled(cut / "sentences.txt")
    error = fails("fit", "--config", config, "--trainer.max_steps", str(steps), cwd=cut)
    assert re.search(r"data\.sources\.0\.content [0-9a-f]{12}… -> [0-9a-f]{12}…", error) and "rows" not in error


def test_the_same_rows_may_lie_elsewhere_and_workers_may_be_others(place: Path, cut: Path, tiny_llama: Path) -> None:
    stage(place, cut, tiny_llama, "MNTP")
    (cut / "sentences.txt").rename(cut / "moved.txt")
    settings = {"data.init_args.sources": [{"path": "moved.txt"}], "data.init_args.num_workers": 1}
    config = runs.write_stage(cut, "MNTP", tiny_llama, **settings)
    output = runs.run("fit", "--config", config, cwd=cut)
    assert re.findall("goes on with .*", output) == ["goes on with trainer.max_steps 2 -> 6"]


def test_another_base_of_the_same_shape_is_refused(place: Path, cut: Path, tiny_llama: Path) -> None:
    stage(place, cut, tiny_llama, "MNTP")
    saved = next((cut / "runs" / "mntp").rglob("config.yaml"))
    before = saved.read_text()
    config = runs.write_stage(cut, "MNTP", other_llama(cut / "llama"))
    error = fails("fit", "--config", config, cwd=cut)
    assert saved.read_text() == before
    assert re.search(r"fingerprint [0-9a-f]{12}… -> [0-9a-f]{12}…", error)
    same = runs.write_stage(cut, "MNTP", shutil.copytree(tiny_llama, cut / "copy"))
    output = runs.run("fit", "--config", same, cwd=cut)
    assert f"goes on with base {tiny_llama} -> {cut / 'copy'}" in output


def rates(root: Path) -> dict[int, float]:
    return {step + 1: rate for step, rate in runs.metrics(root, "lr").items()}


@pytest.mark.parametrize("strategy", ["auto", "zero2", "fsdp2"])
def test_a_learning_rate_set_on_the_way_is_in_force(
    strategy: str, place: Path, tmp_path: Path, tiny_llama: Path
) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "run", "name": "csv"}}
    settings = {"trainer.logger": logger, "trainer.strategy": strategy}
    config = stage(place, tmp_path, tiny_llama, "MNTP", root="run", **settings)
    runs.run_ranks(1, "fit", "--config", config, "--trainer.max_steps", "2", cwd=tmp_path)
    change = ("--model.optimizer.lr", "1e-3", "--model.schedule.total_steps", "12")
    output = runs.run_ranks(1, "fit", "--config", config, *change, cwd=tmp_path)
    assert "goes on with model.optimizer.lr 0.005 -> 0.001" in output
    assert "goes on with model.schedule.total_steps 6 -> 12" in output
    expected = {1: 5e-3, 2: 5e-3 * 5 / 6, **{step: 1e-3 * (13 - step) / 12 for step in range(3, 7)}}
    assert rates(tmp_path / "run") == pytest.approx(expected)
    note = json.loads((tmp_path / "run" / "finished.json").read_text())
    assert note["identity"]["model.optimizer.lr"] == 1e-3
    assert "step=2: model.optimizer.lr 0.005 -> 0.001" in note["changes"]


def test_a_checkpoint_of_an_older_version_is_refused(place: Path, cut: Path, tiny_llama: Path) -> None:
    """It was trained without a start token, and nobody could tell on what."""
    [checkpoint] = (cut / "runs" / "mntp" / "checkpoints").iterdir()
    (checkpoint / "identity.json").unlink()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    del manifest["files"]["identity.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    config = stage(place, cut, tiny_llama, "MNTP", **{"data.init_args.predict_sources": [{"path": "sentences.txt"}]})
    for command in ("fit", "predict"):
        assert "step=2.ckpt has no identity.json" in fails(command, "--config", config, cwd=cut)


def test_weights_are_read_into_the_model_they_were_trained_in(place: Path, cut: Path, tiny_llama: Path) -> None:
    predict = {"data.init_args.predict_sources": [{"path": "sentences.txt"}], "model.init_args.lora.dropout": 0.0}
    config = stage(place, cut, tiny_llama, "MNTP", **predict)
    assert "24 vectors" in runs.run("predict", "--config", config, "--data.max_length", "16", cwd=cut)
    error = fails("predict", "--config", config, "--model.lora.alpha", "16", "--model.pooling", "last_token", cwd=cut)
    assert "model.lora.alpha 8.0 -> 16.0" in error and "model.pooling mean -> last_token" in error
    (cut / "runs" / "mntp" / "predictions.parquet").unlink()  # which would not be overwritten either
    config = stage(place, cut, other_llama(cut / "llama"), "MNTP", **predict)
    assert re.search(r"fingerprint [0-9a-f]{12}… -> [0-9a-f]{12}…", fails("predict", "--config", config, cwd=cut))


class TestFinished:
    def test_says_so_and_stops(self, place: Path, cut: Path, tiny_llama: Path) -> None:
        """With as many steps or fewer, and whatever does not change the result."""
        config = stage(
            place, cut, tiny_llama, "MNTP", **{"checkpoints.every_n_steps": 1, "trainer.log_every_n_steps": 2}
        )
        before = (cut / "runs" / "mntp" / "encoder" / "encoder.json").stat().st_mtime_ns
        for steps in ("2", "1"):
            free = ("--trainer.max_steps", steps, "--model.chunk_tokens", "40")
            output = runs.run("fit", "--config", config, *free, cwd=cut)
            assert "runs/mntp is finished after 2 steps: its encoder is in runs/mntp/encoder. Nothing to do." in output
        assert (cut / "runs" / "mntp" / "encoder" / "encoder.json").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        ("option", "value", "said"),
        [
            ("--model.lora.alpha", "16", "model.lora.alpha 8.0 -> 16.0"),
            ("--model.optimizer.lr", "1e-3", "model.optimizer.lr 0.005 -> 0.001"),
        ],
    )
    def test_with_another_setting_is_an_error(
        self, option: str, value: str, said: str, place: Path, cut: Path, tiny_llama: Path
    ) -> None:
        config = stage(place, cut, tiny_llama, "MNTP")
        saved = next((cut / "runs" / "mntp").rglob("config.yaml")).read_text()
        error = fails("fit", "--config", config, "--trainer.max_steps", "2", option, value, cwd=cut)
        assert error.startswith(f"error: runs/mntp is finished and must stay what it is; changed since: {said}.")
        assert "new trainer.default_root_dir, or remove runs/mntp" in error
        assert next((cut / "runs" / "mntp").rglob("config.yaml")).read_text() == saved

    def test_by_an_older_version_says_so(self, place: Path, cut: Path, tiny_llama: Path) -> None:
        note = cut / "runs" / "mntp" / "finished.json"
        note.write_text(json.dumps({"steps": 2, "max_steps": 2, "max_epochs": -1}))
        config = stage(place, cut, tiny_llama, "MNTP")
        output = runs.run("fit", "--config", config, "--trainer.max_steps", "2", cwd=cut)
        assert "by an older version, which noted no settings to compare" in output and "Nothing to do" in output


class TestUpstream:
    @pytest.fixture
    def chain(self, tmp_path: Path, tiny_llama: Path) -> Path:
        """mntp and simcse on it, both finished, and mntp trained again, longer."""
        runs.write_data(tmp_path, rows=24)
        (tmp_path / "recipe").mkdir()
        for name, start in (("MNTP", tiny_llama), ("SimCSE", "runs/mntp/encoder")):
            config = runs.write_stage(tmp_path, name, start, steps=2)
            runs.run("fit", "--config", config, cwd=tmp_path)
            config.rename(tmp_path / "recipe" / config.name)
        return tmp_path

    def test_an_encoder_that_was_trained_again_is_noticed(self, chain: Path) -> None:
        simcse = chain / "recipe" / "simcse.yaml"
        longer = ("--trainer.max_steps", "3", "--model.schedule.total_steps", "4")
        runs.run("fit", "--config", "recipe/mntp.yaml", *longer, cwd=chain)
        adapters = r"adapters \[\"mntp [0-9a-f]{12}…\"\] -> \[\"mntp [0-9a-f]{12}…\"\]"
        error = fails("fit", "--config", simcse, cwd=chain)
        assert re.search(rf"runs/simcse is finished and must stay what it is; changed since: {adapters}\.", error)
        error = fails("fit", "--config", simcse, "--trainer.max_steps", "4", cwd=chain)
        assert re.search(rf"a run must go on as it began; changed since .*step=2\.ckpt: {adapters}\.", error)


def test_max_time_is_no_end(place: Path, tmp_path: Path, tiny_llama: Path) -> None:
    slow = [{"class_path": "pace.Pace", "init_args": {"seconds": 0.4}}]
    config = stage(place, tmp_path, tiny_llama, "MNTP", root="run", **{"trainer.callbacks": slow})
    for _ in range(2):
        status, output = runs.start("fit", "--config", config, "--trainer.max_time", "00:00:00:01", cwd=tmp_path).wait()
        assert status == 124, output
        step = int(re.search(r"stopped by trainer\.max_time at step (\d)", output)[1])  # type: ignore[index]
        assert 0 < step < 6 and "go on from run/checkpoints" in output.replace("goes on", "go on")
        assert not (tmp_path / "run" / "finished.json").exists() and not (tmp_path / "run" / "encoder").exists()
    output = runs.run("fit", "--config", config, cwd=tmp_path)
    assert f"resumes from run/checkpoints/step={step}.ckpt" in output and (tmp_path / "run" / "finished.json").exists()


def test_more_epochs_beside_max_steps_go_on(place: Path, tmp_path: Path, tiny_llama: Path) -> None:
    config = stage(place, tmp_path, tiny_llama, "MNTP", root="run")  # three steps an epoch
    assert "step 3/" in runs.run("fit", "--config", config, "--trainer.max_epochs", "1", cwd=tmp_path)
    assert "Nothing to do" in runs.run("fit", "--config", config, "--trainer.max_epochs", "1", cwd=tmp_path)
    output = runs.run("fit", "--config", config, "--trainer.max_epochs", "3", cwd=tmp_path)
    assert "step 6/6" in output and "goes on with trainer.max_epochs 1 -> 3" in output


class TestInherited:
    @pytest.fixture(scope="class")
    def start(self, tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
        """A causal encoder that pools the last token, and whose start token `auto` would not choose."""
        folder = tmp_path_factory.mktemp("causal")
        runs.write_data(folder, rows=24)
        settings: dict[str, object] = {"model.init_args.backbone.attention": "causal"}
        settings |= {"model.init_args.pooling": "last_token"}
        settings |= {"model.init_args.backbone.start_token": "</s>", "model.init_args.pool_start": False}
        config = runs.write_stage(folder, "Supervised", tiny_llama, root="first", steps=2, **settings)
        runs.run("fit", "--config", config, cwd=folder)
        return folder

    def card(self, root: Path) -> list[Any]:
        card = json.loads((root / "encoder" / "encoder.json").read_text())
        return [card[name] for name in ("attention", "pooling", "max_length", "start_token", "pool_start")]

    def test_what_is_left_unset_comes_from_the_encoder(self, start: Path) -> None:
        config = runs.write_stage(start, "SimCSE", "first/encoder", root="same", steps=2)
        config.write_text(re.sub(r"\n    max_length: 64", "", config.read_text()))
        output = runs.run("fit", "--config", config, cwd=start)
        assert self.card(start / "same") == ["causal", "last_token", 64, "</s>", False]
        assert "other than" not in output and "start token: </s>, not pooled" in output

    def test_what_is_set_is_in_force_and_said(self, start: Path) -> None:
        settings = {"model.init_args.backbone.attention": "bidirectional", "model.init_args.pooling": "mean"}
        settings |= {"model.init_args.backbone.start_token": "<s>"}
        config = runs.write_stage(start, "SimCSE", "first/encoder", root="other", steps=2, **settings)
        output = runs.run("fit", "--config", config, cwd=start)
        assert self.card(start / "other") == ["bidirectional", "mean", 64, "<s>", False]
        assert "other than first/encoder: attention causal -> bidirectional, pooling last_token -> mean" in output
        assert "start_token </s> -> <s>" in output
