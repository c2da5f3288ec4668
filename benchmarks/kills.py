"""kill -9 at random moments, then the same command until it is finished: are the weights those of a run left alone?

    python benchmarks/kills.py [--count 100] [--ranks 1 2] [--seed 0] [--out benchmarks/reports]

Each kill is a run of its own, of one stage after the other, with a data cache of its own: a tiny Llama, a checkpoint
every step, dropout on. A third of the kills wait for a save, a tenth for the encoder folder, the others come at any
moment from the first line to the last. Of two ranks one or both are killed. Forked from a process that has imported
everything, so imports alone are never hit.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import datasets
import torch
from harness import keep

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import runs
from conftest import build_tiny_llama

STEPS = 8
STAGES = ("MNTP", "SimCSE", "Supervised")
DDP = {"class_path": "lightning_modules.strategies.DDP", "init_args": {"timeout": 30}}
MOMENTS = ("any",) * 17 + ("save",) * 10 + ("end",) * 3
PHASES = ("settings and data", "loading", "training", "inside a save", "writing the encoder", "behind the encoder")


@dataclass
class Case:
    """A stage on so many ranks, what its weights are without a kill, and how long it takes."""

    config: Path
    ranks: int
    weights: dict[str, torch.Tensor]
    seconds: float


def start(config: Path, ranks: int, root: Path) -> list[runs.Run]:
    """The same command each time; its tables are built in the run's own cache."""
    fit = ("fit", "--config", config, "--trainer.default_root_dir", root)
    own_cache = partial(setattr, datasets.config, "HF_DATASETS_CACHE", root.with_suffix(".cache"))
    if ranks == 1:
        return [runs.start(*fit, cwd=root.parent, before=own_cache)]
    return runs.start_ranks(ranks, *fit, cwd=root.parent, before=own_cache)


def undisturbed(config: Path, ranks: int, root: Path) -> Case:
    """A run that nobody kills."""
    begun = time.monotonic()
    runs.wait_ranks(start(config, ranks, root))
    return Case(config, ranks, runs.adapter(root), time.monotonic() - begun)


def until(moment: str, case: Case, root: Path, chance: random.Random, alive: Callable[[], bool]) -> None:
    """Wait for the moment, or for the end of the run."""
    place, pattern = root / "checkpoints", f".step={chance.randint(1, STEPS)}.ckpt.tmp"
    if moment == "end":
        place, pattern = root, ".encoder-*"
    deadline = time.monotonic() + chance.uniform(0, case.seconds)
    while alive() and (time.monotonic() < deadline if moment == "any" else not any(place.glob(pattern))):
        time.sleep(0.0005)
    if moment != "any":
        time.sleep(chance.choice((0, 0.001, 0.003, 0.01)))


def phase(root: Path, output: str) -> str:
    """Where a run was when it was killed, by what it left behind."""
    if (root / "encoder").exists():
        return "behind the encoder"
    if any(root.glob(".encoder-*")):
        return "writing the encoder"
    if any((root / "checkpoints").glob(".*.ckpt.*")):
        return "inside a save"
    if "\nstep " in output:
        return "training"
    return "loading" if "fit in " in output else "settings and data"


def kill(case: Case, root: Path, chance: random.Random) -> tuple[str, str] | None:
    """Start, kill, and wait for ranks that were spared; who and where, or None if the run had ended before."""
    ranks = start(case.config, case.ranks, root)
    until(chance.choice(MOMENTS), case, root, chance, lambda: all(rank.is_running() for rank in ranks))
    victims = chance.choice([[0], [1], [0, 1]]) if case.ranks == 2 else [0]
    for victim in victims:
        with suppress(ProcessLookupError):
            ranks[victim].kill()
    where = phase(root, ranks[0].output.read_text(errors="replace"))
    ended = [rank.wait(90)[0] for rank in ranks]
    if -signal.SIGKILL not in ended:
        return None
    return " and ".join(str(victim) for victim in victims), where


def trial(case: Case, root: Path, chance: random.Random) -> tuple[str, str]:
    """One kill and what comes after it; AssertionError where the weights are others."""
    while (killed := kill(case, root, chance)) is None:
        shutil.rmtree(root)
    runs.wait_ranks(start(case.config, case.ranks, root))
    runs.assert_equal(runs.adapter(root), case.weights)
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=[1, 2])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="kills-"))
    runs.write_data(place, rows=40)
    llama = build_tiny_llama(place / "llama")
    options = {"checkpoints.every_n_steps": 1, "data.init_args.num_workers": 1}
    cases = []
    for ranks in settings.ranks:
        for stage in STAGES:
            strategy = {"trainer.strategy": DDP} if ranks > 1 else {}
            config = runs.write_stage(place, stage, llama, steps=STEPS, **options, **strategy)
            config = config.rename(place / f"{stage.lower()}-{ranks}.yaml")
            cases.append(undisturbed(config, ranks, place / f"{stage}-{ranks}"))
            print(f"undisturbed: {stage}, {ranks} ranks, {cases[-1].seconds:.1f} s", file=sys.stderr, flush=True)
    chance, begun = random.Random(settings.seed), time.monotonic()
    hits: Counter[tuple[int, str]] = Counter()
    failed: list[str] = []
    for i in range(settings.count):
        case, root = cases[i % len(cases)], place / f"killed-{i}"
        try:
            who, where = trial(case, root, chance)
            hits[case.ranks, where] += 1
            said = f"rank {who} of {case.ranks}, {where}: equal"
        except AssertionError as error:
            said = f"{case.config.stem}, {root}: FAILED: {str(error)[-1500:]}"
            failed.append(said)
        else:
            shutil.rmtree(root)
        left = timedelta(seconds=round((time.monotonic() - begun) / (i + 1) * (settings.count - i - 1)))
        print(f"{i + 1}/{settings.count}  {said}; {left} left", file=sys.stderr, flush=True)
    report(settings, hits, failed, place)
    if failed:
        sys.exit(1)
    shutil.rmtree(place)


def report(settings: argparse.Namespace, hits: Counter[tuple[int, str]], failed: list[str], place: Path) -> None:
    """Print the result and keep it."""
    heads = [f"{ranks} rank{'s' if ranks > 1 else ''}" for ranks in settings.ranks]
    lines = [f"| killed while | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    lines += [f"| {name} | {' | '.join(str(hits[ranks, name]) for ranks in settings.ranks)} |" for name in PHASES]
    said = f"{settings.count - len(failed)} of {settings.count} killed runs ended with the weights of one left alone."
    keep(settings.out, "kills", "Random kills", [said, "", *lines, *(["", *failed] if failed else [])])
    if failed:
        print(f"the runs that failed are in {place}", flush=True)


if __name__ == "__main__":
    main()
