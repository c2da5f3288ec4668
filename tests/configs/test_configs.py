"""Invariant 8: every YAML in `configs/` parses and trains two steps, as shipped but for model, data and machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import yaml

from lightning_modules import steps
from lightning_modules.callbacks import MTEBSettings
from lightning_modules.includes import merged
from lightning_modules.schedules import Schedule
from otherside.backbone import fast_dtype
from otherside.evaluation.tasks import check_instructions, find_tasks

CONFIGS = Path(__file__).parents[2] / "configs"
FOLDERS = [folder for folder in CONFIGS.iterdir() if folder.is_dir() and folder.name not in ("trainer", "data", "mteb")]
STAGES = sorted(
    file for folder in FOLDERS for file in folder.rglob("*.yaml") if isinstance(steps.read(file), steps.Stage)
)
TUNED = ("quickstart", "evening", "controls", "llama-3.2-1b", "llama-3.1-8b-hub")  # by us; the others are as published
MIXTURES = sorted((CONFIGS / "data").glob("*.yaml"))
TRAINERS = sorted((CONFIGS / "trainer").glob("*.yaml"))
EVALUATIONS = sorted((CONFIGS / "mteb").glob("*.yaml"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs")
    runs.write_data(folder, rows=1500)
    data = folder / "runs/evening/data"
    data.mkdir(parents=True)
    rated = [
        {"query": f"q{i}", "positive": f"p{i}", "sentence1": f"a{i}", "sentence2": "b", "score": i} for i in range(4)
    ]
    for file in ("heldout.jsonl", "similarity.jsonl"):
        (data / file).write_text("\n".join(map(json.dumps, rated)))
    (data / "sentences_heldout.txt").write_text("Of the rain.\nOf the snow.\n")
    return folder


def name(file: Path) -> str:
    return str(file.relative_to(CONFIGS).with_suffix(""))


def on_this_machine(place: Path, root: str) -> list[str]:
    """Where bfloat16 is emulated, a step of a published batch takes half a minute."""
    return [
        *("--model.backbone.dtype", fast_dtype()),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.max_steps", "2"),
        *("--trainer.default_root_dir", str(place / root), "--data.num_workers", "0"),
    ]


@pytest.mark.parametrize("file", STAGES, ids=name)
def test_stage_trains_two_steps(file: Path, place: Path, tiny_llama: Path) -> None:
    content = merged(file)
    pairs = content["model"]["class_path"].endswith("Supervised")
    source = [{"path": str(place / ("pairs.jsonl" if pairs else "sentences.txt"))}]
    validation = ["--data.val_sources", "[]"] if "val_sources" in content["data"]["init_args"] else []
    root = name(file).replace("/", "-")
    runs.run(
        *("fit", "--config", file, "--model.backbone.model", tiny_llama, "--data.sources", yaml.safe_dump(source)),
        *(*validation, *on_this_machine(place, root)),
        cwd=place,
        timeout=200,
    )
    assert (place / root / "encoder" / "encoder.json").is_file()


@pytest.mark.parametrize("file", STAGES, ids=name)
def test_the_rate_is_not_0_before_the_end(file: Path) -> None:
    content = merged(file)
    steps = content["trainer"]["max_steps"]
    assert content["model"]["init_args"]["schedule"].get("total_steps", steps) >= steps


PUBLISHED = {"mntp": (4.77e-5, 0.977), "simcse": (2.87e-5, 0.979), "supervised": (1.83e-4, 0.821)}


@pytest.mark.parametrize("file", [file for file in STAGES if file.parent.name not in TUNED], ids=name)
def test_the_rate_is_the_published_run_s(file: Path) -> None:
    """Planned over three epochs, stopped after 1,000 steps: the last rate, and the mean as a share of the highest."""
    settings = yaml.safe_load(file.read_text())
    highest = settings["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=highest)
    schedule = Schedule(**settings["model"]["init_args"]["schedule"]).build(optimizer, settings["trainer"]["max_steps"])
    factors = [schedule.lr_lambdas[0](step) for step in range(settings["trainer"]["max_steps"])]
    last, mean = PUBLISHED[file.stem]
    assert highest * factors[-1] == pytest.approx(last, rel=0.005)
    assert sum(factors) / len(factors) == pytest.approx(mean, abs=0.002)


def test_e5_has_the_published_instructions() -> None:
    sources = yaml.safe_load((CONFIGS / "data" / "e5.yaml").read_text())["data"]["init_args"]["sources"]
    sides = {Path(s["path"]).stem: (s["instruction"], s.get("document_instruction", "")) for s in sources}
    assert all(side.endswith("; ") for both in sides.values() for side in both if side)
    sts = "Retrieve semantically similar text; "
    assert sides["allnli_odd"] == ("Given a premise, retrieve a hypothesis that is entailed by the premise; ", "")
    assert sides["allnli_even"] == (sts, sts)
    symmetric = {name for name, (query, document) in sides.items() if document and query == document}
    assert symmetric == {"allnli_even", "quora_duplicates_odd", "quora_duplicates_even"}
    used = yaml.safe_load((CONFIGS / "mteb" / "llm2vec-15.yaml").read_text())["mteb"]["instructions"]
    assert used["STS"] == sts  # in use as in training
    assert all(instruction.endswith("; ") for instruction in used.values())


@pytest.mark.parametrize("file", MIXTURES, ids=name)
def test_mixture_trains_two_steps(file: Path, place: Path, tiny_llama: Path) -> None:
    """On our rows, in columns of its sources' names."""
    content = yaml.safe_load(file.read_text())
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    for number, source in enumerate(content["data"]["init_args"]["sources"]):
        fields = source.get("fields", {})
        if source.get("labels"):
            found = [
                {fields.get("text", "text"): row["query"], fields.get("label", "label"): i % 3}
                for i, row in enumerate(rows)
            ]
        else:
            columns = {"query": "query", "positive": "positive"} | fields
            found = [
                {column: row["positive" if name == "negatives" else name] for name, column in columns.items()}
                for row in rows
            ]
        source["path"] = str(place / f"{file.stem}-{number}.jsonl")
        Path(source["path"]).write_text("".join(json.dumps(row) + "\n" for row in found))
    (place / file.name).write_text(yaml.safe_dump(content))
    stage, root = runs.write_stage(place, "Supervised", tiny_llama), f"mixture-{file.stem}"
    options = (
        "--config",
        place / file.name,
        "--data.negatives",
        "1",
        "--data.max_length",
        "128",
        *on_this_machine(place, root),
    )
    runs.run("fit", "--config", stage, *options, cwd=place)
    assert (place / root / "encoder" / "encoder.json").is_file()


