"""`lightning report` on real tiny runs: trained, evaluated by mteb and probed here, then read from the page again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
import runs
from probing_data import write_published
from sts import write_sts

from lightning_modules.report import report
from lightning_modules.report.figures import begin
from lightning_modules.report.runs import Run, find_runs
from otherside.lineage import Card, Lineage, Merged
from otherside.probing.findings import spoken

QUICK = ("--repeats", "2", "--mlp=false", "--controls=false", "--dtype", "float32")
VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page's elements, text and faults."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes {self.open[-3:]}"

    def handle_data(self, data: str) -> None:
        if not {"style", "title"} & set(self.open):
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def check(text: str) -> Page:
    """What every report must be: valid, accessible, complete in itself."""
    page = Page(text)
    assert not page.open
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(set(ids)) == len(ids)
    assert {a["href"].removeprefix("#") for a in page.all("a") if a["href"]} <= set(ids)  # only within the page
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(len(a["alt"] or "") > 20 for a in page.all("img"))
    assert all((a["src"] or "").startswith("data:image/svg+xml;base64,") for a in page.all("img"))
    assert not page.all("script") and not page.all("link") and "@import" not in text and "url(" not in text
    assert page.all("html")[0]["lang"] == "en" and any(a.get("name") == "viewport" for a in page.all("meta"))
    assert all(a.get("scope") for a in page.all("th"))
    return page


pytestmark = pytest.mark.xdist_group("report")  # its runs are made once


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A folder with two runs, `mntp` with MTEB and `supervised` from it, and `probe`."""
    folder = tmp_path_factory.mktemp("report")
    runs.write_data(folder, rows=24)
    write_sts(folder / "tasks")
    mteb = {"tasks": ["STSBenchmark"], "data": "tasks"}
    runs.run("fit", "--config", runs.write_stage(folder, "MNTP", tiny_llama, steps=3, mteb=mteb), cwd=folder)
    runs.run("fit", "--config", runs.write_stage(folder, "Supervised", "runs/mntp/encoder", steps=2), cwd=folder)
    data = write_published(folder / "probing")
    encoders = ["runs/mntp/encoder", "runs/supervised/encoder"]
    (folder / "lists").mkdir()
    (folder / "lists/L.txt").write_text("".join(f"word{i} thing{i % 5} {i % 7}\n" for i in range(12)))
    (folder / "texts.txt").write_text("One of the texts that no stage has ever read.\nAnother of them.\n")
    more = ("--words", "lists", "--generation", "texts.txt")
    runs.run("probe", *encoders, "--data", data, "--out", "runs/probe", *more, *QUICK, cwd=folder)
    return folder


def test_report_of_everything(trained: Path) -> None:
    runs.run("report", "runs", "--out", "out", cwd=trained)
    out = trained / "out"
    page = check((out / "report.html").read_text())
    for part in ("runs.json", "findings.json", "curves.csv", "mteb.csv", "probing.csv", "paper.csv"):
        assert (out / part).stat().st_size > 50, part
    drawn = {file.stem for file in (out / "figures").glob("*.svg")}
    assert drawn == {file.stem for file in (out / "figures").glob("*.png")}
    assert len(page.all("img")) == len(drawn) == 8 + 2 + 4 + 3 + 2 + 2 + 2 + 2  # figures 3, 5 to 8, words, losses, mteb
    assert "Does it still generate?" in page.text and "perplexity, adapters off" in page.text

    [result] = (trained / "runs/mntp/mteb/results").glob("*/*-step3/STSBenchmark.json")
    score = json.loads(result.read_text())["scores"]["test"][0]["main_score"]
    assert f"{100 * score:.2f}" in page.text
    rows = list(csv.DictReader((out / "mteb.csv").open()))
    assert float(next(row for row in rows if row["step"] == "3")["score"]) == score

    for row in csv.DictReader((out / "paper.csv").open()):
        value, low, high = (float(row[key]) for key in ("value", "low", "high"))
        if row["paper"]:
            assert f"{value:.3f} ({low:.3f}…{high:.3f})" in page.text
            assert f"{float(row['paper']):.3f}" in page.text
    assert "Probed were other encoders" not in page.text
    for finding in json.loads((out / "findings.json").read_text())["findings"]:
        assert spoken(finding) in page.text
        for claim in finding["claims"]:
            assert f"{claim['value']:+.3f}".replace("-", "−") in page.text

    [start] = json.loads((trained / "runs/mntp/environment.json").read_text())["starts"]
    assert start["last_step"] == 3 and start["parameters"]["trained"] < start["parameters"]["all"]
    assert start["packages"]["torch"] in page.text and start["device"] in page.text
    losses = [row for row in csv.DictReader((out / "curves.csv").open()) if row["name"] == "train/loss"]
    assert {row["run"] for row in losses} == {"mntp", "supervised"}


