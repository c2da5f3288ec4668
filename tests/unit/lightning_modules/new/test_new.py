"""A recipe for somebody's data: what is in it, that it fits, and that it trains."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import runs
import yaml

from lightning_modules import steps
from lightning_modules.hardware import Hardware, hardware, here
from lightning_modules.new.run import _mean
from lightning_modules.new.stages import Data, forward_time, plan, shares
from lightning_modules.new.write import stage_yaml
from lightning_modules.sizing.command import as_trained, needed
from lightning_modules.sizing.job import read_job
from lightning_modules.sizing.shape import Shape, read_shape
from lightning_modules.sizing.speed import Machine, step_time

SHAPES = Path(__file__).parents[4] / "benchmarks" / "shapes"
DATA = Data("pairs", {"mntp": 20_000, "simcse": 20_000, "supervised": 10_000}, 128, 1, True, 128)
CPU = Hardware("2 CPU cores, 16 GB", 0, "float32", Machine(16, 2, 5e10, 0.5))


def gpus(count: int, memory: float = 80, nodes: int = 1) -> Hardware:
    return Hardware(f"{count} GPUs", count, "bfloat16", Machine(memory, 4), nodes)


def faq(folder: Path, rows: int = 240, header: tuple[str, str] = ("question", "answer")) -> str:
    with (folder / "faq.csv").open("w") as file:
        lines = csv.writer(file)
        lines.writerow(header)
        lines.writerows((f"How do I reset device {i}?", f"Hold the button of device {i}.") for i in range(rows))
    return "faq.csv"


@pytest.mark.slow
def test_a_recipe_from_a_csv_trains(tmp_path: Path, tiny_llama: Path) -> None:
    """All that the README asks a newcomer to type."""
    output = runs.run("new", "runs/mine", "--base", tiny_llama, "--data", faq(tmp_path), cwd=tmp_path)
    assert "faq.csv: pairs (query = question, positive = answer)" in output
    assert "runs/mine/data: 456 texts, 228 pairs, 12 held out" in output
    assert output.splitlines()[-1] == "next: lightning recipe runs/mine"
    for stage in ("mntp", "simcse", "supervised"):
        assert "\nfits in " in runs.run("size", f"runs/mine/{stage}.yaml", cwd=tmp_path)
    short = ["--trainer.max_steps", "2", "--model.schedule.total_steps", "2", "--model.schedule.warmup_steps", "1"]
    runs.run("recipe", "runs/mine", *short, "--trainer.val_check_interval", "2", cwd=tmp_path, timeout=280)
    for stage in ("mntp", "simcse", "supervised"):
        assert (tmp_path / "runs/mine" / stage / "encoder" / "encoder.json").is_file()
    assert "runs/mine/negatives.yaml  hard negatives of each pair: 1 minute\n" in output
    mined = [json.loads(line) for line in (tmp_path / "runs/mine/data/mined.jsonl").open()]
    assert len(mined) == 228 and any(row["negatives"] for row in mined)


def test_negatives_are_mined_where_there_are_none_and_there_is_time(tmp_path: Path, tiny_llama: Path) -> None:
    lines = [{"question": f"what is {i}", "answer": f"it is {i}", "negative": "nothing"} for i in range(40)]
    (tmp_path / "with.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    faq(tmp_path)
    for name, *arguments in (("given", "with.jsonl"), ("hurry", "faq.csv", "--hours", "1e-9"), ("mined", "faq.csv")):
        output = runs.run("new", name, "--base", tiny_llama, "--data", *arguments, cwd=tmp_path)
        [source] = yaml.safe_load((tmp_path / name / "supervised.yaml").read_text())["data"]["init_args"]["sources"]
        is_mined = name == "mined"
        assert source["path"] == f"{name}/data/{'mined' if is_mined else 'pairs'}.jsonl"
        assert ("negatives.yaml" in output) == (tmp_path / name / "negatives.yaml").is_file() == is_mined
    assert [type(step).__name__ for step in steps.steps(tmp_path / "mined")] == ["Stage", "Stage", "Mining", "Stage"]


def test_texts_alone_have_no_supervised_stage(tmp_path: Path, tiny_llama: Path) -> None:
    runs.write_data(tmp_path)
    runs.run("new", "mine", "--base", tiny_llama, "--data", "sentences.txt", cwd=tmp_path)
    assert sorted(file.name for file in (tmp_path / "mine").glob("*.yaml")) == ["mntp.yaml", "simcse.yaml"]
    assert [stage.root for stage in steps.stages(tmp_path / "mine")] == ["mine/mntp", "mine/simcse"]


def test_texts_with_labels_have_a_supervised_stage(tmp_path: Path, tiny_llama: Path) -> None:
    lines = [f"Please look at my {['parcel', 'card', 'door'][i % 3]} no. {i},{i % 3}" for i in range(400)]
    (tmp_path / "tickets.csv").write_text("\n".join(["text,topic", *lines, "Hello?,other"]))
    names = ["--fields", "{text: text, label: topic}"]
    output = runs.run("new", "mine", "--base", tiny_llama, "--data", "tickets.csv", *names, cwd=tmp_path)
    assert "tickets.csv: texts with labels (text = text, label = topic)" in output
    assert "381 texts, 380 with labels, 20 held out, 1 alone with their label" in output
    stage = [*("--config", "mine/supervised.yaml", "--model.backbone.model", tiny_llama), "--trainer.max_steps", "2"]
    output = runs.run("fit", *stage, "--trainer.val_check_interval", "2", cwd=tmp_path)
    assert "validated at step 2  val/loss" in output


def test_several_files_and_names_of_columns(tmp_path: Path, tiny_llama: Path) -> None:
    faq(tmp_path, 40, ("Frage", "Antwort"))
    (tmp_path / "more.csv").write_text("Frage,Antwort\nWann?,Um acht.\n")
    names = ["--fields", "{query: Frage, positive: Antwort}"]
    output = runs.run("new", "mine", "--data", "faq.csv", "more.csv", "--base", tiny_llama, *names, cwd=tmp_path)
    assert "mine/data: 82 texts, 41 pairs" in output


def test_hours_that_are_too_few_are_told(tmp_path: Path, tiny_llama: Path) -> None:
    faq(tmp_path)
    least = "hours are the least, with 10 steps a stage; --hours 1e-12 is shorter"
    for hours in ("1e-12", "5"):
        arguments = ("--base", tiny_llama, "--data", "faq.csv", "--hours", hours)
        assert (least in runs.run("new", f"in-{hours}", *arguments, cwd=tmp_path)) == (hours == "1e-12")


def test_a_cluster_elsewhere(tmp_path: Path, tiny_llama: Path) -> None:
    faq(tmp_path)
    options = ["--nodes", "2", "--gpus", "4", "--gpu_memory", "40"]
    output = runs.run("new", "runs/a.b", "--base", tiny_llama, "--data", "faq.csv", *options, cwd=tmp_path)
    assert "for 2 nodes of 4 GPUs of 40 GB" in output
    submit = "--nodes=2 --ntasks-per-node=4 --gpus-per-node=4"
    assert output.splitlines()[-1].startswith(f"next: slurm/submit runs/a.b {submit}")
    yaml = (tmp_path / "runs/a.b/mntp.yaml").read_text()
    assert f"# Command:  slurm/submit runs/a.b/mntp.yaml {submit}" in yaml
    assert "  num_nodes: 2\n  devices: 4\n" in yaml
    assert "2 x 4 = 8 GPUs, ddp" in runs.run("size", "runs/a.b/supervised.yaml", cwd=tmp_path)


def test_hardware_must_be_some() -> None:
    with pytest.raises(ValueError, match="--gpus must say how many GPUs each node has, as this machine has none"):
        hardware(2, None, None)
    for gpus in (None, 1):
        with pytest.raises(ValueError, match="--nodes must be at least 1; got 0"):
            hardware(0, gpus, None)
    with pytest.raises(ValueError, match="--gpu_memory must stand beside --gpus, whose memory it is; got 40 alone"):
        hardware(1, None, 40)
    with pytest.raises(ValueError, match="--gpu_memory must be positive; got 0"):
        hardware(1, 1, 0)


def test_documents_set_the_length_where_queries_are_many(tmp_path: Path, tiny_llama: Path) -> None:
    """By 5% of all different texts: that of queries, of which each document has many."""
    lines = [{"question": f"what is {i}", "context": f"{i % 6} " + "and so on " * 25} for i in range(300)]
    (tmp_path / "few.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = runs.run("new", "few", "--base", tiny_llama, "--data", "few.jsonl", cwd=tmp_path)
    length = yaml.safe_load((tmp_path / "few/supervised.yaml").read_text())["data"]["init_args"]["max_length"]
    assert length > 75 and "are cut" not in output
    lines = [{**line, "context": line["context"] * 9} if i % 4 else line for i, line in enumerate(lines)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = runs.run("new", "long", "--base", tiny_llama, "--data", "long.jsonl", cwd=tmp_path)
    assert "75% of positives are cut at 128 tokens" in output


def test_a_base_of_few_positions_has_shorter_texts(tmp_path: Path, tiny_llama: Path) -> None:
    config = json.loads((tiny_llama / "config.json").read_text())
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 40}))
    lines = [{"question": f"what is {i}", "answer": f"{i} " + "and so on " * 25} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    output = runs.run("new", "mine", "--base", base, "--data", "rows.jsonl", cwd=tmp_path)
    stage = yaml.safe_load((tmp_path / "mine/mntp.yaml").read_text())
    assert stage["data"]["init_args"]["max_length"] == stage["model"]["init_args"]["max_length"] == 40
    assert "are cut at 40 tokens" in output
    short = ["--trainer.max_steps", "2", "--model.schedule.total_steps", "2", "--model.schedule.warmup_steps", "1"]
    runs.run("fit", "--config", "mine/mntp.yaml", *short, "--trainer.val_check_interval", "2", cwd=tmp_path)


def test_what_is_not_taken_is_said(tmp_path: Path, tiny_llama: Path) -> None:
    rows = [{"query": f"q {i}", "positive": f"p {i}", "negatives": ["n"], "scores": [0.1]} for i in range(20)]
    (tmp_path / "mined.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    output = runs.run("new", "mine", "--base", tiny_llama, "--data", "mined.jsonl", cwd=tmp_path)
    assert "note: scores are read in a YAML with loss.teacher only" in output
    assert "no rows held out to validate on" in output


def test_a_failure_leaves_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "faq.csv").write_text("question,answer\nWhen?,At eight.\nWhere?,\n")
    status, output = runs.start("new", "mine", "--base", tiny_llama, "--data", "faq.csv", cwd=tmp_path).wait()
    assert status == 1 and "faq.csv, line 3: field 'answer' must hold a text" in output
    assert not (tmp_path / "mine").exists() and not list(tmp_path.glob(".mine*"))


@pytest.mark.parametrize(
    "machine", [CPU, gpus(1), gpus(8), gpus(1, 12), gpus(8, nodes=2)], ids=["cpu", "1", "8", "small", "2 x 8"]
)
@pytest.mark.parametrize("held_out", [True, False])
def test_what_is_written_is_what_was_sized(machine: Hardware, held_out: bool, tmp_path: Path) -> None:
    """The YAML, read by `lightning size`, is the stage that was fitted; the type is the machine's."""
    data = replace(DATA, held_out=held_out)
    base = str(SHAPES / "sheared-llama-1.3b")
    stages = plan(read_shape(base), data, machine, 10)
    for planned in stages:
        text = stage_yaml(planned, tmp_path, base, data, machine)
        (tmp_path / f"{planned.job.stage}.yaml").write_text(text)
    for planned in stages:
        job = read_job(tmp_path / f"{planned.job.stage}.yaml")
        left = replace(job, dtype=machine.dtype, activation_checkpointing=planned.job.activation_checkpointing)
        assert left == planned.job and job.layers_again == planned.job.layers_again
        assert needed(planned.job, machine.machine) <= machine.machine.memory


