"""Our probing results beside the paper's, and whether its three findings hold: Markdown from the folder of a run.

    lightning probe ENCODER... --data published --out DIR
    python benchmarks/probing.py DIR --paper tables.json > benchmarks/reports/DATE-probing.md
    python benchmarks/probing.py DIR --random DIR2 --paper tables.json --summary      # one table, for docs/results.md

`tables.json` holds Tables 4 to 11 of the paper: {context_probes, classification, concreteness, sensorimotor} ->
{mlp, linear} -> model -> numbers. DIR2 is of the same encoders with `--split random`, as the paper splits.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otherside.probing.findings import ahead, behind, read_findings, spoken
from otherside.probing.published import CONTEXT
from otherside.probing.report import markdown

Row = dict[str, str]
NEAREST = "Sheared-Llama-1.3B"
MODELS = {
    "uni": NEAREST,
    "mntp": f"{NEAREST}-Bi+MNTP",
    "simcse": f"{NEAREST}-Bi+MNTP+SimCSE",
    "supervised": f"{NEAREST}-Bi+MNTP+Supervised",
}
WIC = ("absolute difference", "cosine", "concatenation")
METRICS = ("mse", "r2", "pearson", "spearman")
RATED = (("concreteness", ""), ("sensorimotor", "mean"))
SUMMARY = (
    "in front",
    "behind",
    "telicity",
    "duration",
    "concreteness",
    "sensorimotor",
    *(f"WiC, {name}" for name in WIC),
)


def shown(row: Row | None) -> str:
    if row is None:
        return ""
    value, low, high = (float(row[name]) for name in ("value", "low", "high"))
    return f"{value:.3f} [{low:.3f}, {high:.3f}]" if abs(value) < 100 else f"{value:.0f} [{low:.0f}, {high:.0f}]"


def number(values: list[float]) -> str:
    return f"{sum(values) / len(values):.3f}".lstrip("0")


class Results:
    def __init__(self, folder: Path, paper: dict[str, Any]) -> None:
        self.rows = list(csv.DictReader((folder / "results.csv").open()))
        self.folder, self.paper = folder, paper
        self.variants = list(dict.fromkeys(row["variant"] for row in self.rows))

    def find(self, **wanted: str) -> Row | None:
        wanted = {"condition": "context", **wanted}
        found = [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]
        return max(found, key=lambda row: int(row["layer"])) if found else None

    def beside(self, header: list[str], cells: list[dict[str, str]], theirs: dict[str, list[Any]]) -> str:
        body = []
        for variant in self.variants:
            body.append([variant, *(shown(self.find(variant=variant, **cell)) for cell in cells)])
            if variant in MODELS:
                body.append([f"*{MODELS[variant]}*", *(f"*{number}*" for number in theirs[MODELS[variant]])])
        return markdown(["variant", *header], body)

    def context(self, probe: str) -> Iterator[str]:
        for task, asked in CONTEXT.items():
            yield f"### {task}, {probe}, accuracy from word 1 to 5 (asked about: word {asked})"
            published = self.paper["context_probes"][probe]
            cells = [{"task": task, "probe": probe, "input": word} for word in "12345"]
            yield self.beside(list("12345"), cells, {model: published[model][task] for model in MODELS.values()})

    def tables(self) -> Iterator[str]:
        for probe in ("mlp", "linear"):
            yield from self.context(probe)
            yield f"### Lexical aspect and word in context, {probe}, accuracy"
            published = self.paper["classification"][probe]
            cells = [{"task": task, "probe": probe, "input": "word"} for task in ("telicity", "duration")]
            cells += [{"task": "wic", "probe": probe, "input": name} for name in WIC]
            keys = ["telicity", "duration", *(f"wic_{name.replace(' ', '_')}" for name in WIC)]
            theirs = {model: [published[model][key] for key in keys] for model in MODELS.values()}
            yield self.beside(keys, cells, theirs)
            for task, target in RATED:
                yield f"### {task}, {probe}"
                published = self.paper[task][probe]
                cells = [{"task": task, "target": target, "probe": probe, "metric": metric} for metric in METRICS]
                theirs = {model: [published[model][metric] for metric in METRICS] for model in MODELS.values()}
                yield self.beside(list(METRICS), cells, theirs)

    def summary(self) -> Iterator[list[str]]:
        """A line for each variant: means over words of the context probes, and what is one number; perceptrons."""
        for variant in self.variants:
            wanted = [
                *([{"task": cell.task, "input": cell.input} for cell in cells] for cells in (ahead(), behind())),
                *([{"task": task}] for task in ("telicity", "duration")),
                *([{"task": task, "target": target, "metric": "pearson"}] for task, target in RATED),
                *([{"task": "wic", "input": name}] for name in WIC),
            ]
            rows = [[self.find(variant=variant, probe="mlp", **cell) for cell in cells] for cells in wanted]
            if all(row for found in rows for row in found):
                yield [variant, *(number([float(row["value"]) for row in found if row]) for found in rows)]

    def published(self) -> Iterator[list[str]]:
        """The paper's lines of the same kind, of its models nearest to ours."""
        mlp = {task: self.paper[task]["mlp"] for task in ("context_probes", "classification", *(t for t, _ in RATED))}
        for model in ("BERT-base", *MODELS.values()):
            words, others = mlp["context_probes"][model], mlp["classification"][model]
            context = [[words[cell.task][int(cell.input) - 1] for cell in cells] for cells in (ahead(), behind())]
            single = [others["telicity"], others["duration"], *(mlp[task][model]["pearson"] for task, _ in RATED)]
            single += [others[f"wic_{name.replace(' ', '_')}"] for name in WIC]
            yield [model, *(number(values) for values in [*context, *([value] for value in single)])]

    def controls(self) -> str:
        """The mean over words and tasks of each condition, MLP."""
        body = []
        for variant in self.variants:
            for condition in ("context", "shuffled labels", "no context"):
                line = [f"{variant}, {condition}"]
                for task in (*CONTEXT, "telicity", "duration", "wic", "concreteness", "sensorimotor"):
                    metric = "pearson" if task in ("concreteness", "sensorimotor") else "accuracy"
                    wanted = {
                        "variant": variant,
                        "task": task,
                        "probe": "mlp",
                        "condition": condition,
                        "metric": metric,
                    }
                    values = [float(r["value"]) for r in self.rows if all(r[k] == v for k, v in wanted.items())]
                    line.append(f"{sum(values) / len(values):.3f}" if values else "")
                body.append(line)
        header = ["variant", *CONTEXT, "telicity", "duration", "wic", "concreteness (r)", "sensorimotor (r)"]
        return markdown(header, [row for row in body if any(row[1:])])

    def findings(self) -> Iterator[str]:
        for finding in read_findings(self.folder):
            yield f"### Finding {finding['number']}: {spoken(finding)}\n\n> {finding['says']}"
            body = [
                [
                    claim["about"] + ("" if claim["counted"] else " (beside)"),
                    f"{claim['variant']} − {claim['minus']}",
                    claim["direction"],
                    f"{claim['value']:+.3f} [{claim['low']:+.3f}, {claim['high']:+.3f}]",
                    str(len(claim["cells"])),
                    claim["verdict"],
                ]
                for claim in finding["claims"]
            ]
            if body:
                yield markdown(["what", "variants", "claimed", "mean difference", "of numbers", "verdict"], body)

    def anisotropy(self) -> str:
        layers = sorted({int(r["layer"]) for r in self.rows if r["task"] == "anisotropy"})
        chosen = sorted({layers[0], *layers[1 :: max(1, len(layers) // 6)], layers[-1]})
        body = []
        for variant in self.variants:
            for name in ("random words", "same sentence"):
                cells = {"variant": variant, "task": "anisotropy", "input": name}
                rows = [self.find(layer=str(layer), **cells) for layer in chosen]
                body.append([f"{variant}, {name}", *(f"{float(r['value']):.3f}" if r else "" for r in rows)])
        return markdown(["mean cosine at layer", *map(str, chosen)], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--random", type=Path, help="folder of a run with --split random, shown beside the paper too")
    parser.add_argument("--paper", type=Path, required=True)
    parser.add_argument("--summary", action="store_true", help="one table only, a line for each variant")
    options = parser.parse_args()
    paper = json.loads(options.paper.read_text())
    results = Results(options.folder, paper)
    if options.summary:
        lines = [[*line, "paper"] for line in results.published()]
        if options.random:
            lines += [[*line, "random"] for line in Results(options.random, paper).summary()]
        lines += [[*line, "new words"] for line in results.summary()]
        print(markdown(["variant", *SUMMARY, "test words"], lines))
        return
    parts = ["## The paper's findings", *results.findings(), "## Anisotropy", results.anisotropy()]
    parts += ["## Controls (MLP; means over words or inputs)", results.controls()]
    parts += [
        "## Beside the paper",
        "Paper: in italics, its nearest model. Ours: value [95 % interval].",
        *results.tables(),
    ]
    if options.random:
        parts.append("## Context probes on a random split")
        for probe in ("mlp", "linear"):
            parts += Results(options.random, paper).context(probe)
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
