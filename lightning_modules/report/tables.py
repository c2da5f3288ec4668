"""The report's tables: a header and rows of text, and the same as tidy CSV."""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_modules.report.paper import VARIANTS, Published
from lightning_modules.report.runs import Run
from otherside.files import atomic
from otherside.probing.findings import Cell, find
from otherside.probing.results import OFF, ON, Result

# setting -> heading; those that no run has are left out
SETTINGS = {
    "model.init_args.backbone.model": "starts from",
    "model.init_args.backbone.attention": "attention",
    "model.init_args.backbone.dtype": "weights",
    "trainer.max_steps": "steps",
    "data.init_args.global_batch_size": "global batch",
    "model.init_args.max_length": "longest text, tokens",
    "model.init_args.optimizer.init_args.lr": "learning rate",
    "model.init_args.schedule.name": "schedule",
    "model.init_args.schedule.warmup_steps": "warm-up steps",
    "model.init_args.lora.r": "LoRA rank",
    "model.init_args.lora.alpha": "LoRA α",
    "model.init_args.lora.dropout": "LoRA dropout",
    "model.init_args.masking.probability": "masked",
    "model.init_args.backbone.attention_dropout": "attention dropout",
    "model.init_args.loss.scale": "loss scale",
    "model.init_args.loss.teacher.kind": "distillation",
    "model.init_args.pooling": "pooling",
    "data.init_args.sources": "texts",
    "seed_everything": "seed",
}


@dataclass(frozen=True)
class Table:
    """A caption, column headings, and rows whose first cell heads the row."""

    caption: str
    header: list[str]
    rows: list[list[str]]


def settings(runs: Sequence[Run]) -> Table:
    """A column per run, a row per setting that one of them has."""
    rows = []
    for path, heading in SETTINGS.items():
        values = [run.setting(path) for run in runs]
        if any(value is not None for value in values):
            rows.append([heading, *map(_setting, values)])
    return Table("Settings", ["", *(run.name for run in runs)], rows)


def _setting(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(str(v.get("path", v)) if isinstance(v, dict) else str(v) for v in value)
    return "–" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def hardware(runs: Sequence[Run]) -> Table | None:
    """Where, with what and how long each run was trained; None if no run kept notes."""
    noted = [run for run in runs if run.starts]
    if not noted:
        return None
    lasts = [run.starts[-1] for run in noted]
    seconds = [sum(start["seconds"] for start in run.starts) for run in noted]
    sizes = [last["parameters"] for last in lasts]
    packages = list(dict.fromkeys(name for last in lasts for name in last["packages"]))
    rows = [
        ["time in training", *map(duration, seconds)],
        ["starts", *(str(len(run.starts)) for run in noted)],
        ["device", *(last["device"] for last in lasts)],
        ["ranks, nodes", *(f"{last['ranks']}, {last['nodes']}" for last in lasts)],
        ["cores, threads", *(f"{last['cores']}, {last['threads']}" for last in lasts)],
        ["strategy, precision", *(f"{last['strategy']}, {last['precision']}" for last in lasts)],
        ["parameters, trained", *(f"{_count(s['all'])}, {_count(s['trained'])}" for s in sizes)],
        ["Python", *(last["python"] for last in lasts)],
        *([name, *(last["packages"].get(name, "–") for last in lasts)] for name in packages),
        ["source", *(last["commit"] or "–" for last in lasts)],
        ["began (UTC)", *(run.starts[0]["started"][:16].replace("T", " ") for run in noted)],
    ]
    return Table("Hardware, software, time", ["", *(run.name for run in noted)], rows)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return str(datetime.timedelta(seconds=round(seconds)))


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number:,}"


def mteb(runs: Sequence[Run]) -> Table | None:
    """Main scores of the first and the last evaluation of each run, and their settings where they differ; None without
    any.
    """
    columns = [(run, evaluation) for run in runs for evaluation in run.first_and_last]
    if not columns:
        return None
    scores = [{s.task: s.score for s in run.mteb if s.file.parent == one.folder} for run, one in columns]
    differ = len({one.told for _, one in columns}) > 1
    heads = [f"{run.name}, step {one.step}{f', {one.told}' if differ else ''}" for run, one in columns]
    tasks = sorted({task for column in scores for task in column})
    rows = [[task, *(_score(column.get(task)) for column in scores)] for task in tasks]
    means = [sum(column.values()) / len(column) if len(column) == len(tasks) else None for column in scores]
    rows += [["mean of all", *map(_score, means)]] if len(tasks) > 1 else []
    return Table("MTEB, main scores × 100", ["task", *heads], rows)


def _score(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def generation(results: Sequence[Result]) -> Table | None:
    """Perplexities and samples of each variant; None where they were not measured."""
    rows = []
    for result in results:
        if found := result.find(task="generation"):
            scores = {row.input: f"{row.score.value:.2f} ({row.score.low:.2f}…{row.score.high:.2f})" for row in found}
            samples = result.settings["completions"]
            rows.append([result.name, *(kept.get(name, "–") for kept in (scores, samples) for name in (OFF, ON))])
    if not rows:
        return None
    header = ["", *(f"{what}, {name}" for what in ("perplexity", "goes on") for name in (OFF, ON))]
    return Table("Generation: perplexity of the next token in held-out text, causal attention", header, rows)


def beside(results: Sequence[Result], paper: Published) -> list[Table]:
    """Our numbers with intervals and the published ones: a table per task, two columns a variant of the paper's."""
    tables = []
    chosen = [result for result in results if result.name in VARIANTS]
    for task in dict.fromkeys(cell.task for cell in paper.cells):
        cells = [cell for cell in paper.cells if cell.task == task and any(find(result, cell) for result in results)]
        header = ["", *(name for result in chosen for name in (result.name, "paper"))]
        rows = [[_cell_name(cell), *(text for r in chosen for text in _pair(r, paper, cell))] for cell in cells]
        if rows:
            tables.append(Table(spoken(task).capitalize(), header, rows))
    return tables


def spoken(task: str) -> str:
    """A task's name for readers."""
    return {"wic": "word in context"}.get(task, task.replace("_", " "))


def _pair(result: Result, paper: Published, cell: Cell) -> tuple[str, str]:
    row, published = find(result, cell), paper.value(result.name, cell)
    ours = "–" if row is None else f"{row.score.value:.3f} ({row.score.low:.3f}…{row.score.high:.3f})"
    return ours, "–" if published is None else f"{published:.3f}"


def _cell_name(cell: Cell) -> str:
    if cell.input.isdigit():
        word = ("the", "NOUN", "VERBed", "the", "NOUN")[int(cell.input) - 1]
        return f"{cell.input} {word}"
    return cell.metric if cell.input == "word" else cell.input


def comparison(results: Sequence[Result], paper: Published) -> list[dict[str, Any]]:
    """`beside` as tidy rows."""
    rows = []
    for cell in paper.cells:
        for result in results:
            if row := find(result, cell):
                ours = {"value": row.score.value, "low": row.score.low, "high": row.score.high, "probe": row.probe}
                published = {"paper": paper.value(result.name, cell), "paper_model": paper.name}
                rows.append({"variant": result.name, **cell._asdict(), **ours, **published})
    return rows


def write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows that all have the first one's keys; no file without rows."""
    found = list(rows)
    if not found:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(found[0]))
        writer.writeheader()
        writer.writerows(found)
