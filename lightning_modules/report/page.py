"""The page: gathers what runs and probes left behind, draws it, and fills the template."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning_modules.finished import NOTE
from lightning_modules.report import figures, tables
from lightning_modules.report.paper import Published, nearest
from lightning_modules.report.runs import Run, find_runs
from lightning_modules.wandb import ID
from otherside.files import atomic, make_folder
from otherside.probing.findings import FILE as FINDINGS
from otherside.probing.findings import MARGIN, Cell, read_findings, spoken
from otherside.probing.results import Measured, Result, read_results

PAGE = "report.html"
SYMBOLS = {
    "holds": "✓",
    "holds in part": "◐",
    "mixed": "✓✗",
    "does not hold": "✗",
    "cannot tell": "?",
    "not measured": "–",
}
NO_PROBING = "Nothing was probed: `lightning probe ENCODER... --out DIR` does it; then run this with --probing DIR."
NO_FINDINGS = "These results of lightning probe hold no findings: run it again (what it measured is kept)."
NO_MTEB = "No MTEB results: a block `mteb:` in a stage's YAML, or `lightning test`, makes some."
NO_NOTES = "These runs kept no notes of hardware, software and time."
NO_CURVES = "These runs left no TensorBoard logs."


@dataclass(frozen=True)
class Probed:
    """What `lightning probe` wrote into one folder."""

    folder: Path
    about: dict[str, Any]
    results: list[Result]
    tasks: list[Measured]
    findings: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Probed:
        """Raises: see `read_results` and `read_findings`."""
        return cls(folder, *read_results(folder), read_findings(folder))


def write(places: list[Path], out: Path, probing: Path | None = None, title: str | None = None) -> Path:
    """Write the report; the path of its page.

    Raises:
        FileNotFoundError: there is no such folder, or no results in `probing`.
        ValueError: no run is named, or in a folder; a file of a run is broken.
        NotADirectoryError: `out` is a file.
    """
    runs = find_runs(places)
    folder = probing or _find_probing(places, runs)
    probed = Probed.read(folder) if folder else None
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out must be a folder; {out} is a file")
    paper = nearest(_parameters(runs))
    rows = _tables(runs, probed, paper)  # everything is read, and found sound, before anything is written
    make_folder(out, "--out")
    groups = [group for group in figures.of_training(runs) if group.panels]
    probes = list(figures.of_probing(probed.results, probed.tasks, paper)) if probed and probed.results else []
    about = json.dumps([_about(run) for run in runs], indent=1) + "\n"
    if (out / PAGE).is_file():  # an older report's: its figures may be of other runs
        shutil.rmtree(out / "figures", ignore_errors=True)
    figures.write([*groups, *probes], out / "figures")
    with atomic(out / "runs.json") as path:
        path.write_text(about)
    for name, found in rows.items():
        tables.write_csv(out / name, found)
    _copy_parts(probed, out)
    page = _page(runs, probed, paper, _inline(groups, out), _inline(probes, out), title)
    path = out / PAGE
    with atomic(path) as temporary:
        temporary.write_text(page)
    return path


def _find_probing(places: Sequence[Path], runs: Sequence[Run]) -> Path | None:
    candidates = [*places, *(place / "probe" for place in places), *(run.root.parent for run in runs)]
    return next((place for place in candidates if (place / "results.json").is_file()), None)


def others(runs: Sequence[Run], probed: Probed | None) -> str:
    """A sentence that names probed encoders that neither are these runs' nor what those were built on; empty: none."""
    lineages = [[stage.sha256 for stage in run.card.lineage.adapters] for run in runs if run.card]
    found = []
    for result in probed.results if probed else []:
        adapters = result.settings.get("adapters", [])
        if adapters and not any(known[: len(adapters)] == adapters for known in lineages):
            found.append(f"{result.name} ({adapters[-1][:12]}…)")
    return f"Probed were other encoders than those of these runs, by SHA-256: {', '.join(found)}." if found else ""


def _parameters(runs: Sequence[Run]) -> int | None:
    sizes = [start["parameters"]["all"] for run in runs for start in run.starts]
    return sizes[-1] if sizes else None


def _inline(groups: Sequence[figures.Group], out: Path) -> list[dict[str, Any]]:
    """Groups with their figures as data: the page loads nothing."""
    found = []
    for group in groups:
        panels = []
        for panel in group.panels:
            data = base64.b64encode((out / "figures" / f"{panel.name}.svg").read_bytes()).decode()
            panels.append({"source": f"data:image/svg+xml;base64,{data}", "alt": panel.alt})
        if panels:
            found.append({"title": group.title, "caption": group.caption, "panels": panels})
    return found


def _tables(runs: Sequence[Run], probed: Probed | None, paper: Published) -> dict[str, list[dict[str, Any]]]:
    """The rows of the CSV files that are the report's own."""
    return {
        "curves.csv": [
            {"run": run.name, "name": name, "step": step, "value": value}
            for run in runs
            for name, curve in run.curves.items()
            for step, value in curve
        ],
        "mteb.csv": [
            {"run": run.name, "model": s.model, "step": s.step, "task": s.task, "score": s.score}
            for run in runs
            for s in run.mteb
        ],
        "paper.csv": tables.comparison(probed.results, paper) if probed else [],
    }


