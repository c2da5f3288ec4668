"""What was measured, as Markdown tables; `figures.py` draws it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from otherside.files import atomic
from otherside.probing.anisotropy import INSIDE, RANDOM
from otherside.probing.figures import write_figures
from otherside.probing.results import OFF, ON, Measured, Result
from otherside.probing.scores import Score
from otherside.probing.tasks import Task

PROBES = {"linear": "a linear probe", "mlp": "a multilayer perceptron"}
HEADLINE = {True: ("pearson", "spearman", "r2", "mse"), False: ("accuracy",)}


def write_report(results: Sequence[Result], tasks: Sequence[Task], out: Path) -> None:
    """table.md and the figures; each appears whole or not at all."""
    with atomic(out / "table.md") as path:
        path.write_text(tables(results, tasks))
    write_figures(results, [Measured.of(task.name, results) for task in tasks], out)


def tables(results: Sequence[Result], tasks: Sequence[Task]) -> str:
    """Markdown, aligned so that it reads well in a terminal too."""
    parts = [*_texts(results)]
    for task in tasks:
        for probe, by in PROBES.items():
            parts += _task(results, task, probe, by)
    parts += [*_anisotropy(results), *_words(results), *_generation(results)]
    parts += [f"{task.name}: {note}." for task in tasks for note in task.notes]
    return "\n\n".join(parts) + "\n\n± is half of the 95 % bootstrap interval over words and repeats.\n"


def _texts(results: Sequence[Result]) -> Iterator[str]:
    for task, title in (("retrieval", "Retrieval among pairs"), ("similarity", "Similarity of rated pairs")):
        if metrics := [row.metric for row in results[0].find(task=task)]:
            body = [[r.name, *(shown(row.score) for row in r.find(task=task))] for r in results]
            yield f"{title}\n\n" + markdown(["variant", *metrics], body)


def _task(results: Sequence[Result], task: Task, probe: str, by: str) -> Iterator[str]:
    """One table a task and probe: a column per input, or per metric of ratings; the controls' below the variants."""
    columns = [(name, metric) for name in task.inputs for metric in HEADLINE[task.regression]]
    target = "mean" if len(task.aspects) > 1 else ""
    body = []
    for condition in ("context", "shuffled labels", "no context"):
        for result in results:
            layer = result.settings["probed"]
            rows = result.find(task=task.name, probe=probe, condition=condition, layer=layer, target=target)
            found = {(row.input, row.metric): shown(row.score) for row in rows}
            if found:
                name = result.name if condition == "context" else f"{result.name}, {condition}"
                body.append([name, *(found[column] for column in columns)])
    if body:
        header = [metric if task.regression else headings(task)[name] for name, metric in columns]
        measured = "mean over 11 norms" if target else "ratings" if task.regression else "accuracy"
        title = f"{task.name.replace('_', ' ').capitalize()}, {by}, {measured}"
        yield f"{title}\n\n{markdown(['variant', *header], body)}"


def headings(task: Task) -> dict[str, str]:
    """Names of the inputs; with the words, where the sentences have one form."""
    if len(task.inputs) != 5:
        return {name: name for name in task.inputs}
    return {
        name: f"{name} {form}" for name, form in zip(task.inputs, ("the", "NOUN", "VERBed", "the", "NOUN"), strict=True)
    }


def _anisotropy(results: Sequence[Result]) -> Iterator[str]:
    body = []
    for result in results:
        rows = result.find(task="anisotropy", layer=result.settings["layers"])
        found = {row.input: shown(row.score) for row in rows}
        body += [[result.name, *(found.get(name, "") for name in (RANDOM, INSIDE))]] if rows else []
    if body:
        yield "Anisotropy of the last layer: mean cosine\n\n" + markdown(["variant", RANDOM, INSIDE], body)


def _words(results: Sequence[Result]) -> Iterator[str]:
    """Mean over lists, of the last layer and of the best one; which part of the pairs there was."""
    first = results[0].find(task="words", target="mean", metric="spearman")
    names = list(dict.fromkeys(row.input for row in first))
    if not names:
        return
    body = []
    for result in results:
        cells = []
        for name in names:
            rows = result.find(task="words", input=name, target="mean", metric="spearman")
            best = max(rows, key=lambda row: row.score.value)
            cells += [shown(rows[-1].score), f"{shown(best.score)}, layer {best.layer}"]
        body.append([result.name, *cells])
    header = [f"{name}, {layer}" for name in names for layer in ("last layer", "best")]
    lists = results[0].find(task="words", metric="coverage")
    covered = [(n, [row.score.value for row in lists if row.input == n]) for n in names]
    measured = Counter({(row.input, row.target) for row in results[0].find(task="words", metric="spearman")})
    shared = sum(times == len(names) for times in Counter(target for _, target in measured).values()) - 1  # the mean
    title = f"Similarity of single words: Spearman's correlation with ratings, mean over {shared} lists"
    yield f"{title}\n\n{markdown(['variant', *header], body)}"
    yield "Pairs whose words are there: " + ", ".join(f"{n} {sum(s) / len(s):.0%}" for n, s in covered) + "."


def _generation(results: Sequence[Result]) -> Iterator[str]:
    """Perplexity, and how each variant goes on from the same words."""
    found = {r.name: {row.input: row.score for row in r.find(task="generation")} for r in results}
    body = [[name, *(shown(s[i]) if i in s else "–" for i in (OFF, ON))] for name, s in found.items() if s]
    if body:
        yield "Generation: perplexity of the next token, causal attention\n\n" + markdown(["variant", OFF, ON], body)
        samples = [f"- {r.name}, {name}: {text!r}" for r in results for name, text in samples_of(r).items()]
        yield "How the first text is gone on with\n\n" + "\n".join(samples)


def samples_of(result: Result) -> dict[str, str]:
    """Continuations by whether adapters are on; where it makes no difference, one."""
    found: dict[str, str] = result.settings.get("completions", {})
    return found if len(set(found.values())) > 1 else dict(list(found.items())[:1])


def half(score: Score) -> float:
    """Of the interval."""
    return (score.high - score.low) / 2


def shown(score: Score) -> str:
    """A score in a table."""
    return f"{score.value:.2f} ±{half(score):.2f}"


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table with aligned columns."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    lines = [header, ["-" * width for width in widths], *body]
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)