def test_a_small_gpu_gets_less_at_once() -> None:
    shape = read_shape(str(SHAPES / "sheared-llama-1.3b"))
    large, small = (plan(shape, DATA, machine, 10)[2].job for machine in (gpus(1), gpus(1, 12)))
    assert large.global_batch == small.global_batch == 256
    assert large.chunk_tokens == 8192
    assert small.layers_again or (small.chunk_tokens or 0) < 8192


def test_a_base_that_fits_no_gpu_is_sharded() -> None:
    shape = read_shape(str(SHAPES / "llama-3.1-70b"))
    assert plan(shape, DATA, gpus(8), 10)[0].trainer == "fsdp2"
    with pytest.raises(ValueError, match="--base must fit 1 GPUs, as a mntp stage; it does not fit in 80 GB"):
        plan(shape, DATA, gpus(1), 10)


def test_steps_follow_data_and_time() -> None:
    shape = read_shape(str(SHAPES / "tiny"))
    few = plan(shape, replace(DATA, rows={"mntp": 640}), CPU, 100)[0]
    assert (few.job.global_batch, few.steps, few.rate) == (32, 20, 1e-3)
    assert plan(shape, replace(DATA, rows={"mntp": 10**6}), CPU, 100)[0].steps == 1000
    slow = replace(CPU, machine=replace(CPU.machine, flops=1e6))
    assert plan(shape, DATA, slow, 1)[0].steps == 10
    assert plan(shape, replace(DATA, rows={"supervised": 9}), CPU, 1)[0].job.global_batch == 4
    with pytest.raises(
        ValueError, match="--data must have at least 4 rows for a mntp stage on 2 CPU cores, 16 GB; got 3"
    ):
        plan(shape, replace(DATA, rows={"mntp": 3}), CPU, 1)


