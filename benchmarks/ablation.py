"""What each option of supervised training gives: one factor at a time against the quickstart's last stage, over seeds.

    python benchmarks/ablation.py [--seeds 1 2 3] [--factors symmetric "full fine-tuning"] [--work FOLDER]

Every run starts from the same encoder, the quickstart's simcse stage (trained first, in --work), and takes as many
steps of as many pairs. What is there is not trained again; further seeds and factors are added. Scores are of texts
that no stage has seen, of three kinds: similarity (STSBenchmark, Spearman), retrieval (held-out descriptions; SciFact's
claims among the abstracts of all claims; MRR) and classification (Banking77, logistic regression on 8 texts of each
class, accuracy). $OTHERSIDE_SHARED (or ../shared) must have them, and the NLI pairs.

A gain is the mean over seeds of the difference to the plain recipe with the same seed, ± its 95 % t interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pyarrow.parquet as pq
from harness import keep
from scipy.stats import t
from sklearn.linear_model import LogisticRegression

from otherside.encoder import Encoder
from otherside.probing.report import markdown
from otherside.probing.retrieval import read_pairs, retrieval
from otherside.probing.similarity import similarity

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("OTHERSIDE_SHARED", ROOT.parent / "shared")).resolve() / "data"
RECIPE = ROOT / "configs" / "quickstart"
DATA, START = "runs/quickstart/data", "runs/quickstart/simcse/encoder"
MINED, TAUGHT, NLI = "mined.jsonl", "taught.jsonl", "nli.jsonl"
SHOTS, EVERY = 8, 3  # Banking77: texts of each class to learn from; of the test texts one of so many

MODEL, ROWS = "--model.init_args", "--data.init_args"
PLAIN = "plain"


def sources(*paths: str, **settings: object) -> list[str]:
    """As an option."""
    return [f"{ROWS}.sources", json.dumps([{"path": path, **settings} for path in paths])]


FACTORS: dict[str, list[str]] = {
    PLAIN: [],
    # data
    "a near negative of each pair": [f"{ROWS}.negatives", "1"],
    "a mined negative of each pair": [*sources(MINED), f"{ROWS}.negatives", "1"],
    "four mined negatives": [*sources(MINED), f"{ROWS}.negatives", "4"],
    "four mined negatives alone": [*sources(MINED, in_batch=False), f"{ROWS}.negatives", "4"],
    "four negatives mined by a teacher": [*sources(TAUGHT), f"{ROWS}.negatives", "4"],
    "NLI pairs too": sources(f"{DATA}/pairs.jsonl", NLI),
    "NLI pairs too, with their negatives": [*sources(f"{DATA}/pairs.jsonl", NLI), f"{ROWS}.negatives", "1"],
    # loss
    "symmetric": [f"{MODEL}.loss.symmetric", "true"],
    "scale 50": [f"{MODEL}.loss.scale", "50"],
    "scale 10": [f"{MODEL}.loss.scale", "10"],
    "matryoshka": [f"{MODEL}.loss.matryoshka", "[72, 144, 288]"],
    "a teacher's scores of its four": [
        *(*sources(TAUGHT, scores=True), f"{ROWS}.negatives", "4"),
        *(f"{MODEL}.loss.teacher", json.dumps({"kind": "kl", "temperature": 0.05})),
    ],
    "false negatives left out": [f"{MODEL}.loss.false_negative_margin", "-0.1"],
    # model
    "not rescaled": [f"{MODEL}.rescaled", "false"],
    "last token": [f"{MODEL}.pooling", "last_token"],
    "LoRA of rank 64": [f"{MODEL}.lora.r", "64", f"{MODEL}.lora.alpha", "128"],
    "full fine-tuning": [f"{MODEL}.lora", "null", f"{MODEL}.optimizer.init_args.lr", "1.0e-4"],
    "full fine-tuning above 15 layers": [
        *(f"{MODEL}.lora", "null", f"{MODEL}.frozen_layers", "15"),
        *(f"{MODEL}.optimizer.init_args.lr", "1.0e-4"),
    ],
    # both of what helps, and whether it is only more change
    "a mined negative, LoRA of rank 64": [
        *(*sources(MINED), f"{ROWS}.negatives", "1"),
        *(f"{MODEL}.lora.r", "64", f"{MODEL}.lora.alpha", "128"),
    ],
    "a rate of 1e-3": [f"{MODEL}.optimizer.init_args.lr", "1.0e-3"],
    # amount
    "a batch of 64": [f"{ROWS}.global_batch_size", "64"],
}


def run(folder: Path, module: str, *arguments: object) -> None:
    """A command in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], cwd=folder, check=True, env=environment)


