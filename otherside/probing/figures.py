"""Figures of what was measured: probing.png and probing.svg, and with several layers layers.png and layers.svg."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from otherside.files import atomic
from otherside.probing.results import Measured, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's palette without yellow, told apart by readers with any colour vision; markers repeat the distinction.
COLOURS = ("#000000", "#E69F00", "#0072B2", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "osD^vPX"
WORDS = ("the", "NOUN", "VERBed", "the", "NOUN")
COLUMNS = 4
TEXTS = {  # metric, title, label
    "retrieval": ("MRR", "Retrieval of held-out pairs", "mean reciprocal rank"),
    "similarity": ("spearman", "Similarity of held-out sentences", "Spearman's correlation"),
}
BY_LAYER = {  # metric, target, title, label
    "anisotropy": ("cosine", "", "Anisotropy", "mean cosine"),
    "words": ("spearman", "mean", "Similarity of words", "Spearman's correlation"),
}
Draw = Callable[["Axes"], None]


def write_figures(results: Sequence[Result], tasks: Sequence[Measured], out: Path) -> None:
    """Retrieval, every task, anisotropy and words, as far as measured; each file appears whole or not at all."""
    panels: list[Draw] = []
    panels += [partial(draw_texts, results=results, task=task) for task in TEXTS if results[0].find(task=task)]
    for task in tasks:
        draw = draw_words if len(task.inputs) == 5 else draw_inputs
        panels.append(partial(draw, results=results, task=task, probe=best_probe(results, task)))
    panels += [partial(draw_by_layer, results=results, task=name, name=kind) for name, kind in by_layer(results)]
    save(panels, out / "probing")
    if any(len(layers_of(result)) > 1 for result in results):
        save([partial(draw_layers, results=results, task=task) for task in tasks], out / "layers")


def best_probe(results: Sequence[Result], task: Measured) -> str:
    """The MLP, as in the paper's figures, where there is one."""
    return "mlp" if results[0].find(task=task.name, probe="mlp") else "linear"


def layers_of(result: Result) -> list[int]:
    """Layers that were probed."""
    return sorted({row.layer for row in result.rows if row.probe and row.layer is not None})


def save(panels: Sequence[Draw], path: Path, legend: int = 6) -> None:
    """The panels, four in a row, as .png and .svg; below them a legend with so many names in a row."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    layout = ConstrainedLayoutEngine(wspace=0.06, hspace=0.08)
    figure: Figure = Figure(figsize=(3.9 * columns, 3.4 * rows + 0.5), layout=layout, dpi=160)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, draw in zip(axes, panels, strict=False):
        draw(panel)
        tidy(panel)
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    labels = {label: line for panel in axes for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=legend, frameon=False)
    # fixed salt and no date: the same results give the same file
    with mpl.rc_context({"svg.hashsalt": "otherside"}), atomic(path.with_suffix(".svg")) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
    with atomic(path.with_suffix(".png")) as temporary:
        figure.savefig(temporary, format="png")


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the variant of this number."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)], "markersize": 5}


def bars(panel: Axes, places: Sequence[float], rows: Sequence[Row], **style: Any) -> None:
    """Points with their intervals."""
    values = [row.score.value for row in rows]
    below = [row.score.value - row.score.low for row in rows]
    above = [row.score.high - row.score.value for row in rows]
    panel.errorbar(places, values, [below, above], elinewidth=0.8, **style)


def draw_texts(panel: Axes, results: Sequence[Result], task: str) -> None:
    """What is asked of vectors of whole texts, per variant."""
    metric, title, label = TEXTS[task]
    for i, result in enumerate(results):
        [row] = result.find(task=task, metric=metric)
        bars(panel, [i], [row], label=result.name, capsize=3, **look(i))
        value = row.score.value
        panel.annotate(f"{value:.2f}", (i, value), (7, 0), textcoords="offset points", va="center", size=8)
    panel.set_xticks(range(len(results)), [result.name for result in results], rotation=30, ha="right")
    panel.set_xlim(-0.5, len(results) - 0.2)
    panel.set_ylim(0, 1)
    panel.set_title(title, size=10)
    panel.set_ylabel(label)


def shown(result: Result, task: Measured, probe: str, metric: str) -> list[Row]:
    """A task's rows in context, at the layer that is shown."""
    target = "mean" if len(task.aspects) > 1 else ""
    wanted = {"task": task.name, "probe": probe, "metric": metric, "target": target}
    return result.find(condition="context", layer=result.settings["probed"], **wanted)


