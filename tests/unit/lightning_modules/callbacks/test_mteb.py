"""MTEB during training, in the real command, with real mteb on a small local copy of STSBenchmark."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mteb
import pytest
import runs
import torch
from sts import write_sts

from datamodules import Source
from lightning_modules.callbacks import MTEB, MTEBSettings
from otherside.encoder import Encoder
from otherside.evaluation.tasks import load

NAME = "STSBenchmark"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mteb")
    runs.write_data(folder, rows=48)
    write_sts(folder / "data")
    return folder


def stage(place: Path, llama: Path, stage: str = "MNTP", root: str = "run", steps: int = 4, **settings: Any) -> Path:
    settings["model.init_args.optimizer.init_args.lr"] = 0.05  # so that scores move
    block = {"tasks": [NAME], "data": "data"}
    block.update({key[5:]: settings.pop(key) for key in list(settings) if key.startswith("mteb.")})
    return runs.write_stage(place, stage, llama, root=root, steps=steps, mteb=block, **settings)


def said(output: str) -> dict[int, float]:
    """Score by step."""
    found = re.findall(rf"^mteb at step (\d+): {NAME} (-?[\d.]+)  mean \2", output, re.MULTILINE)
    return {int(step): float(score) for step, score in found}


def score_of(encoder: Any, data: Path) -> float:
    """What mteb itself finds."""
    task = mteb.get_task(NAME)
    load(task, data)
    return mteb.evaluate(encoder, task, cache=None, show_progress_bar=False).task_results[0].get_score()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "ranks"), [("MNTP", 1), ("Supervised", 2)])
def test_training_does_not_notice(name: str, ranks: int, place: Path, tiny_llama: Path) -> None:
    settings = {"model.init_args.lora.dropout": 0.2, "model.init_args.backbone.attention_dropout": 0.1}
    config = stage(place, tiny_llama, name, f"with-{name}-{ranks}", 10, **{"mteb.every_n_steps": 5, **settings})
    output = runs.run_ranks(ranks, "fit", "--config", config, cwd=place)
    assert list(said(output)) == [0, 5, 10]
    without = (*("fit", "--config", config, "--mteb.tasks", "null"), "--trainer.default_root_dir", f"no-{name}-{ranks}")
    assert not said(runs.run_ranks(ranks, *without, cwd=place))
    runs.assert_equal(*(runs.adapter(place / f"{kind}-{name}-{ranks}") for kind in ("with", "no")))


@pytest.mark.slow
def test_every_way_gives_the_same_score(place: Path, tiny_llama: Path) -> None:
    config = stage(place, tiny_llama, "MNTP", "ways", **{"mteb.at_start": False})
    fitted = said(runs.run_ranks(2, "fit", "--config", config, cwd=place))
    tested = said(runs.run("test", "--config", config, cwd=place))
    both = said(runs.run_ranks(2, "test", "--config", config, cwd=place))
    encoder = Encoder.load(place / "ways" / "encoder")
    expected = score_of(encoder, place / "data")
    assert list(fitted) == list(tested) == list(both) == [4]
    for found in (fitted, tested, both):
        assert found[4] == pytest.approx(expected, abs=1e-4)


def test_results_are_written_as_mteb_does_and_never_reused(place: Path, tiny_llama: Path) -> None:
    config = stage(place, tiny_llama, "MNTP", "results", **{"mteb.every_n_steps": 2})
    found = said(runs.run("fit", "--config", config, cwd=place))
    results = mteb.ResultCache(place / "results" / "mteb").load_results(tasks=[mteb.get_task(NAME)])
    written = {int(r.model_revision.split("-step")[1]): r.task_results[0].get_score() for r in results.model_results}
    assert {step: round(score, 4) for step, score in written.items()} == found
    assert len(set(found.values())) > 1
    [meta, *_] = (place / "results" / "mteb").rglob("*step4/model_meta.json")
    kept = json.loads(meta.read_text())
    assert kept["name"] == f"otherside/{tiny_llama.name}-mntp" and kept["adapted_from"] == str(tiny_llama.resolve())
    assert (kept["embed_dim"], kept["max_tokens"], kept["similarity_fn_name"]) == (64, 64, "cosine")
    lora = 4 * 2 * (64 + 64 + 64 + 32 + 64 + 32 + 64 + 64 + 3 * (64 + 128))  # two layers, seven projections of rank 4
    assert kept["n_parameters"] == 99_648 + lora


def test_instructions_change_scores(place: Path, tiny_llama: Path) -> None:
    config = stage(place, tiny_llama, "MNTP", "plain", 2, **{"mteb.at_end": False})
    plain = said(runs.run("fit", "--config", config, cwd=place))
    told = ("--mteb.instructions", '{"STSBenchmark": "Say the same: "}', "--trainer.default_root_dir", "told")
    output = runs.run("fit", "--config", config, *told, cwd=place)
    assert said(output)[0] != plain[0]
    expected = score_of(Encoder.load(tiny_llama, max_length=64).mteb({"STS": "Say the same: "}), place / "data")
    assert said(output)[0] == pytest.approx(expected, abs=1e-4)


def test_forgotten_instructions_are_said() -> None:
    def said(*sources: Source, **asked: str) -> str:
        data = SimpleNamespace(sources=sources, kind="pair")
        return MTEB(MTEBSettings(tasks=NAME, instructions=asked))._forgotten(data)

    one, other = Source("a.jsonl", instruction="Find: "), Source("b.jsonl", instruction="Ask: ")
    assert said(one).endswith('set mteb.instructions: {"query": "Find: "}')
    assert said(one, other).endswith('set mteb.instructions: {"TASK": "Find: "}')
    assert said(one, query="Find: ") == said(Source("a.jsonl")) == ""


@pytest.mark.parametrize("ranks", [1, 2])
def test_scores_choose_checkpoints_and_stop_training(ranks: int, place: Path, tiny_llama: Path) -> None:
    best = {"monitor": f"mteb/{NAME}", "mode": "max", "every_n_train_steps": 1, "filename": "{step}", "dirpath": "best"}
    stop = {"monitor": "mteb/mean", "mode": "max", "patience": 3, "min_delta": 1.0}  # never so much better
    callbacks = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": best | {"dirpath": f"best{ranks}"}},
        {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": stop},
    ]
    settings = {"mteb.every_n_steps": 2, "trainer.callbacks": callbacks, "trainer.max_epochs": 5}
    config = stage(place, tiny_llama, "MNTP", f"monitor{ranks}", 30, **settings)
    found = said(runs.run_ranks(ranks, "fit", "--config", config, cwd=place))
    assert list(found) == [0, 2, 4, 6]  # at the evaluation, not at the end of an epoch of six steps
    [chosen] = (place / f"best{ranks}").iterdir()
    found.pop(0)
    assert chosen.name == f"step={max(found, key=lambda step: found[step])}.ckpt"
    again = runs.run_ranks(ranks, "fit", "--config", config, "--trainer.max_steps", "31", cwd=place)
    assert not said(again) and "step 7/" not in again  # stopped is stopped


def test_the_encoder_is_that_of_the_best_score(place: Path, tiny_llama: Path) -> None:
    best = {"mteb.every_n_steps": 1, "checkpoints.best": "mteb/mean", "model.init_args.schedule.total_steps": 100}
    config = stage(place, tiny_llama, "Supervised", "best", 6, **best)
    output = runs.run("fit", "--config", config, cwd=place)
    found = said(output)
    found.pop(0)
    step = max(found, key=lambda step: found[step])
    assert step < 6, "the last step is the best: choose another seed"
    assert f"encoder/ is that of step={step}.ckpt: mteb/mean {found[step]:.4f}" in output
    encoder = Encoder.load(place / "best")
    assert json.loads((place / "best" / "encoder" / "encoder.json").read_text())["steps"] == step
    assert score_of(encoder, place / "data") == pytest.approx(found[step], abs=1e-4)
    assert list(said(runs.run("test", "--config", config, cwd=place))) == [step]


def test_after_a_resume_no_score_is_missing(place: Path, tiny_llama: Path) -> None:
    mine = {"dirpath": "mine", "filename": "{step}-{mteb/mean:.4f}", "save_top_k": -1, "every_n_train_steps": 1}
    mine["auto_insert_metric_name"] = False  # it would put a slash there
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": mine}]
    config = stage(place, tiny_llama, "MNTP", "resumed", 4, **{"mteb.at_end": False, "trainer.callbacks": callbacks})
    fit = ("fit", "--config", config)
    found = said(runs.run(*fit, "--trainer.max_steps", "2", cwd=place))
    assert list(found) == [0]
    assert not said(runs.run(*fit, cwd=place))  # the start was evaluated, and is not again
    assert sorted(path.stem for path in (place / "mine").iterdir()) == [f"{n}-{found[0]:.4f}" for n in range(1, 5)]
    state = torch.load(place / "resumed" / "checkpoints" / "step=4.ckpt" / "state.pt", weights_only=True)
    [kept] = (value for key, value in state["callbacks"].items() if key.startswith("MTEB"))
    assert kept["step"] == 0 and set(kept["metrics"]) == {f"mteb/{NAME}", "mteb/mean"}


def test_tasks_that_do_not_fit_are_named_and_there_is_no_mean(place: Path, tiny_llama: Path) -> None:
    config = stage(place, tiny_llama, "MNTP", "late", 2, **{"mteb.time_budget": "0.001s"})
    output = runs.run_ranks(2, "fit", "--config", config, cwd=place)
    assert f"mteb at step 2:   left out, as mteb.time_budget is spent: {NAME}" in output and "mean" not in output


@pytest.mark.parametrize(("last", "ranks"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_an_evaluation_that_was_stopped_is_made_when_the_run_goes_on(
    last: int, ranks: int, place: Path, tiny_llama: Path
) -> None:
    asks = {"trainer.callbacks": [{"class_path": "pace.Ask", "init_args": {"batch": 1}}]}
    name = f"asked-{last}-{ranks}"
    config = stage(place, tiny_llama, "MNTP", name, last, **{"mteb.every_n_steps": 2, **asks})
    fit = ("fit", "--config", config)
    for status, output in [run.wait(60) for run in runs.start_ranks(ranks, *fit, cwd=place)][::-1]:
        assert status == 128 + signal.SIGUSR1, output
    assert "mteb at step 2: stopped" in output and list(said(output)) == [0]
    assert f"{name}/checkpoints/stopped-step=2.ckpt" in output
    output = runs.run_ranks(ranks, *fit, "--trainer.callbacks", "[]", cwd=place)
    assert list(said(output)) == list(range(2, last + 1, 2))


def watch_where_the_model_is() -> None:
    """For ranks whose device is the host: a model that Lightning has moved there would leave a GPU."""
    from lightning_modules.base import EncoderModule

    moved, placed, predict = EncoderModule.cpu, EncoderModule.to, EncoderModule.predict_step
    at_home = [True]

    def cpu(self: Any) -> Any:
        at_home[0] = False
        return moved(self)

    def to(self: Any, *device: Any) -> Any:
        at_home[0] = True
        return placed(self, *device)

    def look(self: Any, *batch: Any) -> Any:
        assert at_home[0], "encodes on the host"
        return predict(self, *batch)

    EncoderModule.cpu, EncoderModule.to, EncoderModule.predict_step = cpu, to, look  # type: ignore[method-assign]


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_whose_last_evaluation_was_stopped_is_not_finished(ranks: int, place: Path, tiny_llama: Path) -> None:
    """Behind the last epoch, then where a run is resumed behind its last step."""
    ask = {"trainer.callbacks": [{"class_path": "pace.Ask", "init_args": {"batch": 5}}]}
    name = f"ends-{ranks}"
    epochs = {"trainer.max_epochs": 1, "trainer.max_steps": -1, "model.init_args.schedule.total_steps": 6}
    fit = ("fit", "--config", stage(place, tiny_llama, "MNTP", name, **{"mteb.at_start": False, **ask, **epochs}))
    early = ("--trainer.callbacks", '[{"class_path": "pace.Ask", "init_args": {"batch": null}}]')
    for options in ((), early):
        for status, output in [run.wait(60) for run in runs.start_ranks(ranks, *fit, *options, cwd=place)][::-1]:
            assert status == 128 + signal.SIGUSR1, output
        assert not [path for path in ("encoder", "finished.json") if (place / name / path).exists()]
    assert "mteb at step 6: stopped" in output and "stopped by SIGUSR1" in output
    last = runs.start_ranks(ranks, *fit, "--trainer.callbacks", "[]", cwd=place, before=watch_where_the_model_is)
    output = runs.wait_ranks(last)[0][1]
    assert list(said(output)) == [6] and "finished: " in output


@pytest.mark.parametrize("ranks", [1, 2])
def test_an_evaluation_before_training_that_was_stopped_is_made_too(ranks: int, place: Path, tiny_llama: Path) -> None:
    asks = {"trainer.callbacks": [{"class_path": "pace.Ask", "init_args": {"batch": None}}]}
    fit = ("fit", "--config", stage(place, tiny_llama, "MNTP", f"early-{ranks}", 2, **asks))
    for status, output in [run.wait(60) for run in runs.start_ranks(ranks, *fit, cwd=place)][::-1]:
        assert status == 128 + signal.SIGUSR1, output
    assert "stopped by SIGUSR1; run the same command again to go on\n" in output and "step 1/" not in output
    assert list(said(runs.run_ranks(ranks, *fit, "--trainer.callbacks", "[]", cwd=place))) == [0, 2]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5 h", 5400), ("7", 7)])
def test_time_budget(text: str, seconds: float) -> None:
    assert MTEBSettings(time_budget=text).seconds == seconds


class Broken(RuntimeError):
    """What goes wrong on one rank."""


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_rank_ends_all(
    rank: int, place: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otherside import serving

    answer = serving.Serving._answer

    def fail(self: Any, *request: Any) -> Any:  # an error that only one rank has cannot be had from outside
        if serving.rank() == rank:
            self._prepare = lambda *_: (_ for _ in ()).throw(Broken("out of paper"))
        return answer(self, *request)

    monkeypatch.setattr(serving.Serving, "_answer", fail)
    config = stage(place, tiny_llama, "MNTP", f"broken{rank}", 2)
    ranks = runs.start_ranks(2, "fit", "--config", config, cwd=place)
    outputs = [process.wait(60) for process in ranks]
    for status, output in outputs:
        assert status == 1 and f"rank {rank} could not encode its texts: out of paper" in output