def test_time_that_a_stage_does_not_need_goes_to_the_others() -> None:
    assert shares({"mntp": 2, "simcse": 9, "supervised": 9}, 12) == {"mntp": 2, "simcse": 5, "supervised": 5}
    assert shares({"mntp": 9, "simcse": 9, "supervised": 3}, 30) == {"mntp": 9, "simcse": 9, "supervised": 3}
    shape = read_shape(str(SHAPES / "sheared-llama-1.3b"))
    few = replace(DATA, rows={"mntp": 640, "simcse": 10**6, "supervised": 10**6})
    found = plan(shape, few, gpus(1), 1)
    spent = [stage.steps * stage.seconds for stage in found]
    assert spent[0] < 100 and sum(spent) == pytest.approx(3600, rel=0.01)


def test_mining_takes_of_the_hours() -> None:
    shape, many = read_shape(str(SHAPES / "sheared-llama-1.3b")), replace(DATA, rows={"supervised": 10**7})
    whole, rest = (
        sum(stage.steps * stage.seconds for stage in plan(shape, replace(many, mining=seconds), gpus(1), 1))
        for seconds in (0, 600)
    )
    assert whole - rest == pytest.approx(600, rel=0.02)
    eight = forward_time(shape, 1e6, gpus(8))
    assert forward_time(shape, 1e6, gpus(1)) == pytest.approx(8 * eight) and 0.5 < eight < 1.5


