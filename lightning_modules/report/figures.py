"""The report's figures, a file each, so that a page can put them side by side or below each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_modules.report.paper import Published
from lightning_modules.report.runs import Curve, Run
from otherside.probing import figures as probing
from otherside.probing.findings import STRATEGIES, Cell, find
from otherside.probing.published import CONTEXT
from otherside.probing.results import Measured, Result, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Panel:
    """One figure.

    Args:
        name: of its files.
        alt: what it shows, with the numbers, for those who do not see it.
        draw: draws it.
        legend: names in a row of the legend.
    """

    name: str
    alt: str
    draw: Callable[[Axes], None]
    legend: int = 3


@dataclass(frozen=True)
class Group:
    """Figures that belong together, with how to read them."""

    title: str
    caption: str
    panels: list[Panel]


def write(groups: Sequence[Group], folder: Path) -> None:
    """NAME.svg and NAME.png of every panel."""
    folder.mkdir(parents=True, exist_ok=True)
    for group in groups:
        for panel in group.panels:
            probing.save([panel.draw], folder / panel.name, panel.legend)


def of_training(runs: Sequence[Run]) -> Iterator[Group]:
    """Losses by run; and what callbacks measured on the way, by measure, with the stages on one axis."""
    panels = []
    for run in runs:
        curves = {name: curve for name, curve in run.curves.items() if name in ("train/loss", "val/loss")}
        if curves:
            panels.append(_panel(f"loss-{run.name}", run.name, curves))
    caption = "By optimizer step. The stages' losses are different measures: compare shapes, not heights."
    yield Group("Loss", caption, panels)
    begins = begin(runs)
    for prefix, title, caption in (
        ("mteb/", "MTEB while training", "Main score of each task."),
        ("probe/", "Probes while training", "Linear probes of the last layer, mean cosines, measures of texts."),
    ):
        panels = []
        for name in dict.fromkeys(n for run in runs for n, c in run.curves.items() if n.startswith(prefix)):
            curves = {
                run.name: [(begins[run.name] + step, value) for step, value in run.curves[name]]
                for run in runs
                if len(run.curves.get(name, [])) > 1
            }
            if curves:
                panels.append(_panel(name.replace("/", "-"), name.removeprefix(prefix).replace("_", " "), curves))
        yield Group(title, f"{caption} By optimizer step, each stage behind the one that it starts from.", panels)


def begin(runs: Sequence[Run]) -> dict[str, int]:
    """Steps that went before each run, in the stages that it was built on and that are among `runs`."""
    found: dict[str, int] = {}
    for run in sorted(runs, key=lambda run: run.order):
        parent = next((other for other in runs if other.name in found and run.starts_from(other)), None)
        found[run.name] = found[parent.name] + parent.steps if parent else 0
    return found


def of_probing(results: Sequence[Result], tasks: Sequence[Measured], paper: Published) -> Iterator[Group]:
    """The paper's Figures 3, 5, 6, 7 and 8, as far as measured; then what the paper does not have."""
    measured = {task.name: task for task in tasks}
    theirs = [paper.result(result.name) for result in results]
    words = [panel for name in CONTEXT if name in measured for panel in _words(results, theirs, measured[name], paper)]
    yield Group(
        "Figure 3: context probes",
        "A probe reads one word of “the NOUN VERBed the NOUN” and is asked about the shaded one. Ours with 95 % "
        f"intervals, then {paper.name} as published.",
        words,
    )
    metrics = ("pearson", "spearman")
    cells = {
        "Figure 5: lexical aspect of verbs": [Cell(name, "word", "accuracy") for name in ("telicity", "duration")],
        "Figure 6: ratings by people": [Cell(t, "word", m) for t in ("concreteness", "sensorimotor") for m in metrics],
        "Figure 7: word in context": [Cell("wic", strategy, "accuracy") for strategy in STRATEGIES],
    }
    for title, chosen in cells.items():
        panels = [_beside(results, theirs, paper, cell) for cell in chosen if cell.task in measured]
        yield Group(title, f"Filled: ours, with 95 % intervals. Hollow: {paper.name} as published.", panels)
    panels = [_by_layer(results, "figure8", *both) for both in probing.by_layer(results, "anisotropy")]
    yield Group("Figure 8: anisotropy", "Mean cosine of pairs of word vectors, by layer; 0 is the embeddings.", panels)
    panels = [_by_layer(results, "words", *both) for both in probing.by_layer(results, "words")]
    yield Group(
        "Similarity of single words",
        "Do cosines order pairs of words as people's ratings do? Mean over lists, by layer; in contexts: a word's mean "
        "over sentences that have it.",
        panels,
    )
    panels = [
        Panel(
            task, _alt(title, results, Cell(task, "", metric)), partial(probing.draw_texts, results=results, task=task)
        )
        for task, (metric, title, _) in probing.TEXTS.items()
        if results[0].find(task=task)
    ]
    yield Group(
        "Whole texts", "Held-out texts: rank of a text's partner; order of pairs by cosine and by rating.", panels
    )
    several = max(len(probing.layers_of(result)) for result in results) > 1
    layers = [
        Panel(
            f"layers-{t.name}",
            f"{t.name} by layer; probing.csv has the numbers",
            partial(probing.draw_layers, results=results, task=t),
        )
        for t in tasks
        if several
    ]
    yield Group("By layer", "A linear probe at each layer, mean over inputs.", layers)


