"""`lightning quickstart`: a recipe on Wikipedia's summaries from texts to report, with the time left for all of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_modules.identity import given
from lightning_modules.includes import with_includes
from lightning_modules.recipe import Parser, check_first, check_overrides, run, unfinished
from lightning_modules.steps import Mining, Stage, Step, steps

DESCRIPTION = (
    "Texts and pairs from 10,033 Wikipedia summaries, all stages of a recipe upon them, what each stage did to words "
    "and sentences, and a page about it. The same command again goes on where it was stopped."
)
USAGE = "lightning quickstart [--recipe FOLDER] [--data builtin|published|FOLDER]"
# Minutes on two cores; the pace of this machine scales what is left
TEXTS, START, TOKENS, MINED, PROBING, PAGE = 0.2, 0.8, 4e-5, 4.0, 1.0, 0.4
SIZES = ("trainer.max_steps", "data.global_batch_size", "data.max_length")


@dataclass(frozen=True)
class Part:
    """A process of its own.

    Args:
        does: what, for people.
        command: of this Python.
        minutes: that it may take, beside the others.
    """

    does: str
    command: list[str]
    minutes: float


def main(arguments: list[str]) -> None:
    """`lightning quickstart`.

    Raises:
        SystemExit: with a part's exit status, if it fails; the parts behind it are not started.
    """
    parser = Parser("lightning quickstart", description=DESCRIPTION, allow_abbrev=False, usage=USAGE)
    parser.add_argument("--recipe", type=Path, default=Path("otherside:quickstart"), help="a folder of stages")
    parser.add_argument("--data", default="builtin", help="of `lightning probe`; published are the paper's")
    parser.epilog = "Every other option goes to `lightning fit` of every stage, such as --trainer.max_steps 2."
    settings, overrides = parser.parse_known_args(arguments)
    order = steps(settings.recipe)
    root = Path(next((step.root for step in order if isinstance(step, Stage)), order[0].makes[0])).parent
    parts = planned(order, root, settings.data, overrides)
    check_first(settings.recipe, unfinished(order, overrides), overrides)
    all_together(parts)
    print(root / "report" / "report.html")


def planned(order: Sequence[Step], root: Path, data: str, overrides: list[str]) -> list[Part]:
    """What is to be done, in order; steps that are finished are left out.

    Args:
        order: the recipe's steps.
        root: folder of their runs.
        data: of probing.
        overrides: of the stages' settings.
    """
    check_overrides(overrides)
    texts = root / "data"
    lightning = ["-m", "lightning_modules.cli"]
    encoders = [f"{step.root}/encoder" for step in order if isinstance(step, Stage)]
    files = {"retrieval": "heldout.jsonl", "similarity": "similarity.jsonl", "generation": "sentences_heldout.txt"}
    probe = [*lightning, "probe", *encoders, "--data", data, "--out", str(root)]
    probe += [word for option, file in files.items() for word in (f"--{option}", str(texts / file))]
    report = [*lightning, "report", str(root), "--out", str(root / "report")]
    return [
        Part("texts and pairs of Wikipedia's summaries", ["-m", "datamodules.wikipedia", "--out", str(texts)], TEXTS),
        *(
            Part(f"{step.name}, from {step.model}", step.command(overrides), minutes(step, overrides))
            for step in unfinished(order, overrides)
        ),
        Part("what each stage did to word and sentence meaning", probe, PROBING * (len(encoders) + 2)),
        Part("the report", report, PAGE),
    ]


def minutes(step: Step, overrides: list[str]) -> float:
    """That a step may take. Of a stage that no `trainer.max_steps` ends, its start alone."""
    if isinstance(step, Mining):
        return MINED
    now = given(with_includes(["--config", str(step.file), *overrides]))
    views = 1 if str(now.get("model.class_path")).endswith("MNTP") else 2
    steps, texts, length = (now.get(name) or 0 for name in SIZES)
    return float(START + TOKENS * max(0, steps) * texts * views * length)


def all_together(parts: Sequence[Part]) -> None:
    """One after the other, with a line before each."""
    begun, done, left = time.monotonic(), 0.0, sum(part.minutes for part in parts)
    for number, part in enumerate(parts, 1):
        passed = (time.monotonic() - begun) / 60
        still = left * (passed / done if done > 1 else 1)  # the first parts are too short to tell the pace
        said = f"== {number}/{len(parts)} {part.does}; about {max(1, round(still))} min left"
        print(f"\n{said}", file=sys.stderr, flush=True)
        run(part.command)
        done, left = done + part.minutes, left - part.minutes
    print(f"\n{len(parts)} parts in {(time.monotonic() - begun) / 60:.0f} min", file=sys.stderr, flush=True)
