"""Look at data, base and machine, and write a recipe for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_modules.hardware import Hardware
from lightning_modules.new.stages import FEWEST, Data, Kind, Planned, forward_time, plan
from lightning_modules.new.write import about, command, mining_yaml, stage_yaml
from lightning_modules.sizing.command import needed
from lightning_modules.sizing.job import Stage
from lightning_modules.sizing.shape import Shape, read_shape
from otherside.files import made_once, make_folder
from otherside.tokenising import tokenise
from otherside.tokenizer import load_tokenizer
from otherside.weights import card_of

LONGEST = {True: 512, False: 128}  # tokens of a text, on GPUs and on CPUs
PLURAL = {"text": "texts", "query": "queries", "positive": "positives"}
USUAL = 0.95  # share of the texts of each role that shall not be cut


def run_new(
    recipe: Path,
    base: str,
    data: list[str],
    fields: dict[str, str] | None,
    hours: float,
    machine: Hardware,
    on_bad_row: str,
) -> None:
    """What `lightning_modules.new.new` does, see there."""
    if recipe.exists():
        raise FileExistsError(f"RECIPE must be a new folder; {recipe} is there already. Name another, or remove it.")
    if hours <= 0:
        raise ValueError(f"--hours must be positive; got {hours}")
    # By name, as a YAML has it: data modules and stages never import each other
    recognise = import_module("datamodules.recognise").recognise
    found = [each for path in data for each in recognise(path, fields)]
    for each in found:
        print(f"{each.source}: {each}", *([f"  note: {each.note}"] if each.note else []), sep="\n", flush=True)
    shape, tokenizer = read_shape(base), load_tokenizer(base)
    make_folder(recipe.parent, "the folder of RECIPE")

    def fill(work: Path) -> None:
        (work / "data").mkdir()
        written = import_module("datamodules.heldout").write(found, work / "data", on_bad_row)
        lengths = {
            role: np.array([len(tokens.ids) for tokens in tokenise(tokenizer, sample.texts, max(LONGEST.values()) + 1)])
            for role, sample in written.sample.items()
        }
        measured = _measured(written, lengths, machine, shape)
        stages = plan(shape, measured, machine, hours)
        if measured.kind == "pairs" and not measured.negatives:
            mined = _mined(measured, lengths, machine, shape)
            longer = plan(shape, mined, machine, hours)
            if longer[-1].whole:  # in less time more steps without them teach as much (docs/results.md)
                measured, stages = mined, longer
        _write(stages, work, recipe, base, measured, machine)
        _say(written, stages, recipe, measured, machine)
        least = (measured.mining + sum(planned.steps * planned.seconds for planned in stages)) / 3600
        if least > 1.01 * hours:
            print(f"  note: {least:.2g} hours are the least, with {FEWEST} steps a stage; --hours {hours:g} is shorter")
        for role, tokens in lengths.items():
            if (cut := (tokens > measured.length).mean()) > 1 - USUAL:
                print(f"  {cut:.0%} of {PLURAL.get(role, role)} are cut at {measured.length} tokens")

    made_once(recipe, fill)
    print(f"\nnext: {command(recipe, machine)}")


def _measured(written: Any, lengths: Mapping[str, NDArray[np.int64]], machine: Hardware, shape: Shape) -> Data:
    """What the arithmetic needs of the data that were written; `lengths` are those of some texts of each role."""
    rows: dict[Stage, int] = {"mntp": written.texts, "simcse": written.texts}
    rows |= {"supervised": supervised} if (supervised := written.pairs or written.labelled) else {}
    most = max((int(np.quantile(tokens, USUAL)) for tokens in lengths.values()), default=0)
    longest = LONGEST[bool(machine.gpus)]
    length = min(max(32, -(-most // 32) * 32), longest, shape.positions or longest)
    kind: Kind = "pairs" if written.pairs else "labels" if written.labelled else "texts"
    negatives = min(written.negatives, 4)
    return Data(kind, rows, length, negatives, bool(written.held_out), _mean(lengths, length, negatives))


def _mined(data: Data, lengths: Mapping[str, NDArray[np.int64]], machine: Hardware, shape: Shape) -> Data:
    """The same pairs with a hard negative each, which is another pair's positive."""
    seconds = forward_time(shape, data.rows["supervised"] * sum(each.mean() for each in lengths.values()), machine)
    mean = _mean({**lengths, "negatives": lengths["positive"]}, data.length, 1)
    return replace(data, negatives=1, mean=mean, mining=seconds)


def _mean(lengths: Mapping[str, NDArray[np.int64]], most: int, negatives: int) -> int:
    """Tokens of a text where none has more than `most`, and a row of pairs so many negatives."""
    means = {role: np.minimum(tokens, most).mean() for role, tokens in lengths.items() if len(tokens)}
    counts = [negatives if role == "negatives" else 1 for role in means]
    return ceil(np.average([*means.values()], weights=counts)) if means else most


def _write(stages: Sequence[Planned], work: Path, recipe: Path, base: str, data: Data, machine: Hardware) -> None:
    """A YAML for each stage, which starts from the one before."""
    model, positions = base, stages[0].job.shape.positions
    reads = positions if positions and card_of(base).max_length > positions else None  # later stages inherit it
    if data.mining:
        (work / "negatives.yaml").write_text(mining_yaml(recipe, data, machine))
    for planned in stages:
        stage = planned.job.stage
        (work / f"{stage}.yaml").write_text(stage_yaml(planned, recipe, model, data, machine, reads))
        model, reads = str(recipe / stage / "encoder"), None


def _say(written: Any, stages: Sequence[Planned], recipe: Path, data: Data, machine: Hardware) -> None:
    counts = {"texts": written.texts, "pairs": written.pairs, "with labels": written.labelled}
    counts |= {
        "held out": written.held_out,
        "merged, as their pairs are the same": written.merged,
        "left out as repeated": written.repeated,
        "alone with their label": written.alone,
        "left out as malformed": written.skipped.count,
    }
    print(f"{recipe}/data: {', '.join(f'{count:,} {name}' for name, count in counts.items() if count)}")
    if not written.held_out:
        print("  no rows held out to validate on: they are too few, or share texts")
    for fault in written.skipped.first:
        print(f"  {fault}")
    print(f"for {machine.name}:")
    for planned in stages:
        job = planned.job
        if job.stage == "supervised" and data.mining:
            print(f"  {recipe / 'negatives.yaml'}  hard negatives of each pair: {about(data.mining)}")
        print(
            f"  {recipe / job.stage}.yaml  {planned.steps} steps of {job.global_batch}, texts of up to {job.length} "
            f"tokens: {about(planned.steps * planned.seconds)}, {needed(job, machine.machine):.1f} GB"
            + (f"; it reads {planned.passes:.0%} of the rows" if planned.passes < 0.995 else "")
        )