def test_probes_of_other_encoders_are_named(trained: Path, tmp_path: Path) -> None:
    """As of a run that was trained again since, or of another recipe."""
    again = shutil.copytree(trained / "runs/supervised", tmp_path / "supervised", symlinks=True)
    folder = again / "encoder"
    card = Card.read(folder)
    last = replace(card.lineage.adapters[-1], sha256="0" * 64)
    replace(card, lineage=replace(card.lineage, adapters=(*card.lineage.adapters[:-1], last))).write(folder)
    report([str(again)], out=tmp_path / "out", probing=trained / "runs/probe")
    old = card.lineage.adapters[-1].sha256[:12]
    said = f"Probed were other encoders than those of these runs, by SHA-256: supervised ({old}…)."
    assert (tmp_path / "out/report.html").read_text().count(said) == 2  # mntp is what it was built on


def test_report_without_probing_mteb_and_notes_says_so(trained: Path, tmp_path: Path) -> None:
    run = trained / "runs/supervised"
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("encoder", "finished.json"):
        (alone / name).symlink_to(run / name)
    runs.run("report", alone, "--out", tmp_path / "out", "--title", "A <new> title", cwd=trained)
    text = (tmp_path / "out/report.html").read_text()
    page = check(text)
    assert "A &lt;new&gt; title" in text
    for said in ("Nothing was probed", "No MTEB results", "kept no notes", "no TensorBoard logs"):
        assert said in page.text
    assert not page.all("img")
    assert not (tmp_path / "out/mteb.csv").exists()


def test_stages_stand_one_behind_the_other(trained: Path) -> None:
    found = find_runs([trained / "runs"])
    assert begin(found) == {"mntp": 0, "supervised": 3}
    assert begin(found[1:]) == {"supervised": 0}, "what is not in the report is not counted"
    unfinished = Run(found[1].root, "supervised")
    unfinished.__dict__["card"] = None  # as before its encoder is there: known by its settings
    assert unfinished.starts_from(found[0]) and not found[0].starts_from(unfinished)
    assert begin([found[0], unfinished]) == {"mntp": 0, "supervised": 3}


def test_a_chain_of_three_and_a_namesake() -> None:
    def run(name: str, *stages: str, steps: int = 10) -> Run:
        made = Run(Path("/runs") / name, name)
        lineage = Lineage("base", adapters=tuple(Merged(stage, stage, stage) for stage in stages))
        made.__dict__["card"] = Card(lineage, name, steps, "bidirectional", "mean", 64, None, True, None)
        return made

    chain = [run("mntp", "a"), run("simcse", "a", "b", steps=20), run("supervised", "a", "b", "c")]
    assert begin(chain) == {"mntp": 0, "simcse": 10, "supervised": 30}
    other = run("other", "x", "b", "c")
    assert not other.starts_from(chain[1]) and not run("mine", "a", "y", "z").starts_from(chain[1])
    unfinished = Run(Path("/runs/new"), "new")
    settings = {"model": {"init_args": {"backbone": {"model": "mntp/encoder"}}}}
    unfinished.__dict__.update(card=None, settings=settings)
    assert unfinished.starts_from(chain[0]) and not unfinished.starts_from(run("old-mntp", "a"))


def test_report_again_leaves_nothing_old(trained: Path, tmp_path: Path) -> None:
    runs.run("report", "runs/mntp", "--out", tmp_path, cwd=trained)
    assert (tmp_path / "mteb.csv").exists()
    runs.run("report", "runs/supervised", "--out", tmp_path, cwd=trained)
    assert not (tmp_path / "mteb.csv").exists()
    assert {file.stem for file in (tmp_path / "figures").glob("loss*.svg")} == {"loss-supervised"}
