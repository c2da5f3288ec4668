"""`lightning report`: what was trained and what came out, as one page that needs nothing but a browser."""

from __future__ import annotations

from pathlib import Path


def report(runs: list[str], *, out: Path, probing: Path | None = None, title: str | None = None) -> None:
    """One page about runs: what was trained, losses, MTEB, probing beside the paper, and the paper's findings.

    Writes OUT/report.html, which holds all it needs (it can be mailed, opened on a phone, printed), and its parts:
    runs.json, findings.json, curves.csv, mteb.csv, probing.csv, paper.csv, figures/. What was not measured is left
    out, and named.

    Args:
        runs: folders of runs (trainer.default_root_dir), or folders that hold such folders, such as a recipe's.
        out: folder for the report.
        probing: folder that `lightning probe` wrote. By default the first of RUN…, their folders probe/ and the folders
            around them that has a results.json.
        title: of the page.
    """
    from lightning_modules.report.page import write

    print(f"Report: {write([Path(run) for run in runs], out, probing, title)}")
