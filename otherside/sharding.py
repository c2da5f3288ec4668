"""Loading a base that no rank ever holds whole in its own type: piece by piece, each merged, adapted, and sharded or
rounded to four bits before the next.

A strategy that shards weights (ZeRO-3, FSDP2) passes a function `shard(modules)`. Only rank 0 reads the checkpoint, and
its values count. The most that a rank holds are its shards and one piece. Where nothing is sharded each rank reads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.initialization import no_init_weights

from otherside import adapters, conversion, distributed, full, quantized, stages, weights
from otherside.adapters import Lora
from otherside.conversion import SAFE
from otherside.full import Full
from otherside.lineage import Lineage
from otherside.llama import check_decoder

Shard = Callable[[list[nn.Module]], None]
"""Called on all ranks with modules to be sharded as one piece: theirs are all parameters that no earlier piece had."""


class Tensors:
    """Tensors of a checkpoint by name, read one by one.

    Args:
        place: a folder, or an id on the hub, as `conversion.fetch` gives it.
        revision: of a hub id.
    """

    def __init__(self, place: str | Path, revision: str | None) -> None:
        folder = place if isinstance(place, Path) else conversion.download(place, revision, SAFE)
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob(SAFE)):
            with safe_open(path, "pt") as file:
                self._files.update(dict.fromkeys(file.keys(), path))
        if not self._files:
            raise FileNotFoundError(f"backbone.model must have safetensors weights ({SAFE}); {place} has none")

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._files:
            raise ValueError(
                f"a checkpoint must name its tensors as the model does to be loaded in shards or four bits; {name} is "
                "missing. Load it once as a whole and save it again, or use trainer.strategy: ddp and quantized: null."
            )
        with safe_open(self._files[name], "pt") as file:
            return file.get_tensor(name)


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """Of all shards together, and as if it had not been rounded."""
    rounded: Any = getattr(parameter, "quant_state", None) or parameter
    return getattr(parameter, "ds_shape", torch.Size(rounded.shape))  # ZeRO-3's own attribute


def empty(place: str | Path, revision: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights: its parameters are on the meta device, its buffers are real."""
    config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
    check_decoder(config)
    with no_init_weights(), init_empty_weights():
        lm = AutoModelForCausalLM.from_config(config, dtype=dtype)
    lm.tie_weights()
    return lm


def pieces(lm: PreTrainedModel) -> list[list[nn.Module]]:
    """Modules to read and shard together, each parameter in exactly one piece: layers, embeddings, head, the rest."""
    layers = full.layers(lm)
    embeddings, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    tied = head.weight is embeddings.weight
    taken = {id(part) for module in [*layers, embeddings, head] for part in module.modules()}
    rest = [m for m in lm.modules() if id(m) not in taken and list(m.parameters(recurse=False))]
    return [*([layer] for layer in layers), *([[embeddings, head]] if tied else [[embeddings], [head]]), rest]


def load(
    lineage: Lineage, dtype: torch.dtype, new: Lora | Full | None, shard: Shard | None
) -> tuple[PreTrainedModel, str | None]:
    """The base, its lineage merged, and what is to be trained; to be called on all ranks.

    Args:
        lineage: what to load.
        dtype: of the frozen weights.
        new: what is to be trained; None: nothing.
        shard: how weights are shared between ranks; None: all hold all layers' matrices, in four bits.

    Returns:
        The model, and the fingerprint of the base.

    Raises:
        FileNotFoundError: there is no such model or adapter.
        ValueError: a stage's file was changed or does not fit; a LoRA target matches nothing; no layer is left to
            train; a layer cannot be rounded to four bits.
    """
    place = weights.resolve(lineage.base)
    lm = empty(place, lineage.revision, dtype)
    names = {module: name for name, module in lm.named_modules()}
    config = adapters.peft_config(lm, new) if isinstance(new, Lora) else None
    trained = new.names(lm) if isinstance(new, Full) else []
    if trained:
        full.set_types(lm, trained, dtype)
    layers = full.layers(lm)
    reads = shard is None or distributed.rank() == 0
    tensors = Tensors(conversion.fetch(lineage.base, lineage.revision), lineage.revision) if reads else None
    merged = stages.opened(lineage, lm) if reads else []
    found = {}
    for modules in pieces(lm):
        for module in modules:
            found.update(fill(module, names[module], tensors))
            lm.tie_weights()
            for stage in merged:
                stage.merge(module, f"{names[module]}.")
            if shard is None and module in layers:
                quantized.quantize(module, dtype)
            if isinstance(new, Lora) and config:
                adapters.attach_to_piece(module, new, config)
            if trained:
                full.train(module, trained, f"{names[module]}.")
        if shard:
            shard(modules)
    if shard:
        shard([lm.base_model])  # nothing is left to share, but FSDP2 wants to know the module that is called
    if config:
        lm.peft_config = {adapters.NAME: config}  # type: ignore[dict-item]
    return lm, distributed.from_first(adapters.digest(found) if reads else None)


def fill(module: nn.Module, prefix: str, tensors: Tensors | None) -> dict[str, Tensor]:
    """Give the parameters of `module` that are still on the meta device memory, and values where `tensors` are given.

    Returns:
        What `adapters.fingerprint` looks at, by name.
    """
    first = {}
    for path, part in module.named_modules(prefix=prefix):
        for leaf, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.is_meta:
                continue
            value = torch.empty(parameter.shape, dtype=parameter.dtype)
            if tensors:
                value.copy_(tensors[f"{path}.{leaf}"])
                first[f"{path}.{leaf}"] = adapters.first_values(value)
            setattr(part, leaf, nn.Parameter(value, requires_grad=False))
    return first