def draw_words(panel: Axes, results: Sequence[Result], task: Measured, probe: str) -> None:
    """Accuracy by word, a line per variant; points stand side by side so that intervals stay visible."""
    for i, result in enumerate(results):
        rows = shown(result, task, probe, "accuracy")
        if not rows:
            continue
        shift = 0.08 * (i - (len(results) - 1) / 2)
        places = [word + shift for word in range(1, len(rows) + 1)]
        bars(panel, places, rows, label=result.name, linewidth=1.3, **look(i))
    panel.axhline(0.5, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    panel.text(5.45, 0.505, "chance", color="0.4", size=8, ha="right", va="bottom")
    panel.set_xticks(range(1, 6), WORDS)
    panel.set_xlim(0.5, 5.5)
    panel.set_ylim(min(0.38, panel.get_ylim()[0]), 1.02)
    about = {"subject": 2, "verb": 3, "object": 5}.get(task.name.split("_")[0])
    if about:
        panel.axvspan(about - 0.3, about + 0.3, color="0.93", zorder=0)
    panel.set_title(f"{task.name.replace('_', ' ').capitalize()} from each word", size=10)
    panel.set_ylabel(f"accuracy ({probe})")


def draw_inputs(panel: Axes, results: Sequence[Result], task: Measured, probe: str) -> None:
    """A point per variant and input: accuracy, or Pearson's correlation."""
    metric = "pearson" if task.regression else "accuracy"
    for i, result in enumerate(results):
        names = list(task.inputs)
        rows = shown(result, task, probe, metric)
        if not rows:
            continue
        shift = 0.12 * (i - (len(results) - 1) / 2)
        bars(panel, [names.index(row.input) + shift for row in rows], rows, label=result.name, linestyle="", **look(i))
    panel.set_xticks(range(len(task.inputs)), [name.replace(" ", "\n") for name in task.inputs])
    panel.set_xlim(-0.6, len(task.inputs) - 0.4)
    panel.set_title(task.name.replace("_", " ").capitalize().replace("Wic", "Word in context"), size=10)
    panel.set_ylabel(f"{'Pearson' if task.regression else 'accuracy'} ({probe})")


def by_layer(results: Sequence[Result], *tasks: str) -> list[tuple[str, str]]:
    """(task, input) of what is measured at every layer and is no probe."""
    chosen = tasks or tuple(BY_LAYER)
    return [(task, name) for task in chosen for name in dict.fromkeys(row.input for row in results[0].find(task=task))]


def rows_by_layer(result: Result, task: str, name: str) -> list[Row]:
    """Of all lists of words, their mean."""
    metric, target, *_ = BY_LAYER[task]
    return result.find(task=task, input=name, metric=metric, target=target)


def draw_by_layer(panel: Axes, results: Sequence[Result], task: str, name: str) -> None:
    """A line per variant."""
    _, _, title, label = BY_LAYER[task]
    for i, result in enumerate(results):
        rows = rows_by_layer(result, task, name)
        if not rows:
            continue
        places = [row.layer or 0 for row in rows]
        style = {**look(i), "markersize": 3}
        panel.plot(places, [row.score.value for row in rows], label=result.name, linewidth=1.3, **style)
    panel.set_title(f"{title}: {name}", size=10)
    panel.set_xlabel("layer")
    panel.locator_params(axis="x", integer=True)
    panel.set_ylabel(label)


def draw_layers(panel: Axes, results: Sequence[Result], task: Measured) -> None:
    """A linear probe's score by layer, the mean over inputs."""
    metric = "pearson" if task.regression else "accuracy"
    target = "mean" if len(task.aspects) > 1 else ""
    for i, result in enumerate(results):
        rows = result.find(task=task.name, probe="linear", condition="context", metric=metric, target=target)
        layers = layers_of(result)
        means = []
        for layer in layers:
            values = [row.score.value for row in rows if row.layer == layer]
            means.append(sum(values) / len(values))
        panel.plot(layers, means, label=result.name, linewidth=1.3, **look(i))
    panel.set_title(task.name.replace("_", " ").capitalize(), size=10)
    panel.set_xlabel("layer")
    panel.locator_params(axis="x", integer=True)
    panel.set_ylabel(f"{metric} (linear, mean over inputs)" if len(task.inputs) > 1 else f"{metric} (linear)")


def tidy(panel: Axes) -> None:
    """Less ink."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
