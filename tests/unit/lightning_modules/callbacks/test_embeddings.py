"""`lightning predict`: vectors of a corpus in a Parquet file."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs

from lightning_modules.callbacks.embeddings import FILE, Embeddings
from otherside.encoder import Encoder


@pytest.mark.parametrize("stage", ["MNTP", "Supervised"])
def test_vectors_are_those_of_the_encoder_in_the_order_of_the_input(
    stage: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """Cut where `Encoder.encode` cuts, at model.max_length: data.max_length is for training."""
    runs.write_data(tmp_path, rows=21)
    more = ["A last text.", "And another, longer one, with commas, too.", "far " * 100]
    (tmp_path / "more.txt").write_text("\n \n".join(more) + "\n")  # blank lines are counted, and have no vector
    sources = [{"path": "sentences.txt"}, {"path": "more.txt", "instruction": "Embed: "}]
    settings = {"data.init_args.predict_sources": sources, "model.init_args.chunk_tokens": 40}
    settings["data.init_args.max_length"] = 16
    config = runs.write_stage(tmp_path, stage, tiny_llama, root="run", steps=2, **settings)
    runs.run("fit", "--config", config, cwd=tmp_path)
    output = runs.run("predict", "--config", config, cwd=tmp_path)
    assert "reads run/checkpoints/step=2.ckpt" in output
    assert f"24 vectors are in run/{FILE}" in output
    table = pq.read_table(tmp_path / "run" / FILE)
    assert table["row"].to_pylist() == [*range(22), 23, 25]
    encoder = Encoder.load(tmp_path / "run" / "encoder")
    texts = (tmp_path / "sentences.txt").read_text().splitlines()
    expected = np.concatenate([encoder.encode(texts), encoder.encode(more, instruction="Embed: ")])
    assert np.abs(np.array(table["vector"].to_pylist()) - expected).max() < 1e-5 * np.abs(expected).max()
    assert sorted(path.name for path in (tmp_path / "run").glob("*.parquet*")) == [FILE]


def test_without_a_checkpoint_it_says_that_the_adapter_is_untrained(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=8)
    settings = {"data.init_args.predict_sources": [{"path": "sentences.txt"}]}
    config = runs.write_stage(tmp_path, "MNTP", tiny_llama, root="run", **settings)
    assert "no checkpoint yet, so the adapter is untrained" in runs.run("predict", "--config", config, cwd=tmp_path)


def test_another_instruction_than_that_of_training_is_told(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=8)
    corpora = [{"path": "sentences.txt", "instruction": told} for told in ("Ask: ", "", "Other: ")]
    settings = {"data.init_args.predict_sources": corpora}
    settings["data.init_args.sources"] = [{"path": "pairs.jsonl", "instruction": "Ask: "}]
    config = runs.write_stage(tmp_path, "Supervised", tiny_llama, root="run", **settings)
    output = runs.run("predict", "--config", config, cwd=tmp_path)
    assert output.count("note: ") == 1
    assert "trained with 'Ask: ' or '' before texts; the instruction of sentences.txt is 'Other: '" in output


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[str | Path, ...]:
    """The command that embeds 800 texts in 25 batches, in parts of four batches each."""
    folder = tmp_path_factory.mktemp("corpus")
    runs.write_data(folder, rows=800)
    settings = {"data.init_args.predict_sources": [{"path": "sentences.txt"}], "data.init_args.global_batch_size": 32}
    return "predict", "--config", runs.write_stage(folder, "MNTP", tiny_llama, root="run", **settings)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.callbacks.embeddings.ROWS", 128)


def embed(corpus: tuple[str | Path, ...], root: str, ranks: int = 1, strategy: str = "auto") -> Path:
    folder = Path(corpus[-1]).parent
    options = ("--trainer.default_root_dir", root, "--trainer.strategy", strategy)
    runs.run_ranks(ranks, *corpus, *options, cwd=folder)
    assert sorted(path.name for path in (folder / root).iterdir() if "predictions" in path.name) == [FILE]
    return folder / root / FILE


@pytest.fixture(scope="module")
def expected(corpus: tuple[str | Path, ...]) -> Path:
    """What one rank writes that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_modules.callbacks.embeddings.ROWS", 128)
        return embed(corpus, "whole")


def test_a_run_that_was_killed_goes_on_and_leaves_the_same_file(
    corpus: tuple[str | Path, ...], expected: Path, small_parts: None
) -> None:
    folder = Path(corpus[-1]).parent
    command = runs.start(*corpus, "--trainer.default_root_dir", "cut", cwd=folder)
    while not len(list((folder / "cut").rglob("*-0.parquet"))) > 1:
        time.sleep(0.005)
    command.kill()
    command.wait()
    assert not (folder / "cut" / FILE).exists()
    output = runs.run(*corpus, "--trainer.default_root_dir", "cut", cwd=folder)
    [behind] = re.findall(r"predict goes on behind batch (\d+)", output)
    assert int(behind) >= 8 and int(behind) % 4 == 0
    assert (folder / "cut" / FILE).read_bytes() == expected.read_bytes()


