"""A planned stage as a YAML that people read and change."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.hardware import Hardware
from lightning_modules.includes import PACKAGED
from lightning_modules.new.stages import NAMES, Data, Kind, Planned
from lightning_modules.sizing.command import needed

PURPOSES = {
    "mntp": "the base learns to use both sides of the context, on your texts.",
    "simcse": "the mntp stage as a sentence encoder, without labels, on your texts.",
    "supervised": "the simcse stage as an encoder of your queries and what answers them, on your pairs.",
    "labels": "the simcse stage as an encoder to which texts of one label are alike, on your labels.",
}
FILES: dict[Kind, str] = {"pairs": "pairs.jsonl", "labels": "labelled.jsonl", "texts": "texts.jsonl"}
MINED = "mined.jsonl"  # `FILES["pairs"]` with hard negatives
BLOCKS = ("model", "data", "trainer", "init_args", "mine")  # one setting a line; others stand in one


def stage_yaml(
    planned: Planned, recipe: Path, model: str, data: Data, hardware: Hardware, reads: int | None = None
) -> str:
    """The text of `recipe/STAGE.yaml`.

    Args:
        planned: what the stage is.
        recipe: its folder, which is the runs' too.
        model: the base, or the encoder folder it starts from.
        data: to train on.
        hardware: to train on.
        reads: tokens of the longest text that the encoder shall read; None: as the model.
    """
    job = planned.job
    file = recipe / f"{job.stage}.yaml"
    head = [
        f"# Purpose:  {PURPOSES['labels' if job.stage == 'supervised' and data.kind == 'labels' else job.stage]}",
        f"# Hardware: {hardware.name}; {needed(job, hardware.machine):.1f} GB needed.",
        f"# Expected: {about(planned.steps * planned.seconds)}, as estimated.",
        f"# Command:  {command(file, hardware)}",
    ]
    return "\n".join([*head, *_lines(settings(planned, recipe, model, data, reads))]) + "\n"


def mining_yaml(recipe: Path, data: Data, hardware: Hardware) -> str:
    """The text of `recipe/negatives.yaml`, a step between the stages simcse and supervised."""
    file, texts = recipe / "negatives.yaml", recipe / "data"
    rows = {"encoder": recipe / "simcse" / "encoder", "pairs": texts / FILES["pairs"], "out": texts / MINED}
    head = [
        "# Purpose:  hard negatives of each pair, found by the simcse stage among the answers to all others.",
        f"# Hardware: {hardware.name}.",
        f"# Expected: {about(data.mining)}, as estimated.",
        f"# Command:  {command(file, hardware, 'mine')}",
    ]
    return "\n".join([*head, *_lines({"mine": {name: str(path) for name, path in rows.items()}})]) + "\n"


def command(what: Path, hardware: Hardware, does: str = "fit") -> str:
    """That runs a recipe, or a step of it."""
    if hardware.nodes > 1:
        gpus = f"--ntasks-per-node={hardware.gpus} --gpus-per-node={hardware.gpus}"
        return f"slurm/submit {shlex.quote(str(what))} --nodes={hardware.nodes} {gpus} --time=12:00:00"
    return f"lightning {f'{does} --config' if what.suffix == '.yaml' else 'recipe'} {shlex.quote(str(what))}"


def about(seconds: float) -> str:
    """For people."""
    minutes = math.ceil(seconds / 60)
    return f"{minutes} minute{'s' * (minutes > 1)}" if minutes < 100 else f"{minutes / 60:.1f} hours"


def settings(planned: Planned, recipe: Path, model: str, data: Data, reads: int | None = None) -> dict[str, Any]:
    """All that the YAML says."""
    job, steps = planned.job, planned.steps
    every = max(1, steps // 2)
    backbone: dict[str, Any] = {"model": model}
    backbone |= {"attention_dropout": job.attention_dropout} if job.attention_dropout else {}
    backbone |= {"activation_checkpointing": True} if job.layers_again else {}
    return {
        "include": f"{PACKAGED}trainer/{planned.trainer}.yaml",
        "model": {
            "class_path": f"lightning_modules.{NAMES[job.stage]}",
            "init_args": {
                "backbone": backbone,
                "lora": {"r": job.adapter.r, "alpha": 32, "dropout": job.adapter.dropout},
                **({"masking": {"probability": job.masked}} if job.stage == "mntp" else {"loss": {"scale": 20}}),
                **({"max_length": reads} if reads else {}),
                "chunk_tokens": job.chunk_tokens,
                **({} if job.recompute == "auto" else {"recompute": job.recompute}),
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": planned.rate, "weight_decay": 0.0},
                },
                "schedule": {"name": "linear", "warmup_steps": max(1, steps // 10), "total_steps": steps},
            },
        },
        "data": {
            "class_path": f"datamodules.{'Pairs' if job.stage == 'supervised' else 'Sentences'}",
            "init_args": {
                **_sources(job.stage, recipe / "data", data),
                "global_batch_size": job.global_batch,
                "max_length": job.length,
                **({"negatives": job.negatives} if job.stage == "supervised" else {}),
            },
        },
        "checkpoints": {"every_n_steps": every},
        "trainer": {
            **({"num_nodes": job.nodes} if job.nodes > 1 else {}),
            "devices": job.gpus,
            "default_root_dir": str(recipe / job.stage),
            "max_steps": steps,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": max(1, steps // 20),
            **({"val_check_interval": every, "check_val_every_n_epoch": None} if data.held_out else {}),
        },
    }


def _sources(stage: str, folder: Path, data: Data) -> dict[str, Any]:
    """Which of the recipe's own files are read."""
    kind = data.kind if stage == "supervised" else "texts"
    labels = {"labels": True} if kind == "labels" else {}
    file = MINED if kind == "pairs" and data.mining else FILES[kind]
    found = {"sources": [{"path": str(folder / file), **labels}]}
    if data.held_out:
        as_texts = {"fields": {"text": "positive"}} if kind == "texts" and data.kind == "pairs" else {}
        found["val_sources"] = [{"path": str(folder / "heldout.jsonl"), **labels, **as_texts}]
    return found


def _lines(content: Mapping[str, Any], depth: int = 0) -> Iterator[str]:
    for key, value in content.items():
        if key in BLOCKS:
            yield f"{'  ' * depth}{key}:"
            yield from _lines(value, depth + 1)
        else:
            shown = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=math.inf, allow_unicode=True)
            yield f"{'  ' * depth}{key}: {shown.strip().removesuffix('...').strip()}"
