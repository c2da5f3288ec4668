"""The reference of settings, from what the command line itself reads: signatures, type hints and docstrings."""

from __future__ import annotations

import re
import types
from collections.abc import Iterable
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse._parameter_resolvers import get_signature_parameters

HEAD = """---
search: {boost: 3}
---

# Settings

Every key of a stage's YAML, made from the code when this page was built. A heading says under which key those of its
table stand: `r` under `model.lora`. In a YAML the keys of `model` and `data` stand under `init_args`, behind
`class_path`; as an option, without: `--model.lora.r 32`. `lightning fit --model.help MNTP` lists those of one class.

| key | what |
| --- | --- |
| `include` | a YAML file, or a list of them, read before this one; paths are relative to the YAML that names them |
| `seed_everything` | seed of everything: the order of data, masks, dropout, the adapter's start (default 42) |
| `model` | the [stage](#encodermodule): `class_path` and `init_args` |
| `data` | the [data module](#textdata): `class_path` and `init_args` |
| `checkpoints` | when [checkpoints](#checkpoints) are written |
| `mteb` | [MTEB](#mtebsettings) while it trains, and in `lightning test` |
| `trainer` | [Lightning's Trainer](#trainer): machine, length of the run, callbacks |
| `ckpt_path` | the checkpoint of another run to begin from, until this one has its own |
"""
TRAINER = """All keys of `lightning.pytorch.Trainer` work. What is set unless a YAML sets it:
`use_distributed_sampler: false`, `log_every_n_steps: 10`, `num_sanity_val_steps: 0`, `inference_mode: false`,
`enable_model_summary: false`. Most used:

| key | what |
| --- | --- |
| `trainer.default_root_dir` | the run's folder. Required |
| `trainer.max_steps`, `trainer.max_epochs`, `trainer.max_time` | how long it trains |
| `trainer.accumulate_grad_batches`, `trainer.gradient_clip_val` | as in Lightning |
| `trainer.val_check_interval`, `trainer.limit_val_batches` | when and how much is validated |
| `trainer.accelerator`, `trainer.devices`, `trainer.num_nodes`, `trainer.strategy` | the machine: `configs/trainer/` |
| `trainer.logger` | TensorBoard in the run's folder by default; `WandbLogger` for W&B |
| `trainer.callbacks` | callbacks beside those that are always there: [Probing](#probing), Lightning's, your own |
"""
WORDS = {bool: "true or false", str: "text", int: "integer", float: "number", Path: "path", type(None): "`null`"}


def page() -> str:
    """Markdown of the whole page."""
    from datamodules.base import TextData
    from lightning_modules import callbacks, training
    from lightning_modules.base import EncoderModule

    seen: set[type] = set()
    parts = [HEAD, *section("model: every stage", "model", EncoderModule, seen)]
    for option, base in (("model", EncoderModule), ("data", TextData)):
        parts += section(f"{option}: all of them", option, base, seen) if base not in seen else []
        for kind in public("lightning_modules" if option == "model" else "datamodules"):
            parts += section(f"{option}: {kind.__name__}", option, kind, seen, without=names(base))
    parts += section("checkpoints", "checkpoints", training.Checkpoints, seen)
    parts += section("mteb", "mteb", callbacks.MTEBSettings, seen)
    parts += ["## trainer", TRAINER, *strategies()]
    parts += section("trainer.callbacks: Probing", "", callbacks.Probing, seen)
    return "\n\n".join(parts) + "\n"


def public(package: str) -> list[type]:
    """Stages or data modules that a package shows."""
    home = import_module(package)
    return [kind for name in home.__all__ if not is_dataclass(kind := getattr(home, name))]


def parameters(target: Any) -> list[Any]:
    """As jsonargparse sees them, but for what no YAML sets."""
    found = get_signature_parameters(target)
    return [each for each in found if each.kind is not Parameter.VAR_KEYWORD and each.name != "tokenizer"]


def names(target: Any) -> set[str]:
    """Keys of a class."""
    return {each.name for each in parameters(target)}


def section(title: str, prefix: str, kind: type, seen: set[type], without: Iterable[str] = ()) -> list[str]:
    """Heading, meaning and table of one class; then the same of the dataclasses in it that were not `seen` yet."""
    seen.add(kind)
    keys = [each for each in parameters(kind) if each.name not in without]
    level = "###" if "." in prefix else "##"
    parts = [f"{level} {title} {{#{kind.__name__.lower()}}}", summary(kind)]
    parts.append(table([(each.name, each) for each in keys]) if keys else "No keys of its own.")
    for each in keys:
        inner = f"{prefix}.{each.name}"
        for found in dataclasses_in(each.annotation):
            parts += section(f"{inner}: {found.__name__}", inner, found, seen) if found not in seen else []
    return parts


def strategies() -> list[str]:
    """`trainer.strategy`: ours and what they take."""
    from lightning_modules.strategies import DDP, FSDP2, ZeRO

    parts = ["### trainer.strategy", "`ddp`, `zero1`, `zero2`, `zero3`, `fsdp2`; or one of these by its `class_path`."]
    for kind in (DDP, ZeRO, FSDP2):
        own = [each for each in parameters(kind) if each.component is kind.__init__]
        parts += [f"`lightning_modules.strategies.{kind.__name__}`: {summary(kind)}"]
        parts += [table([(each.name, each) for each in own])]
    return parts


def table(rows: list[tuple[str, Any]], first: str = "key") -> str:
    """Markdown table of keys."""
    lines = [f"| {first} | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, each in rows:
        default = each.default
        if each.parent and is_dataclass(each.parent) and default.__class__.__name__ == "_HAS_DEFAULT_FACTORY_CLASS":
            default = made(each.parent, each.name)
        lines.append(f"| `{name}` | {typed(each.annotation)} | {shown(default)} | {cell(each.doc or '')} |")
    return "\n".join(lines)


def made(kind: Any, name: str) -> Any:
    """What a dataclass's default factory makes."""
    [factory] = [each.default_factory for each in fields(kind) if each.name == name]
    assert factory is not MISSING
    return factory()


def summary(kind: Any) -> str:
    """A docstring without its arguments."""
    return docstring_parser.parse(kind.__doc__ or "").description or ""


def typed(annotation: Any) -> str:
    """A type in the words of YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(typed(part) for part in inner))
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inner)
    if origin in (list, tuple):
        return f"list of {typed(inner[0])}"
    if origin is dict:
        return f"mapping, {typed(inner[0])} to {typed(inner[1])}"
    if origin is not None:
        return "`class_path` and `init_args`"
    if is_dataclass(annotation):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"  # type: ignore[union-attr]
    return WORDS.get(annotation, f"`{annotation}`")


def shown(default: Any) -> str:
    """A default as YAML has it."""
    if default is Parameter.empty:
        return "required"
    if is_dataclass(default):
        return "its defaults"
    if callable(default):
        return cell(default.__doc__ or "")
    written = yaml.safe_dump(default, default_flow_style=True, width=1000)
    return f"`{written.splitlines()[0]}`"  # behind a scalar YAML puts an end of document


def dataclasses_in(annotation: Any) -> list[type]:
    """Dataclasses that a type is made of."""
    if is_dataclass(annotation):
        return [annotation]  # type: ignore[list-item]
    return [found for part in get_args(annotation) for found in dataclasses_in(part)]


def cell(text: str) -> str:
    """A docstring's words in one line of a table; YAML's null is Python's None."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split())).replace("|", "\\|")