def test_killed_before_the_parts_were_joined(corpus: tuple[str | Path, ...], expected: Path, small_parts: None) -> None:
    folder = Path(corpus[-1]).parent
    command = runs.start(*corpus, "--trainer.default_root_dir", "parts", cwd=folder)
    while not (folder / "parts" / ".predictions" / "00000006-0.parquet").exists():
        time.sleep(0.001)
    command.kill()
    command.wait()
    assert embed(corpus, "parts").read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("setting", ["max_length=8", "pool_start=false", "rescaled=true"])
def test_parts_of_other_settings_are_not_used(setting: str, corpus: tuple[str | Path, ...], small_parts: None) -> None:
    folder = Path(corpus[-1]).parent
    command = runs.start(*corpus, "--trainer.default_root_dir", setting, cwd=folder)
    while not list((folder / setting).rglob("*-0.parquet")):
        time.sleep(0.005)
    command.kill()
    command.wait()
    more = ("--trainer.default_root_dir", setting, f"--model.init_args.{setting}")
    assert "goes on" not in runs.run(*corpus, *more, cwd=folder)


def test_parts_of_another_checkpoint_are_not_used(corpus: tuple[str | Path, ...], small_parts: None) -> None:
    folder = Path(corpus[-1]).parent
    there = ("--trainer.default_root_dir", "trained")
    runs.run("fit", *corpus[1:], *there, "--trainer.max_steps", "2", cwd=folder)
    command = runs.start(*corpus, *there, cwd=folder)
    while not list((folder / "trained").rglob("*-0.parquet")):
        time.sleep(0.005)
    command.kill()
    command.wait()
    runs.run("fit", *corpus[1:], *there, "--trainer.max_steps", "4", cwd=folder)
    assert "goes on" not in runs.run(*corpus, *there, cwd=folder)
    assert "reads trained/checkpoints/step=4.ckpt" in runs.run(*corpus, *there, cwd=folder)


@pytest.mark.parametrize("ranks", [1, 2])
def test_vectors_of_other_texts_or_weights_are_not_overwritten(
    ranks: int, corpus: tuple[str | Path, ...], expected: Path
) -> None:
    folder, there = Path(corpus[-1]).parent, ("--trainer.default_root_dir", f"kept-{ranks}")
    (folder / "other.txt").write_text("A text.\nAnother.\n")
    first = ("--data.sources", '[{"path": "sentences.txt"}]', "--data.predict_sources", '[{"path": "other.txt"}]')
    runs.run_ranks(ranks, *corpus, *there, *first, cwd=folder)
    path = folder / f"kept-{ranks}" / FILE
    written = path.read_bytes()
    for change, name in (((), "data"), ((*first, "--model.max_length", "8"), "model, data")):
        started = runs.start_ranks(ranks, *corpus, *there, *change, cwd=folder) if ranks > 1 else [
            runs.start(*corpus, *there, *change, cwd=folder)
        ]  # fmt: skip
        for rank in started:
            status, output = rank.wait()
            assert status == 1, output
            assert f"{FILE} is of other settings ({name})" in output and "Move it away" in output
    assert path.read_bytes() == written
    runs.run_ranks(3 - ranks, *corpus, *there, *first, cwd=folder)  # the number of ranks changes no vector
    table = pq.read_table(path)
    path.unlink()
    pq.write_table(table.replace_schema_metadata(None), path)  # who knows what this is
    status, output = runs.start(*corpus, *there, *first, cwd=folder).wait()
    assert status == 1 and "is of other settings (unknown)" in output


def test_joining_may_take_longer_than_ranks_wait(
    corpus: tuple[str | Path, ...], small_parts: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    join = Embeddings._join

    def slowly(self: Embeddings, *where: Any) -> None:  # as many gigabytes would take
        time.sleep(8)
        join(self, *where)

    monkeypatch.setattr(Embeddings, "_join", slowly)
    folder, there = Path(corpus[-1]).parent, ("--trainer.default_root_dir", "slow")
    strategy = ("--trainer.strategy", "DDP", "--trainer.strategy.timeout", "6")
    assert "800 vectors" in runs.run_ranks(2, *corpus, *there, *strategy, cwd=folder)


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_two_ranks_write_what_one_writes(
    strategy: str, corpus: tuple[str | Path, ...], expected: Path, small_parts: None
) -> None:
    one, two = pq.read_table(expected), pq.read_table(embed(corpus, strategy, 2, strategy))
    assert one["row"] == two["row"] and one["row"].to_pylist() == list(range(800))
    vectors = [np.stack(table["vector"].to_numpy()) for table in (one, two)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5 * np.abs(vectors[0]).max()


def test_progress_is_told(corpus: tuple[str | Path, ...]) -> None:
    folder = Path(corpus[-1]).parent
    output = runs.run(*corpus, "--trainer.default_root_dir", "told", "--trainer.log_every_n_steps", "10", cwd=folder)
    told = re.findall(r"^batch (\d+)/25  left 0:00:\d\d$", output, re.MULTILINE)
    assert told == ["10", "20", "25"]
