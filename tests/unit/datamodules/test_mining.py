"""`lightning mine` against a search by hand, cut, on ranks, and its files as training reads them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import runs
from ranks import free_port, run_ranks
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from datamodules import Pairs, Source
from datamodules.mining import mine, run
from datamodules.mining.quality import Quality, told
from datamodules.mining.run import Asked, _device, run_mine
from otherside.encoder import Encoder
from otherside.lineage import Training

ASKED = Asked(3, 0.95, 1, 20)
ROWS = 23


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Distinct queries but for two of the same, with one positive in common."""
    runs.write_data(tmp_path, rows=ROWS)
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows = [{"query": f"{row['positive'][:-8]}?", "positive": row["positive"], "negatives": []} for row in rows]
    rows[7]["query"] = rows[3]["query"]
    rows[9]["positive"] = rows[3]["positive"]
    rows[4]["negatives"] = ["Something else entirely.", rows[5]["query"]]
    file = tmp_path / "mined-from.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def mined(tiny_llama: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setattr(run, "DOCUMENTS", 5)
    monkeypatch.setattr(run, "ROWS", 4)

    def mine(name: str = "out.jsonl", asked: Asked = ASKED, **options: Any) -> Path:
        out = pairs.parent / name
        run_mine(str(tiny_llama), Source(str(pairs)), out, asked, dtype="float32", device="cpu", **options)
        return out

    return mine


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("asked", [ASKED, Asked(2, 0.9, 2, 9), Asked(4, 1.0, 1, 4)])
def test_negatives_are_those_of_a_search_by_hand(
    asked: Asked, tiny_llama: Path, pairs: Path, mined: Callable[..., Path]
) -> None:
    rows, encoder = lines(pairs), Encoder.load(tiny_llama)
    texts = dict.fromkeys([*(row["positive"] for row in rows), *(text for row in rows for text in row["negatives"])])
    vectors = dict(zip(texts, encoder.encode(list(texts), normalize=True), strict=True))
    found = lines(mined(asked=asked))
    short = suspects = 0
    for row, query, made in zip(
        rows, encoder.encode([row["query"] for row in rows], normalize=True), found, strict=True
    ):
        own = {other["positive"] for other in rows if other["query"] == row["query"]} | {row["query"]}
        score = {text: float(vector @ query) for text, vector in vectors.items()}
        ranked = sorted((text for text in texts if text not in own), key=lambda text: -score[text])
        limit = asked.ceiling * score[row["positive"]]
        near = ranked[asked.first_rank - 1 : asked.last_rank]
        expected = [text for text in near if score[text] <= limit][: asked.negatives]
        assert made["negatives"] == expected
        assert made["scores"] == pytest.approx([score[text] for text in expected], abs=1e-4)
        assert made["positive_score"] == pytest.approx(score[row["positive"]], abs=1e-4)
        assert (made["query"], made["positive"]) == (row["query"], row["positive"])
        short += len(expected) < asked.negatives
        suspects += sum(score[text] > limit for text in near)
    report = json.loads((pairs.parent / "out.jsonl.report.json").read_text())
    assert report["rows_without_enough"] * ROWS == pytest.approx(short)
    assert report["likely_false_negatives_per_row"] * ROWS == pytest.approx(suspects)
    assert sum(report["histogram"]["positives"]) == ROWS
    assert not list(pairs.parent.glob(".*parts"))


def test_equal_queries_are_searched_once(mined: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    nearest, searched = run.nearest, []

    def counted(queries: Any, *others: Any) -> Any:
        searched.append(len(queries))
        return nearest(queries, *others)

    monkeypatch.setattr(run, "nearest", counted)
    monkeypatch.setattr(run, "ROWS", 10)
    mined()
    assert searched == [9, 10, 3]  # rows 3 and 7 ask the same


def test_pairs_reads_both_formats(tokenizer: PreTrainedTokenizerBase, pairs: Path, mined: Callable[..., Path]) -> None:
    asked, seen = Asked(2, 1.0, 1, 20), []
    for name in ("a.jsonl", "b.parquet"):
        data = Pairs(tokenizer, [Source(str(mined(name, asked)))], global_batch_size=4, max_length=16)
        data.setup("fit")
        seen.append(data.tables[0].rows.to_list())
    assert seen[0] == seen[1] and len(seen[0]) == ROWS and any(row["negatives"] for row in seen[0])
    assert pq.read_schema(pairs.parent / "b.parquet").names == list(run.COLUMNS)


@pytest.mark.parametrize("name", ["a.jsonl", "b.parquet"])
@pytest.mark.parametrize("kind", ["kl", "margin"])
def test_its_scores_are_a_teacher_as_they_stand(
    name: str, kind: str, tiny_llama: Path, mined: Callable[..., Path]
) -> None:
    """Mined with one encoder; what is trained for two steps learns its scores beside InfoNCE."""
    out = mined(name, Asked(2, 1.0, 1, 20))
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "run", "name": "csv"}}
    settings = {"data.init_args.sources": [{"path": out.name, "scores": True}], "trainer.logger": logger}
    config = runs.write_stage(out.parent, "Supervised", tiny_llama, root="run", steps=2, **settings)
    losses = []
    for weight in ("1e-9", "1"):
        shutil.rmtree(out.parent / "run", ignore_errors=True)
        teacher = ("--model.loss.teacher", f"{{kind: {kind}, weight: {weight}}}")
        runs.run("fit", "--config", config, *teacher, cwd=out.parent)
        losses.append(runs.metrics(out.parent / "run", "train/loss"))
    assert len(losses[0]) == 2 and losses[0][0] + 1e-5 < losses[1][0] < float("inf")