@pytest.mark.parametrize("file", TRAINERS, ids=name)
def test_trainer_trains_two_steps(file: Path, place: Path, tiny_llama: Path) -> None:
    stage = runs.write_stage(place, "Supervised", tiny_llama)
    root = name(file).replace("/", "-")
    timeout = ["--trainer.strategy.init_args.timeout", "60"] if "strategy" in file.read_text() else []
    runs.run("fit", "--config", stage, "--config", file, *timeout, *on_this_machine(place, root), cwd=place)
    assert (place / root / "encoder" / "encoder.json").is_file()


def test_the_docs_stage_trains_two_steps(place: Path, tiny_llama: Path) -> None:
    """As printed, but for the model, its size, the machine, and where the rows are."""
    [example] = re.findall(
        r"```yaml\n(include: .*?)```", (CONFIGS.parent / "docs/stage-yaml.md").read_text(), re.DOTALL
    )
    content = yaml.safe_load(example)
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    for number, source in enumerate(content["data"]["init_args"]["sources"]):
        column = {"query": "query", "positive": "positive"} | source.get("fields", {})
        renamed = [{column[key]: row[key] for key in column} for row in rows]
        (place / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in renamed))
        source["path"] = str(place / f"{number}.jsonl")
    content["include"] = str(CONFIGS / "R" / content["include"])
    content["model"]["init_args"]["loss"]["matryoshka"] = [8]
    (place / "docs.yaml").write_text(yaml.safe_dump(content))
    model = ("--model.backbone.model", tiny_llama)
    runs.run("fit", "--config", place / "docs.yaml", *model, *on_this_machine(place, "docs"), cwd=place)
    assert (place / "docs" / "encoder" / "encoder.json").is_file()


@pytest.mark.parametrize("file", EVALUATIONS, ids=name)
def test_evaluation_has_tasks_and_instructions_that_there_are(file: Path) -> None:
    settings = MTEBSettings(**yaml.safe_load(file.read_text())["mteb"])
    assert settings.tasks is not None
    find_tasks(settings.tasks, settings.languages)
    check_instructions(settings.instructions)


@pytest.mark.parametrize("file", STAGES, ids=name)
def test_header_says_purpose_hardware_expectation_and_command(file: Path) -> None:
    header = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for word in ("Purpose:", "Hardware:", "Expected:", "Command:"):
        assert any(word in line for line in header), f"{file} says nothing of {word}"


@pytest.mark.parametrize("file", [file for file in TRAINERS if "offload" in file.stem], ids=name)
def test_offloaded_memory_is_pinned(file: Path) -> None:
    """In what DeepSpeed is told: Lightning's own default is false."""
    from lightning_modules.strategies import ZeRO

    config: Any = ZeRO(**yaml.safe_load(file.read_text())["trainer"]["strategy"]["init_args"]).config
    offloads = [value for key, value in config["zero_optimization"].items() if key.startswith("offload")]
    assert offloads and all(each["device"] == "cpu" and each["pin_memory"] for each in offloads)
