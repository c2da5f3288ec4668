"""Norms: which are one operation of torch, and that it computes the same."""

from __future__ import annotations

import importlib
import pickle
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import load

from otherside import norms
from otherside.encoder import Encoder
from otherside.norms import FusedRMSNorm

FUSED = (
    "llama.Llama",
    "mistral.Mistral",
    "phi3.Phi3",
    "qwen2.Qwen2",
    "olmo2.Olmo2",
    "smollm3.SmolLM3",
    "granite.Granite",
)


def kind(name: str) -> Any:
    module, family = name.split(".")
    return getattr(importlib.import_module(f"transformers.models.{module}.modeling_{module}"), f"{family}RMSNorm")


@pytest.mark.parametrize("name", FUSED)
def test_what_computes_the_same_is_fused(name: str) -> None:
    norm = kind(name)(16, eps=1e-5)
    torch.nn.init.uniform_(norm.weight)
    x = torch.randn(2, 3, 16)
    expected = deepcopy(norm)(x)
    norms.fuse(norm)
    assert isinstance(norm, FusedRMSNorm)
    assert torch.equal(norm(x), expected)
    torch.testing.assert_close(F.rms_norm(x, norm.weight.shape, norm.weight, norm.variance_epsilon), expected)


@pytest.mark.parametrize("name", ["gemma2.Gemma2", "gemma3.Gemma3"])
def test_another_function_is_left(name: str) -> None:
    norm = kind(name)(16)
    norms.fuse(norm)
    assert type(norm) is kind(name)


def test_all_of_a_llama_are(tiny_llama: Path) -> None:
    lm = load(tiny_llama).lm
    found = [module for module in lm.modules() if type(module).__name__ == "LlamaRMSNorm"]
    assert len(found) == 2 * lm.config.num_hidden_layers + 1
    assert all(isinstance(module, FusedRMSNorm) for module in found)


@pytest.mark.parametrize(
    "copy", [deepcopy, lambda encoder: pickle.loads(pickle.dumps(encoder))], ids=["copy", "pickle"]
)
def test_an_encoder_can_be_copied_to_other_processes(copy: Any, tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    other = copy(encoder)
    norm = other.backbone.lm.base_model.norm
    assert isinstance(norm, FusedRMSNorm) and type(norm) is type(encoder.backbone.lm.base_model.norm)
    assert (other.encode(["the cat"]) == encoder.encode(["the cat"])).all()
