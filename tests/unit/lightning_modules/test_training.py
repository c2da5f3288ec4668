"""LightningCLI with this project's defaults, through the real command."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import yaml
from safetensors.torch import load_file

from lightning_modules.report.runs import Run
from lightning_modules.training import lock


@pytest.fixture
def place(tmp_path: Path) -> Path:
    runs.write_data(tmp_path, rows=24)
    return tmp_path


def test_a_later_file_wins_over_an_included_one_and_a_flag_over_both(place: Path, tiny_llama: Path) -> None:
    config = runs.write_stage(place, "MNTP", tiny_llama, root="run", include="limits.yaml")
    content = yaml.safe_load(config.read_text())
    del content["trainer"]["max_steps"]
    config.write_text(yaml.safe_dump(content))
    (place / "limits.yaml").write_text("trainer: {max_steps: 2, default_root_dir: elsewhere}\nseed_everything: 7\n")
    output = runs.run("fit", "--config", config, "--seed_everything", "8", cwd=place)
    assert "step 2/2" in output
    [saved] = (place / "run").rglob("config.yaml")
    assert yaml.safe_load(saved.read_text())["seed_everything"] == 8
    assert (place / "run" / "encoder").is_dir() and not (place / "elsewhere").exists()


def test_keep_counts_the_checkpoints_of_earlier_lives(place: Path, tiny_llama: Path) -> None:
    config, folder = runs.write_stage(place, "MNTP", tiny_llama, root="run", steps=4), place / "run" / "checkpoints"

    def names(steps: str) -> list[str]:
        runs.run("fit", "--config", config, "--trainer.max_steps", steps, cwd=place)
        return sorted(path.name for path in folder.iterdir())

    assert names("4") == ["step=2.ckpt", "step=4.ckpt"]
    shutil.copytree(folder / "step=2.ckpt", folder / "best-step=2.ckpt")  # somebody else's
    for left in ("step=1.ckpt", "stopped-step=3.ckpt"):  # by a kill before it was removed; by SIGTERM
        shutil.copytree(folder / "step=2.ckpt", folder / left)
    assert names("8") == ["best-step=2.ckpt", "step=6.ckpt", "step=8.ckpt"]
    assert names("11") == ["best-step=2.ckpt", "step=10.ckpt", "step=11.ckpt"]


def test_a_list_replaces_an_earlier_one_of_the_same_length(place: Path, tiny_llama: Path) -> None:
    """Merged item by item, the new source would be read with the old one's fields, instruction and weight."""
    old = {"path": "old.jsonl", "fields": {"text": "sentence"}, "instruction": "Old: ", "weight": 2.0}
    config = runs.write_stage(place, "MNTP", tiny_llama, root="run", **{"data.init_args.sources": [old]})
    bar = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor", "init_args": {"log_momentum": True}}
    (place / "bar.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [bar]}}))
    (place / "new.yaml").write_text("data: {init_args: {sources: [{path: new.jsonl}]}}")
    short = '[{"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}]'

    def parsed(*options: str | Path) -> dict[str, Any]:
        shown = runs.run("fit", "--config", config, *options, "--print_config", cwd=place)
        return yaml.safe_load(shown[shown.index("seed_everything") :])

    untouched = {"fields": {}, "instruction": "", "document_instruction": "", "weight": None}
    for options in (["--data.sources", '[{"path": "new.jsonl"}]'], ["--config", "new.yaml"]):
        [source] = parsed(*options)["data"]["init_args"]["sources"]
        assert source["path"] == "new.jsonl"
        assert {name: source[name] for name in untouched} == untouched
    [callback] = parsed("--config", "bar.yaml", "--trainer.callbacks", short)["trainer"]["callbacks"]
    assert callback.get("init_args", {}).get("log_momentum", False) is False
    assert parsed("--data.max_length", "20")["data"]["init_args"]["sources"][0]["fields"] == {"text": "sentence"}


@pytest.mark.parametrize("stage", ["MNTP", "Supervised"])
def test_the_seed_decides_a_run(stage: str, place: Path, tiny_llama: Path) -> None:
    config = runs.write_stage(place, stage, tiny_llama, steps=2, **{"model.init_args.lora.dropout": 0.0})

    def losses(seed: str) -> list[str]:
        flags = ("--seed_everything", seed, "--trainer.default_root_dir", f"run-{seed}", "--trainer.max_steps", "1")
        return re.findall(r"train/loss (\S+)", runs.run("fit", "--config", config, *flags, cwd=place))

    first = losses("9")
    (place / "run-9").rename(place / "earlier")
    assert losses("9") == first
    assert losses("10") != first  # other rows; for MNTP also other masks


def test_a_run_leaves_everything_in_its_folder(place: Path, tiny_llama: Path) -> None:
    before = {path.name for path in place.iterdir()}
    config = runs.write_stage(place, "SimCSE", tiny_llama, root="runs/simcse", steps=4)
    runs.run("fit", "--config", config, cwd=place)
    assert {path.name for path in place.iterdir()} - before == {"simcse.yaml", "runs"}
    root = place / "runs" / "simcse"
    assert {path.name for path in (root / "checkpoints").iterdir()} == {"step=2.ckpt", "step=4.ckpt"}
    assert list(root.rglob("events.out.*")) and (root / "finished.json").is_file()


def test_only_the_newest_checkpoints_stay(place: Path, tiny_llama: Path) -> None:
    settings = {"checkpoints.every_n_steps": 1, "checkpoints.keep": 3}
    config = runs.write_stage(place, "MNTP", tiny_llama, root="run", steps=6, **settings)
    runs.run("fit", "--config", config, cwd=place)
    found = {path.name for path in (place / "run" / "checkpoints").iterdir()}
    assert found == {"step=4.ckpt", "step=5.ckpt", "step=6.ckpt"}


def test_validate_reads_the_newest_checkpoint(place: Path, tiny_llama: Path) -> None:
    settings = {"data.init_args.val_sources": [{"path": "pairs.jsonl"}]}
    config = runs.write_stage(place, "Supervised", tiny_llama, root="run", steps=4, **settings)

    def validate() -> dict[str, float]:
        output = runs.run("validate", "--config", config, cwd=place)
        assert ("reads run/checkpoints/step=4.ckpt" in output) == (place / "run" / "checkpoints").exists()
        return {name: float(value) for name, value in re.findall(r"(val/\w+)\D+([\d.]+)", output)}

    untrained = validate()
    assert not list((place / "run").rglob("events.out.*"))
    fitted = runs.run("fit", "--config", config, cwd=place)
    [validated] = [line for line in fitted.splitlines() if "val/loss" in line]  # at the epoch's end, and not repeated
    assert re.fullmatch(r"validated at step 3  val/loss \S+  val/mrr \S+", validated)
    trained = validate()
    assert set(trained) == {"val/loss", "val/mrr"}
    assert trained["val/loss"] < untrained["val/loss"] - 0.05
    assert trained["val/mrr"] > untrained["val/mrr"]


def test_settings_and_curves_are_those_of_training(place: Path, tiny_llama: Path) -> None:
    settings = {"data.init_args.val_sources": [{"path": "pairs.jsonl"}]}
    config = runs.write_stage(place, "Supervised", tiny_llama, root="run", steps=4, **settings)
    runs.run("fit", "--config", config, cwd=place)
    run = Run(place / "run", "run")
    assert run.settings_file is not None
    before, steps = run.settings_file.read_text(), [step for step, _ in run.curves["val/loss"]]
    assert steps and steps[0] > 0
    runs.run("validate", "--config", config, "--data.max_length", "20", cwd=place)
    run = Run(place / "run", "run")
    assert run.settings_file is not None
    assert run.settings_file.read_text() == before
    assert [step for step, _ in run.curves["val/loss"]] == steps


def test_help_names_stages_and_data_and_knows_their_short_names(place: Path) -> None:
    shown = runs.run("fit", "--help", cwd=place).splitlines()
    assert shown[0] == "usage: lightning fit --config STAGE.yaml [OPTIONS]"
    for option, name in (("model", "MNTP"), ("model", "SimCSE"), ("data", "Pairs"), ("data", "Sentences")):
        assert [line for line in shown[:14] if line.startswith(f"  --{option} {name} ") and line.endswith(".")]
        assert f"--{option}." in runs.run("fit", f"--{option}.help", name, cwd=place)


def test_a_logger_is_one_line(place: Path, tiny_llama: Path) -> None:
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    config = runs.write_stage(place, "MNTP", tiny_llama, root="run", steps=2, **{"trainer.logger": logger})
    runs.run("fit", "--config", config, cwd=place)
    [metrics] = (place / "logs").rglob("metrics.csv")
    assert {"train/loss", "lr", "grad_norm", "padding"} <= set(metrics.read_text().splitlines()[0].split(","))


def test_the_last_step_has_a_checkpoint_whatever_its_number(place: Path, tiny_llama: Path) -> None:
    config = runs.write_stage(place, "MNTP", tiny_llama, root="odd", steps=3)
    runs.run("fit", "--config", config, cwd=place)
    root = place / "odd"
    assert sorted(path.name for path in (root / "checkpoints").iterdir()) == ["step=2.ckpt", "step=3.ckpt"]
    kept = load_file(root / "checkpoints" / "step=3.ckpt" / "trainable.safetensors")
    assert len(kept) == len(runs.adapter(root))


def test_half_precision_without_loss_scaling_is_refused(place: Path, tiny_llama: Path) -> None:
    dtype = {"model.init_args.backbone.dtype": "float16"}
    config = runs.write_stage(place, "MNTP", tiny_llama, root="half", **dtype)
    status, output = runs.start("fit", "--config", config, cwd=place).wait(60)
    assert status == 1 and "error: backbone.dtype must be bfloat16 or float32 to train; got float16" in output


def test_what_a_killed_run_leaves_behind_does_not_hold_its_folder(tmp_path: Path) -> None:
    read, write = os.pipe()
    if not (trainer := os.fork()):
        _held = lock(tmp_path)
        if worker := os.fork():
            os.write(write, str(worker).encode())
        time.sleep(60)
        os._exit(0)
    worker = int(os.read(read, 20))
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    try:
        lock(tmp_path).close()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_what_killed_saves_left_behind_is_removed(place: Path, tiny_llama: Path) -> None:
    """A checkpoint that was moved aside for one that never came is taken up again."""
    config = runs.write_stage(place, "MNTP", tiny_llama, root="run", steps=2)
    runs.run("fit", "--config", config, cwd=place)
    root = place / "run"
    for left in (
        "checkpoints/.step=3.ckpt.tmp",
        "checkpoints/.step=1.ckpt.old",
        "best/.step=1.ckpt-old-a",
        ".encoder-a",
    ):
        (root / left / "encoder").mkdir(parents=True)
    aside = root / "checkpoints" / ".step=2.ckpt-old-a"
    aside.mkdir()
    (root / "checkpoints" / "step=2.ckpt").rename(aside / "step=2.ckpt")
    output = runs.run("fit", "--config", config, "--trainer.max_steps", "3", cwd=place)
    assert "resumes from run/checkpoints/step=2.ckpt" in output
    assert [path.name for path in root.rglob(".*")] == [".lock"]


def test_a_file_system_without_locks_is_no_other_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lockf(*_: Any) -> None:  # as Lustre without -o flock
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.warns(UserWarning, match=r"\.lock cannot be locked \(Function not implemented\)"):
        lock(tmp_path).close()