def prepare(work: Path, teacher: Path | None) -> None:
    """The encoder to start from, and pairs."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / DATA / "pairs.jsonl").is_file():
        run(work, "datamodules.wikipedia", "--out", DATA)
    for stage in ("mntp", "simcse"):
        if not (work / "runs" / "quickstart" / stage / "encoder").is_dir():  # so that several may be measured at once
            run(work, "lightning_modules.cli", "fit", "--config", RECIPE / f"{stage}.yaml")
    for encoder, out in ((START, MINED), *([(teacher.resolve(), TAUGHT)] if teacher else [])):
        if not (work / out).is_file():
            run(work, "lightning_modules.cli", "mine", encoder, f"{DATA}/pairs.jsonl", "--out", out)
    if not (work / NLI).is_file():
        rows = map(json.loads, (SHARED / "pairs" / "snli_triplets.jsonl").read_text().splitlines())
        kept = [{name: row[name] for name in ("query", "positive", "negatives")} for row in rows]
        (work / NLI).write_text("".join(json.dumps(row) + "\n" for row in kept))


def score(encoder: Encoder, data: Path) -> dict[str, float]:
    """By measure."""
    rated = [(row["sentence1"], row["sentence2"], row["score"]) for row in read("stsbenchmark-sts", "default/test")]
    abstracts = {row["_id"]: f"{row['title']} {row['text']}" for row in read("scifact", "corpus/corpus")}
    claims = {row["_id"]: row["text"] for row in read("scifact", "queries/queries")}
    found = {row["query-id"]: row["corpus-id"] for row in read("scifact", "default/test") if row["score"]}
    asked = [(claims[claim], abstracts[abstract]) for claim, abstract in found.items()]
    return {
        "STSBenchmark": similarity(encoder, rated)[0].score.value,
        "descriptions": retrieval(encoder, read_pairs(data / "heldout.jsonl"))[0].score.value,
        "SciFact": retrieval(encoder, asked)[0].score.value,
        "Banking77": classified(encoder),
    }


def classified(encoder: Encoder) -> float:
    """Accuracy on Banking77's test texts."""
    few: dict[str, list[str]] = {}
    for row in read("banking77", "default/train"):
        few.setdefault(row["label_text"], []).append(row["text"])
    taught = [(text, label) for label, texts in few.items() for text in texts[:SHOTS]]
    asked = [(row["text"], row["label_text"]) for row in read("banking77", "default/test")[::EVERY]]
    (train, known), (test, wanted) = (
        (encoder.encode([text for text, _ in rows], normalize=True), [label for _, label in rows])
        for rows in (taught, asked)
    )
    return float(LogisticRegression(C=10, max_iter=300).fit(train, known).score(test, wanted))


def read(task: str, part: str) -> list[dict[str, Any]]:
    """Rows of a task."""
    return pq.read_table(SHARED / "mteb" / f"mteb__{task}" / f"{part}.parquet").to_pylist()  # type: ignore[no-any-return]


def scored(work: Path, factor: str, seed: int) -> dict[str, float]:
    """Of one run, which is made first if need be."""
    folder = Path(f"{factor.replace(' ', '-').replace(',', '')}-{seed}")
    if not (work / folder / "scores.json").is_file():
        fit = ("fit", "--config", RECIPE / "supervised.yaml", "--seed_everything", seed)
        run(work, "lightning_modules.cli", *fit, "--trainer.default_root_dir", folder, *FACTORS[factor])
    return kept(work / folder / "scores.json", work / folder / "encoder", work / DATA)


def kept(file: Path, encoder: Path, data: Path) -> dict[str, float]:
    """Its scores, computed once."""
    if not file.is_file():
        file.write_text(json.dumps(score(Encoder.load(encoder, dtype="auto"), data)))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def gain(values: Sequence[float]) -> str:
    """Mean and interval."""
    if len(values) < 2:
        return f"{mean(values):+.3f}"
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):+.3f} ± {half:.3f}{' *' if abs(mean(values)) > half else ''}"


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--factors", nargs="+", choices=FACTORS, default=list(FACTORS))
    parser.add_argument("--teacher", type=Path, help="a stronger encoder, for the factors that have one")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-ablation"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reports")
    options = parser.parse_args()
    work = options.work.resolve()
    prepare(work, options.teacher)
    before = kept(work / "start.json", work / START, work / DATA)
    plain = {seed: scored(work, PLAIN, seed) for seed in options.seeds}
    rows = [
        ["where it starts", *(f"{value:.3f}" for value in before.values())],
        [PLAIN, *(f"{mean(each[name] for each in plain.values()):.3f}" for name in before)],
    ]
    for factor in options.factors:
        if factor == PLAIN:
            continue
        found = {seed: scored(work, factor, seed) for seed in options.seeds}
        rows.append([factor, *(gain([found[s][name] - plain[s][name] for s in options.seeds]) for name in before)])
        print(markdown(["factor", *before], rows), flush=True)
    text = [f"Seeds {options.seeds}; * the interval leaves out 0.", "", markdown(["factor", *before], rows)]
    keep(options.out, "ablation", "One factor at a time: the supervised stage", text)


if __name__ == "__main__":
    main()
