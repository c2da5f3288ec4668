"""How far a short run of the contrastive stages should go: rates of the quickstart's `simcse` and `supervised`.

    python benchmarks/rates.py [--rates 5e-4 1e-3 2e-3 4e-3 5e-4:5e-4 2e-3:5e-4 2e-3:1e-3] [--seed 42] [--work FOLDER]

A rate is of `simcse`, or of `simcse` and of `supervised` behind it. Measured is what rates may be chosen by, as the
results' tests are not among it: STSBenchmark's validation set (Spearman), Banking77's training texts (logistic
regression on 8 of each class, accuracy on a sixth of the others), and the held-out articles of the quickstart.
$OTHERSIDE_SHARED (or ../shared) must have the first two. What is there is not trained again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ablation import DATA, MODEL, RECIPE, SHOTS, read, run
from harness import keep
from sklearn.linear_model import LogisticRegression

from otherside.encoder import Encoder
from otherside.probing.report import markdown
from otherside.probing.retrieval import read_pairs, retrieval
from otherside.probing.similarity import read_rated, similarity

ROOT = Path(__file__).parents[1]
RATE = f"{MODEL}.optimizer.init_args.lr"
OTHERS = 6  # of Banking77's other texts one of so many


def measure(encoder: Encoder, data: Path) -> dict[str, float]:
    """By what rates are chosen."""
    rated = [(r["sentence1"], r["sentence2"], r["score"]) for r in read("stsbenchmark-sts", "default/validation")]
    few: dict[str, list[str]] = {}
    others: list[tuple[str, str]] = []
    for row in read("banking77", "default/train"):
        texts = few.setdefault(row["label_text"], [])
        if len(texts) < SHOTS:
            texts.append(row["text"])
        else:
            others.append((row["text"], row["label_text"]))
    taught = [(text, label) for label, texts in few.items() for text in texts]
    (train, known), (test, wanted) = (
        (encoder.encode([text for text, _ in rows], normalize=True), [label for _, label in rows])
        for rows in (taught, others[::OTHERS])
    )
    return {
        "STSBenchmark, validation": similarity(encoder, rated)[0].score.value,
        "Banking77, training texts": float(
            LogisticRegression(C=10, max_iter=300).fit(train, known).score(test, wanted)
        ),
        "retrieval MRR": retrieval(encoder, read_pairs(data / "heldout.jsonl"))[0].score.value,
        "similarity": similarity(encoder, read_rated(data / "similarity.jsonl"))[0].score.value,
    }


def trained(work: Path, rates: list[str], seed: int) -> Path:
    """The encoder at the end of as many stages as there are rates."""
    model, before = Path("runs/quickstart/mntp/encoder"), ""
    for stage, rate in zip(("simcse", "supervised"), rates, strict=False):
        folder = Path(f"{before}{stage}-{rate}-{seed}")
        if not (work / folder / "finished.json").is_file():
            settings = (RATE, float(rate), f"{MODEL}.backbone.model", model, "--seed_everything", seed)
            fit = ("fit", "--config", RECIPE / f"{stage}.yaml", *settings, "--trainer.default_root_dir", folder)
            run(work, "lightning_modules.cli", *fit)
        model, before = folder / "encoder", f"{folder}-"
    return work / model


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rates = ["5e-4", "1e-3", "2e-3", "4e-3", "5e-4:5e-4", "2e-3:5e-4", "2e-3:1e-3"]
    parser.add_argument("--rates", nargs="+", default=rates)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-rates"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reports")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    run(work, "datamodules.wikipedia", "--out", DATA)
    run(work, "lightning_modules.cli", "fit", "--config", RECIPE / "mntp.yaml")
    rows, names = [], ["simcse", "supervised"]
    for asked in options.rates:
        found = measure(Encoder.load(trained(work, asked.split(":"), options.seed), dtype="auto"), work / DATA)
        rows.append([*[*asked.split(":"), ""][:2], *(f"{value:.3f}" for value in found.values())])
        print(markdown([*names, *found], rows), flush=True)
    text = [f"Seed {options.seed}; rates of the two stages.", "", markdown([*names, *found], rows)]
    keep(options.out, "rates", "Learning rates of a short run", text)


if __name__ == "__main__":
    main()