def test_time_is_that_of_usual_texts_and_of_what_memory_allows() -> None:
    """As `lightning size` says and training does: nothing is computed twice where there is room."""
    shape = read_shape(str(SHAPES / "sheared-llama-1.3b"))
    large, small = (plan(shape, DATA, machine, 10)[2] for machine in (gpus(1, 1000), gpus(1, 40)))
    assert large.job == small.job and large.seconds < 0.8 * small.seconds
    for planned, machine in ((large, gpus(1, 1000).machine), (small, gpus(1, 40).machine)):
        assert planned.seconds == step_time(as_trained(planned.job, machine), machine).total
    short = plan(shape, replace(DATA, mean=32), gpus(1, 40), 10)[2]
    assert short.job == small.job and short.seconds < small.seconds / 3


def test_texts_count_by_how_often_a_row_has_them() -> None:
    lengths = {"query": np.array([10, 10]), "positive": np.array([100, 500]), "negatives": np.array([40])}
    assert _mean(lengths, 128, 4) == 48  # (10 + 114 + 4 * 40) / 6
    assert _mean({}, 128, 0) == 128


def test_every_rank_has_a_row() -> None:
    shape, many = read_shape(str(SHAPES / "tiny")), gpus(3, nodes=8)
    assert plan(shape, replace(DATA, rows={"mntp": 48}), many, 1)[0].job.global_batch == 24
    with pytest.raises(ValueError, match="--data must have at least 48 rows for a mntp stage on 3 GPUs; got 47"):
        plan(shape, replace(DATA, rows={"mntp": 47}), many, 1)