def test_a_corpus_adds_documents(pairs: Path, mined: Callable[..., Path]) -> None:
    (pairs.parent / "corpus.txt").write_text("the cat watched a window once more\n\n")
    rows = lines(mined(asked=Asked(20, 1.0, 1, 99), corpus=str(pairs.parent / "corpus.txt")))
    assert any("the cat watched a window once more" in row["negatives"] for row in rows)


@pytest.mark.parametrize("after", [0, 3, 7, 10, 11])
def test_killed_and_run_again_it_makes_the_same_file(
    after: int, pairs: Path, mined: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind so many parts of documents, then of pairs; at last while it writes the file, and its report."""
    whole = mined("whole.jsonl").read_bytes()
    made, atomic = [], run.atomic

    def counted(path: Path) -> Any:
        made.append(path.name)
        if len(made) == after + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return atomic(path)

    process = os.fork()
    if not process:
        run.atomic = counted
        mined("cut.jsonl")
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL
    assert not (pairs.parent / "cut.jsonl").exists()
    monkeypatch.setattr(run, "atomic", counted)
    made[:] = [""] * 100  # no more kills
    assert mined("cut.jsonl").read_bytes() == whole
    parts = [name for name in made[100:] if name.endswith((".npy", ".parquet"))]
    assert len(parts) == 5 + 6 - after


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_make_the_same_file(count: int, pairs: Path, mined: Callable[..., Path]) -> None:
    run_ranks(count, lambda: mined("ranks.jsonl") and None)
    assert (pairs.parent / "ranks.jsonl").read_bytes() == mined("one.jsonl").read_bytes()


def test_tasks_of_a_slurm_job_share_it(tiny_llama: Path, pairs: Path, mined: Callable[..., Path]) -> None:
    """As srun starts them, each with the step's variables and those of slurm/stage.sbatch."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    options = ("--negatives", ASKED.negatives, "--last_rank", ASKED.last_rank, "--dtype", "float32")
    command = ("mine", tiny_llama, pairs, "--out", "slurm.jsonl", *map(str, options))
    tasks = [
        runs.start(*command, cwd=pairs.parent, environment={**step, "SLURM_PROCID": rank, "SLURM_LOCALID": rank})
        for rank in ("0", "1")
    ]
    (status, said), (other, nothing) = (task.wait() for task in tasks)
    assert status == other == 0 and "rows are in" in said and "rows are in" not in nothing
    assert (pairs.parent / "slurm.jsonl").read_bytes() == mined("one.jsonl").read_bytes()


def test_a_task_knows_its_place_on_its_node(mined: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "3"}
    monkeypatch.setattr(os, "environ", {**os.environ, **slurm})
    run._meet_ranks()
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"], os.environ["WORLD_SIZE"]) == ("0", "3", "1")
    monkeypatch.setattr(os, "environ", {**os.environ, **slurm, "WORLD_SIZE": "2"})  # torchrun's, in a job
    with pytest.raises(ValueError, match="2 processes that mine together"):
        mined()


def test_tasks_that_do_not_know_each_other_are_refused(tiny_llama: Path, pairs: Path) -> None:
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
    alone = runs.start("mine", tiny_llama, pairs, "--out", "out.jsonl", cwd=pairs.parent, environment=step)
    status, said = alone.wait()
    assert status == 1 and "error: 2 processes that mine together must know where the first is" in said


def test_columns_are_known_and_malformed_rows_left_out(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "faq.csv", tmp_path / "out.jsonl"
    file.write_text("question,answer\nWhen?,At eight.\nWhere?,\nWhy?,To sleep.\nWho?,The guard.\n")
    mine(str(tiny_llama), str(file), out=out, negatives=1, dtype="float32", device="cpu", on_bad_row="skip")
    said = capsys.readouterr().err
    assert f"malformed rows of {file} left out: 1; the first: {file}, line 3: field 'answer' must hold a text" in said
    assert [row["query"] for row in lines(out)] == ["When?", "Why?", "Who?"]


def test_names_that_are_given_are_ours_or_theirs(tiny_llama: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "a.csv", tmp_path / "out.jsonl"
    file.write_text("Frage,positive\nWann?,Um acht.\nWo?,Hier.\n")
    mine(str(tiny_llama), str(file), out=out, fields={"query": "Frage"}, negatives=1, dtype="float32", device="cpu")
    assert [row["query"] for row in lines(out)] == ["Wann?", "Wo?"]


def test_other_instructions_than_those_of_training_are_told(
    mined: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Training("supervised", prompts={"query": "Ask: ", "document": ""})
    known = run.card_of
    monkeypatch.setattr(run, "card_of", lambda encoder: replace(known(encoder), history=(trained,)))
    mined()
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert len(told) == 1 and told[0].endswith("was trained with 'Ask: ' before each query; --instruction is ''")


def test_a_finished_file_is_left_alone(mined: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    out = mined()
    before = out.stat().st_mtime_ns
    (out.parent / ".out.jsonl.parts").mkdir()  # cut before it was removed
    mined()
    assert "is finished. Nothing to do" in capsys.readouterr().err and out.stat().st_mtime_ns == before
    assert not (out.parent / ".out.jsonl.parts").exists()
    with pytest.raises(ValueError, match=r"made with other settings \(ceiling\). Move it away"):
        mined(asked=Asked(3, 0.9, 1, 20))


def test_other_weights_at_the_same_path_are_another_encoder(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "out.jsonl"
    shutil.copytree(tiny_llama, base)

    def mine() -> None:
        run_mine(str(base), Source(str(pairs)), out, ASKED, dtype="float32", device="cpu")

    mine()
    mine()
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 0.1 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"made with other settings \(encoder\)"):
        mine()


@pytest.mark.parametrize("change", ["negatives", "pairs"])
def test_parts_of_other_settings_are_made_anew(change: str, pairs: Path, mined: Callable[..., Path]) -> None:
    work = pairs.parent / ".out.jsonl.parts"
    work.mkdir()
    (work / "settings.json").write_text("{}")
    (work / "documents-0000000000.npy").write_bytes(b"of another encoder")
    assert len(lines(mined())) == ROWS


@pytest.mark.parametrize(
    ("positive", "kept", "near"), [(0.8, [1, 2], 1), (1.0, [0, 1], 0), (-0.5, [4], 4), (-0.62, [], 5), (0.0, [4], 4)]
)
def test_the_ceiling(positive: float, kept: list[int], near: int) -> None:
    scores = np.array([0.9, 0.76, 0.3, 0.1, -0.6, -np.inf])
    which, suspects = Asked(2, 0.95, 1, 6).choose(scores, positive)
    assert (which.tolist(), suspects) == (kept, near)


def test_the_report_tells_numbers() -> None:
    quality = Quality(2)
    quality.add({"scores": [[0.5, 0.4], []], "positive_score": [0.83, 0.2], "suspects": [0, 3], "nearest": [0.5, 0.9]})
    said = told(quality.numbers())
    assert "rows: 2; with fewer negatives than asked for: 50.0%, with none: 50.0%" in said
    assert "in 50.0% of rows, 1.50 a row" in said and "not the nearest document: 50.0%" in said
    assert quality.numbers()["histogram"]["negatives"][30] == 1  # from 0.5


def test_the_command(tiny_llama: Path, pairs: Path) -> None:
    said = runs.run("mine", tiny_llama, pairs, "--out", "out.jsonl", "--negatives", "2", cwd=pairs.parent)
    assert f"{ROWS} rows are in out.jsonl" in said and "100%" in said
    assert "--ceiling" in runs.run("mine", "--help", cwd=pairs.parent)


@pytest.mark.parametrize(("rank", "seen", "own"), [(0, 8, "cuda:0"), (3, 8, "cuda:3"), (3, 1, "cuda:0"), (3, 0, "cpu")])
def test_a_rank_takes_a_gpu_that_it_sees(rank: int, seen: int, own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its node, or its own alone."""
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr("torch.cuda.is_available", lambda: seen > 0)
    monkeypatch.setattr("torch.cuda.device_count", lambda: seen)
    assert _device("auto") == own