def row_of(result: Result, cell: Cell) -> Row | None:
    """A cell's row; of what is asked of whole texts, too, which has no layer."""
    if cell.task in probing.TEXTS:
        return next(iter(result.find(task=cell.task, metric=cell.metric)), None)
    return find(result, cell)


def _words(results: Sequence[Result], theirs: Sequence[Result], task: Measured, paper: Published) -> list[Panel]:
    probe, name = probing.best_probe(results, task), task.name
    cells = [Cell(name, str(word), "accuracy") for word in range(1, 6)]
    ours = partial(probing.draw_words, results=results, task=task, probe=probe)
    published = partial(_published_words, results=theirs, task=task, name=paper.name)
    return [
        Panel(f"figure3-{name}", _alt(f"{name}, ours, words 1 to 5", results, *cells), ours),
        Panel(f"figure3-{name}-paper", _alt(f"{name}, {paper.name}, words 1 to 5", theirs, *cells), published),
    ]


def _published_words(panel: Axes, results: Sequence[Result], task: Measured, name: str) -> None:
    probing.draw_words(panel, results, task, "mlp")
    panel.set_title(f"{task.name.replace('_', ' ').capitalize()}, {name}", size=10)


def _beside(results: Sequence[Result], theirs: Sequence[Result], paper: Published, cell: Cell) -> Panel:
    title = f"{cell.task} {cell.metric}" if cell.input == "word" else cell.input
    name = f"{cell.task}-{cell.metric if cell.input == 'word' else cell.input}".replace(" ", "-")
    alt = f"{_alt(f'{title}, ours', results, cell)}. {_alt(paper.name, theirs, cell)}"
    draw = partial(_points, results=results, theirs=theirs, paper=paper.name, cell=cell, title=title.capitalize())
    return Panel(f"figure-{name}", alt, draw, 2)


def _points(
    panel: Axes, results: Sequence[Result], theirs: Sequence[Result], paper: str, cell: Cell, title: str
) -> None:
    """A point per variant with its interval, the published number beside it."""
    for i, (ours, published) in enumerate(zip(results, theirs, strict=True)):
        if row := find(ours, cell):
            probing.bars(panel, [i - 0.1], [row], linestyle="", capsize=3, **probing.look(i))
        if other := find(published, cell):
            style = {**probing.look(i), "markerfacecolor": "white"}
            panel.plot([i + 0.15], [other.score.value], linestyle="", label=None, **style)
    panel.plot([], [], "o", color="0.3", label="ours")
    panel.plot([], [], "o", color="0.3", markerfacecolor="white", label=paper)
    if cell.metric == "accuracy":
        panel.axhline(0.5, color="0.5", linewidth=0.8, linestyle="--", zorder=0)
    panel.set_xticks(range(len(results)), [result.name for result in results], rotation=30, ha="right")
    panel.set_xlim(-0.5, len(results) - 0.5)
    panel.set_title(title, size=10)
    panel.set_ylabel({"pearson": "Pearson's r", "spearman": "Spearman's ρ"}.get(cell.metric, cell.metric))


def _panel(name: str, title: str, curves: Mapping[str, Curve]) -> Panel:
    ends = [f"{n}: {c[0][1]:.3g} at step {c[0][0]}, {c[-1][1]:.3g} at {c[-1][0]}" for n, c in curves.items()]
    return Panel(name, f"{title}: {'; '.join(ends)}", partial(_curves, title=title, curves=curves), 2)


def _curves(panel: Axes, title: str, curves: Mapping[str, Curve]) -> None:
    for i, (name, curve) in enumerate(curves.items()):
        style = {**probing.look(i), "markersize": 3 if len(curve) < 60 else 0}
        panel.plot(*zip(*curve, strict=True), label=name, linewidth=1.2, **style)
    panel.set_title(title, size=10)
    panel.set_xlabel("step")
    panel.locator_params(axis="x", integer=True)


def _alt(title: str, results: Sequence[Result], *cells: Cell) -> str:
    parts = []
    for result in results:
        rows = [row for cell in cells if (row := row_of(result, cell))]
        if rows:
            parts.append(f"{result.name} {', '.join(f'{row.score.value:.3f}' for row in rows)}")
    return f"{title}: {'; '.join(parts) or 'none'}"


def _by_layer(results: Sequence[Result], name: str, task: str, kind: str) -> Panel:
    parts = []
    for result in results:
        values = [row.score.value for row in probing.rows_by_layer(result, task, kind)]
        if values:
            parts.append(f"{result.name} mean {sum(values) / len(values):.2f}, last layer {values[-1]:.2f}")
    draw = partial(probing.draw_by_layer, results=results, task=task, name=kind)
    return Panel(f"{name}-{kind.replace(' ', '-')}", f"{kind}, {probing.BY_LAYER[task][3]}: {'; '.join(parts)}", draw)
