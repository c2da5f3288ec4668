"""Full fine-tuning: which of the base's own weights are trained, in which type, and the file that keeps them.

The weights that are trained are float32, whatever the type of the base: in bfloat16, with eight bits, an update of less
than a 256th of a weight would be rounded away, and AdamW's are smaller. The frozen ones keep the base's type, and the
model computes in it under autocast, as it does with adapters.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from otherside.lineage import WEIGHTS, Merged

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Full:
    """The base's own weights are trained, but for the language model's head: that of its embeddings' weights alone.

    Args:
        frozen_layers: None: no other weight is frozen; 0: the embeddings are; k: and so are the k lowest layers.
    """

    frozen_layers: int | None = None

    def __post_init__(self) -> None:
        if self.frozen_layers is not None and self.frozen_layers < 0:
            raise ValueError(f"model.frozen_layers must be at least 0, or null; got {self.frozen_layers}")

    def names(self, lm: PreTrainedModel) -> list[str]:
        """Names of the weights that are trained, as in `lm.named_parameters()`.

        Raises:
            ValueError: no layer is left to train.
        """
        stack = layers(lm)
        head, embeddings = lm.get_output_embeddings().weight, lm.get_input_embeddings().weight
        frozen = {id(head)} - {id(embeddings)}
        if self.frozen_layers is not None:
            if self.frozen_layers >= len(stack):
                raise ValueError(
                    f"model.frozen_layers must leave one of the model's {len(stack)} layers to train; got "
                    f"{self.frozen_layers}"
                )
            frozen |= {id(p) for layer in stack[: self.frozen_layers] for p in layer.parameters()} | {id(embeddings)}
        return [name for name, parameter in lm.named_parameters() if id(parameter) not in frozen]


def layers(lm: PreTrainedModel) -> list[nn.Module]:
    """The layers of a decoder, the lowest first."""
    names = set(lm._no_split_modules or [])
    return [module for module in lm.modules() if type(module).__name__ in names]


def set_types(lm: nn.Module, trained: Collection[str], dtype: torch.dtype) -> None:
    """float32 for the weights that are trained, `dtype` for the others; in place."""
    for name, parameter in lm.named_parameters():
        parameter.data = parameter.data.to(torch.float32 if name in trained else dtype)


def train(piece: nn.Module, trained: Collection[str], prefix: str = "") -> None:
    """Let weights of a frozen model be trained, or of the part of it whose names begin with `prefix`; of tied
    weights either name will do.
    """
    for name, parameter in piece.named_parameters():
        if f"{prefix}{name}" in trained:
            parameter.requires_grad_(True)


def compute_in(lm: nn.Module, dtype: torch.dtype) -> None:
    """Let what comes out of embeddings and norms that are trained have the type `dtype`; autocast sees to linear layers
    alone.
    """

    def cast(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    for module in lm.modules():
        if not isinstance(module, nn.Linear) and any(p.requires_grad for p in module.parameters(recurse=False)):
            module.register_forward_hook(cast)


def write(weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write the file of a stage's weights, named as in the language model."""
    folder.mkdir(parents=True)
    found = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(found, folder / WEIGHTS, metadata={"format": "pt"})


class SavedWeights:
    """A stage's own weights in their file, to be put into a model as a whole or part by part.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: its SHA-256 is another than recorded.
    """

    def __init__(self, weights: Merged) -> None:
        weights.check()
        self.weights = weights
        with safe_open(weights.path, "pt") as file:
            self.names = frozenset(file.keys())

    def check_fits(self, lm: nn.Module) -> None:
        """Raise a ValueError unless all of its tensors are weights of `lm`, which may be without values."""
        shapes = {name: list(parameter.shape) for name, parameter in lm.named_parameters()}
        with safe_open(self.weights.path, "pt") as file:
            for name in sorted(self.names):
                if (found := file.get_slice(name).get_shape()) != shapes.get(name):
                    raise ValueError(
                        f"weights {self.weights.name!r} in {self.weights.path} must fit the base model, and do not: "
                        f"{name} is {found} and not {shapes.get(name, 'there')}. Use the base model they were trained "
                        "from."
                    )

    @torch.no_grad()
    def merge(self, piece: nn.Module, prefix: str = "") -> None:
        """Put them in the place of a model's weights, or of those of the part whose names begin with `prefix`."""
        with safe_open(self.weights.path, "pt") as file:
            for name, parameter in piece.named_parameters():
                if (whole := f"{prefix}{name}") in self.names:
                    parameter.copy_(file.get_tensor(whole))