def _copy_parts(probed: Probed | None, out: Path) -> None:
    """What `lightning probe` wrote goes along as it is."""
    for name, part in (("results.csv", "probing.csv"), ("differences.csv", "differences.csv"), (FINDINGS, FINDINGS)):
        source = probed.folder / name if probed else None
        if source and source.resolve() == (out / part).resolve():
            continue  # OUT is the folder of the probes
        (out / part).unlink(missing_ok=True)
        if source and source.is_file():
            shutil.copyfile(source, out / part)


def _about(run: Run) -> dict[str, Any]:
    card = asdict(run.card) if run.card else None
    return {"name": run.name, "folder": str(run.root), "encoder": card, "starts": run.starts, "settings": run.settings}


def _lineage(run: Run) -> dict[str, Any]:
    """How a run's encoder came to be, for the page."""
    if run.card is None:
        return {
            "run": run.name,
            "base": run.setting("model.init_args.backbone.model", "?"),
            "stages": [],
            "state": "not finished",
        }
    stages = [{"name": adapter.name, "sha256": adapter.sha256[:12]} for adapter in run.card.lineage.adapters]
    finished = "" if (run.root / NOTE).is_file() else ", not finished"
    state = f"{run.card.steps} steps, {run.card.attention}, {run.card.pooling} pooling{finished}"
    return {"run": run.name, "base": run.card.lineage.base, "stages": stages, "state": state}


def _findings(probed: Probed | None, paper: Published) -> list[dict[str, Any]]:
    """The findings with the paper's own number beside each claim."""
    found = []
    for finding in probed.findings if probed else []:
        claims = []
        for claim in finding["claims"]:
            cells = [Cell(*cell) for cell in claim["cells"]]
            tasks = ", ".join(dict.fromkeys(tables.spoken(cell.task) for cell in cells))
            published = paper.difference(claim["variant"], claim["minus"], cells)
            claims.append({**claim, "tasks": tasks, "paper": published, "symbol": SYMBOLS[claim["verdict"]]})
        counts = [claim["verdict"] for claim in claims if claim["counted"]]
        tally = [(verdict, counts.count(verdict)) for verdict in SYMBOLS if verdict in counts]
        shown = {"verdict": spoken(finding), "symbol": SYMBOLS[finding["verdict"]]}
        found.append({**finding, "claims": claims, "counts": counts, "tally": tally, **shown})
    return found


def _page(
    runs: Sequence[Run],
    probed: Probed | None,
    paper: Published,
    training: list[dict[str, Any]],
    probes: list[dict[str, Any]],
    title: str | None,
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    names = ", ".join(run.name for run in runs)
    parents = {run.root.parent.name for run in runs}
    recipe = f"{parents.pop()}: " if len(parents) == 1 else ""
    environment = Environment(
        loader=PackageLoader("lightning_modules.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code
    hardware, mteb = tables.hardware(runs), tables.mteb(runs)
    return environment.get_template("template.html").render(
        title=title or f"{recipe}{names}",
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        lineages=[_lineage(run) for run in runs],
        settings=tables.settings(runs),
        configs=[(run.name, run.settings_file.read_text()) for run in runs if run.settings_file],
        hardware=hardware,
        mteb=mteb,
        training=training,
        probes=probes,
        findings=_findings(probed, paper),
        beside=tables.beside(probed.results, paper) if probed else [],
        generation=tables.generation(probed.results) if probed else None,
        margin=MARGIN,
        paper=paper,
        probed=probed,
        others=others(runs, probed),
        builtin=bool(probed and probed.about.get("data") == "builtin"),
        missing=_missing(runs, probed, mteb, hardware, training),
    )


def _in_wandb(runs: Sequence[Run]) -> str:
    known = [f"{run.name} (run {path.read_text().strip()})" for run in runs if (path := run.root / ID).is_file()]
    return f"Curves are in Weights & Biases: {', '.join(known)}." if known else ""


def _missing(
    runs: Sequence[Run],
    probed: Probed | None,
    mteb: tables.Table | None,
    hardware: tables.Table | None,
    training: list[dict[str, Any]],
) -> dict[str, str]:
    """A sentence for each part that there is nothing to say in."""
    findings = NO_PROBING if probed is None else "" if probed.findings else NO_FINDINGS
    return {
        "findings": findings,
        "probing": "" if probed else NO_PROBING,
        "mteb": "" if mteb else NO_MTEB,
        "hardware": "" if hardware else NO_NOTES,
        "curves": _in_wandb(runs) or ("" if training else NO_CURVES),
    }


def _code(text: str) -> Any:
    """Text with `…` as code."""
    from markupsafe import Markup, escape

    parts = text.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if i % 2 else escape(p) for i, p in enumerate(parts))
