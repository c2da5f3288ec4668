"""What was measured, as JSON, CSV, Markdown and a figure."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otherside.probing.scores import Score
from otherside.probing.templates import TASKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WORDS = ("the", "NOUN", "VERBed", "the", "NOUN")
# Okabe & Ito's palette without yellow, told apart by readers with any colour vision; markers repeat the distinction.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "osD^vPX"


@dataclass(frozen=True)
class Result:
    """What was measured of one variant.

    Args:
        accuracy: per task one score per word.
        retrieval: MRR and recall@1, or None.
        name: of the variant.
        settings: all that the numbers depend on.
    """

    accuracy: dict[str, list[Score]]
    retrieval: dict[str, Score] | None = None
    name: str = ""
    settings: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Result:
        """The reverse of `asdict`."""
        accuracy = {task: [Score(**score) for score in scores] for task, scores in content["accuracy"].items()}
        found = content["retrieval"]
        retrieval = {measure: Score(**score) for measure, score in found.items()} if found else None
        return cls(accuracy, retrieval, content["name"], content["settings"])


def write_report(results: list[Result], out: Path) -> None:
    """results.json, results.csv, table.md, probing.png and probing.svg; each appears whole or not at all."""
    with atomic(out / "results.json") as path:
        path.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    with atomic(out / "results.csv") as path, path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["variant", "measure", "word", "value", "low", "high"])
        writer.writerows(rows(results))
    with atomic(out / "table.md") as path:
        path.write_text(tables(results))
    write_figure(results, out)


def rows(results: list[Result]) -> Iterator[tuple[str, str, int | str, float, float, float]]:
    """One row per number: variant, measure, word (from 1; empty for retrieval), value, low, high."""
    for result in results:
        for measure, score in (result.retrieval or {}).items():
            yield result.name, measure, "", score.value, score.low, score.high
        for task, scores in result.accuracy.items():
            for word, score in enumerate(scores, start=1):
                yield result.name, task, word, score.value, score.low, score.high


def tables(results: list[Result]) -> str:
    """Markdown, aligned so that it reads well in a terminal too."""
    parts = []
    if results[0].retrieval:
        body = [[r.name, *map(shown, (r.retrieval or {}).values())] for r in results]
        parts.append("Retrieval among held-out pairs\n\n" + markdown(["variant", *results[0].retrieval], body))
    header = ["variant", *(f"{i} {word}" for i, word in enumerate(WORDS, start=1))]
    for task, asked in TASKS.items():
        body = [[result.name, *map(shown, result.accuracy[task])] for result in results]
        title = f"{task.capitalize()} (of word {asked}): a linear probe's accuracy on each word; chance 0.5"
        parts.append(f"{title}\n\n{markdown(header, body)}")
    return "\n".join(parts) + "\n± is half of the 95 % bootstrap interval.\n"


def shown(score: Score) -> str:
    """A score in a table."""
    return f"{score.value:.2f} ±{(score.high - score.low) / 2:.2f}"


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "".join(f"| {' | '.join(map(str.ljust, line, widths))} |\n" for line in lines)


def write_figure(results: list[Result], out: Path) -> None:
    """probing.png and probing.svg: retrieval (if measured), then accuracy by word for each task."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    tasks = list(TASKS)
    with_retrieval = results[0].retrieval is not None
    ratios = [*([1.0] if with_retrieval else []), *(1.35 for _ in tasks)]
    figure = Figure(figsize=(3.1 * sum(ratios), 3.9), layout=ConstrainedLayoutEngine(wspace=0.06), dpi=160)
    panels = list(figure.subplots(1, len(ratios), width_ratios=ratios, squeeze=False)[0])
    if with_retrieval:
        draw_retrieval(panels.pop(0), results)
    for panel, task in zip(panels, tasks, strict=True):
        draw_accuracy(panel, results, task)
    panels[0].set_ylabel("accuracy of a linear probe")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    # fixed salt and no date: the same results give the same file
    with mpl.rc_context({"svg.hashsalt": "otherside"}), atomic(out / "probing.svg") as path:
        figure.savefig(path, format="svg", metadata={"Date": None})
    with atomic(out / "probing.png") as path:
        figure.savefig(path, format="png")


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the variant of this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def draw_retrieval(panel: Axes, results: list[Result]) -> None:
    """MRR per variant."""
    for i, result in enumerate(results):
        assert result.retrieval is not None
        score = result.retrieval["MRR"]
        panel.errorbar(i, score.value, [[score.value - score.low], [score.high - score.value]], capsize=3, **look(i))
        panel.annotate(f"{score.value:.2f}", (i, score.value), (7, 0), textcoords="offset points", va="center", size=8)
    panel.set_xticks(range(len(results)), [result.name for result in results], rotation=30, ha="right")
    panel.set_xlim(-0.5, len(results) - 0.2)
    panel.set_ylim(0, 1)
    panel.set_title("Retrieval of held-out pairs", size=10)
    panel.set_ylabel("mean reciprocal rank")
    tidy(panel)


def draw_accuracy(panel: Axes, results: list[Result], task: str) -> None:
    """Accuracy by word, a line per variant; points stand side by side so that intervals stay visible."""
    for i, result in enumerate(results):
        scores = result.accuracy[task]
        shift = 0.08 * (i - (len(results) - 1) / 2)
        places = [word + shift for word in range(1, len(scores) + 1)]
        values = [score.value for score in scores]
        below = [score.value - score.low for score in scores]
        above = [score.high - score.value for score in scores]
        panel.errorbar(places, values, [below, above], label=result.name, linewidth=1.3, elinewidth=0.8, **look(i))
    panel.axhline(0.5, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    panel.text(5.45, 0.505, "chance", color="0.4", size=8, ha="right", va="bottom")
    panel.set_xticks(range(1, 6), WORDS)
    panel.set_xlim(0.5, 5.5)
    panel.set_ylim(min(0.38, panel.get_ylim()[0]), 1.02)
    asked = TASKS[task]
    panel.axvspan(asked - 0.3, asked + 0.3, color="0.93", zorder=0)
    panel.set_title(f"Is the {task.split()[0]} (shaded) animate?", size=10)
    tidy(panel)


def tidy(panel: Axes) -> None:
    """Less ink."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
