"""What a run is: all that decides its result, by name, as the run writes it down and compares it.

Imports nothing heavy: `lightning recipe` compares, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from lightning_modules.includes import read_settings, update
from otherside.lineage import Lineage
from otherside.weights import card_of

Values = dict[str, Any]
"""Setting or fact -> value, as JSON has it. A setting's name is that of its option."""

# Settings that do not decide what is trained, or that a fact tells: a path by its content, an address by its lineage
SILENT = (
    "model.backbone.model",
    "model.backbone.revision",
    "*.seed",
    "data.tokenizer",
    "data.num_workers",
    "data.on_bad_row",
    "data.val_sources*",
    "data.predict_sources*",
    "data.sources.*.path",
    "data.sources.*.split",
    "data.sources.*.revision",
    "data.sources.*.scores",
)
# What may change on resume; applies from that step on, and a finished run was trained without it
APPLIED = ("model.optimizer.lr", "model.schedule.*", "base", "revision")
# What may be another, and leaves the result as it is: the same sums in another order, or a later end
FREE = (
    "model.chunk_tokens",
    "model.recompute",
    "model.backbone.activation_checkpointing",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.strategy",
    "ranks",
)
# What decides vectors, beside the base's weights
VECTORS = (
    "adapters",
    "trained",
    "model.frozen_layers",
    "model.backbone.attention",
    "model.backbone.start_token",
    "model.backbone.keep_sink",
    "model.pooling",
    "model.pool_start",
    "model.rescaled",
    "model.lora.*",
)
# What a recipe's YAML says of all this
TRAINER = ("precision", "gradient_clip*", "accumulate_grad_batches", "max_steps", "max_epochs")
GIVEN = ("model*", "data*", "seed_everything", *(f"trainer.{name}" for name in TRAINER))
UNKNOWN = "not noted"
SHOWN = 5  # differences in one message


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by the names of their options: `model.init_args.lora.r` is `model.lora.r`. Of a list of mappings its
    length and each one's settings.
    """
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            yield name, len(value)
            yield from flat({str(i): item for i, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, dict) and value and not name.endswith(".fields"):
            yield from flat(value, prefix if key == "init_args" else f"{name}.")
        else:
            yield name, value


def plain(values: Mapping[str, Any]) -> Values:
    """As they come back from JSON; a function by its name."""
    found: Values = json.loads(json.dumps(values, default=lambda value: getattr(value, "__qualname__", str(value))))
    return found


def settings(config: Mapping[str, Any]) -> Values:
    """The settings of `model` and `data` that decide a run's result."""
    named = flat({part: config[part] for part in ("model", "data")})
    return plain({key: value for key, value in named if not _is_one_of(SILENT, key)})


def given(arguments: list[str]) -> Values:
    """What `--config` files and options say of model, data, seed and length, without the defaults: as cheap as reading.

    Args:
        arguments: of `lightning fit`, included files among them (`includes.with_includes`).
    """
    said: dict[str, Any] = {}
    options: Values = {}
    rest = iter(arguments)
    for argument in rest:
        flag, equals, text = argument.partition("=")
        value = text if equals else next(rest, "")
        if flag in ("--config", "-c"):
            update(said, read_settings(Path(value)))
        else:
            options |= dict(flat({flag.lstrip("-").replace(".init_args", ""): _parsed(value)}))
    known = (dict(flat(said)) | options).items()
    return plain({key: value for key, value in known if _is_one_of(GIVEN, key)})


def _parsed(value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def adapters(model: str, revision: str | None = None) -> list[str]:
    """Name and SHA-256 of each adapter behind `backbone.model`; none for a base model, or where nothing is yet."""
    try:
        return names(card_of(model, revision).lineage)
    except FileNotFoundError:
        return []


def names(lineage: Lineage) -> list[str]:
    """Name and SHA-256 of each adapter of a lineage."""
    return [f"{adapter.name} {adapter.sha256}" for adapter in lineage.adapters]


def differences(before: Values, now: Values) -> Values:
    """Name -> (before, now) of what is another; before is `UNKNOWN` where an older version had no such setting."""
    keys = {**before, **now}
    return {key: pair for key in keys if (pair := (_noted(before, key), now.get(key)))[0] != pair[1]}


def _noted(identity: Values, key: str) -> Any:
    """A setting as a run wrote it down; None where one that it is part of was null."""
    if key in identity:
        return identity[key]
    parts = key.split(".")
    above = (".".join(parts[:depth]) for depth in range(1, len(parts)))
    return None if any(identity.get(name, UNKNOWN) is None for name in above) else UNKNOWN


def refused(changed: Values) -> Values:
    """Of `differences`, what a run cannot go on with."""
    return {k: pair for k, pair in changed.items() if pair[0] != UNKNOWN and not _is_one_of((*APPLIED, *FREE), k)}


def untrained(changed: Values) -> Values:
    """Of `differences`, what a finished run was trained without."""
    return {key: pair for key, pair in changed.items() if pair[0] != UNKNOWN and not _is_one_of(FREE, key)}


def of_vectors(changed: Values) -> Values:
    """Of `differences`, what a checkpoint's weights cannot be used with."""
    return {k: pair for k, pair in refused(changed).items() if _is_one_of(VECTORS, k) and "dropout" not in k}


def told(changed: Values) -> str:
    """`differences` in a line, both values of each."""
    shown = [f"{key} {_short(before)} -> {_short(now)}" for key, (before, now) in list(changed.items())[:SHOWN]]
    more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
    return ", ".join(shown) + more


def _short(value: Any) -> str:
    is_word = isinstance(value, str) and value and value == value.strip()
    text = "none" if value in (None, []) else value if is_word else json.dumps(value)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}", r"\1…", text)


def _is_one_of(patterns: tuple[str, ...], key: str) -> bool:
    return any(fnmatch(key, pattern) for pattern in patterns)