@pytest.mark.parametrize(
    ("rows", "rates"),
    [
        (64_000, [1e-4, 1.2e-4, 3e-4]),  # 1,000, 500 and 750 steps
        (3_200, [5e-4, 3e-4, 3e-4]),  # no more than for small bases
        (4_000_000, [1e-4, 6e-5, 2e-4]),  # 1,000, 1,000 and 15,625
    ],
)
def test_large_bases_are_moved_as_far_as_by_the_published_runs(rows: int, rates: list[float]) -> None:
    """Those keep nearly their whole rate for 1,000 steps; ours falls to 0 in however many there are."""
    shape = read_shape(str(SHAPES / "sheared-llama-1.3b"))
    many = replace(DATA, rows={"mntp": rows, "simcse": rows, "supervised": rows})
    found = plan(shape, many, gpus(8), 100)
    assert [stage.rate for stage in found] == rates


@pytest.mark.parametrize(
    ("rows", "rates"),
    [
        (320, [1e-3, 2e-3, 5e-4]),  # 10, 10 and 30 steps: those of configs/quickstart reach as far
        (1_280, [5e-4, 5e-4, 3e-4]),  # 40, 40 and 120
    ],
)
def test_small_bases_are_moved_as_far_however_few_the_steps(rows: int, rates: list[float]) -> None:
    few = replace(DATA, rows={"mntp": rows, "simcse": rows, "supervised": rows})
    found = plan(read_shape(str(SHAPES / "smollm2-135m")), few, CPU, 100)
    assert [stage.rate for stage in found] == rates


def test_all_pairs_are_read_where_time_allows() -> None:
    shape = read_shape(str(SHAPES / "tiny"))
    found = [plan(shape, replace(DATA, rows={"supervised": 10**6}), gpus(8), hours)[0] for hours in (100, 1e-6)]
    assert [stage.job.global_batch * stage.steps >= 10**6 for stage in found] == [True, False]
    assert found[0].passes == pytest.approx(1, abs=1e-3) and found[1].passes < 0.9


def test_yamls_are_short_and_have_a_header(tmp_path: Path) -> None:
    for planned in plan(Shape(576, 1536, 30, 9, 3, 64, 49152, tied=True), DATA, gpus(2), 1):
        lines = stage_yaml(planned, tmp_path, "base", DATA, gpus(2)).splitlines()
        assert [line.split()[1] for line in lines[:4]] == ["Purpose:", "Hardware:", "Expected:", "Command:"]
        assert len(lines) <= 40 and yaml.safe_load("\n".join(lines))


def test_this_machine_is_described() -> None:
    found = here()
    assert found.gpus == 0 and "CPU core" in found.name  # conftest hides GPUs
    assert 0.5 < found.machine.memory < 1e5 and 1e8 < found.machine.flops < 1e15
