"""Activations computed again in backward: the same gradients as those of kept ones, however it is done."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import adapter_gradients, load, random_texts, some_loss, train_a_little
from torch import Tensor, nn

from otherside.adapters import Lora
from otherside.backbone import Backbone
from otherside.batching import Packed
from otherside.recompute import recomputed

CPU = torch.device("cpu")
CHUNKS = [random_texts([5, 3], seed=1), random_texts([4], seed=2), random_texts([6, 2], seed=3)]
ALONE = ("named", "torch's")


def trained(backbone: Backbone) -> list[nn.Parameter]:
    return [p for p in backbone.parameters() if p.requires_grad]


def gradients(folder: Path, how: str, dropout: float = 0.3, dtype: str = "float32") -> dict[str, Tensor]:
    """Of a loss on three chunks; dropout on attention, too, which each kernel draws in its own way."""
    backbone = load(folder, Lora(r=4, dropout=dropout), dtype=dtype, attention_dropout=dropout).train()
    train_a_little(backbone.lm)
    runs: dict[str, Callable[[Packed], Tensor]] = {
        "kept": backbone,
        "named": lambda chunk: recomputed(backbone, chunk, CPU, trained(backbone)),
        "torch's": lambda chunk: recomputed(backbone, chunk, CPU, None),
    }
    torch.manual_seed(0)
    some_loss(torch.cat([runs[how](chunk) for chunk in CHUNKS]).float()).backward()
    return adapter_gradients(backbone.lm)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ALONE)
def test_gradients_and_dropout_are_those_of_kept_activations(tiny_llama: Path, how: str, dtype: str) -> None:
    kept, found = (gradients(tiny_llama, way, dtype=dtype) for way in ("kept", how))
    assert kept.keys() == found.keys() and any(grad.any() for grad in kept.values())
    for name, grad in kept.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-5 if dtype == "float32" else 0.02, atol=1e-5)


def test_a_parameter_gets_its_gradient_once(tiny_llama: Path) -> None:
    backbone = load(tiny_llama, Lora(r=4)).train()
    parameters, times = trained(backbone), [0] * len(trained(backbone))
    for i, parameter in enumerate(parameters):
        parameter.register_post_accumulate_grad_hook(lambda _, i=i: times.__setitem__(i, times[i] + 1))  # type: ignore[misc]
    sum(recomputed(backbone, chunk, CPU, parameters).sum() for chunk in CHUNKS).backward()  # type: ignore[union-attr]
    assert set(times) == {1}, "DDP and DeepSpeed reduce a gradient when it is there"


def test_random_numbers_drawn_later_are_what_they_would_be(tiny_llama: Path) -> None:
    backbone = load(tiny_llama, Lora(r=4, dropout=0.3)).train()
    torch.manual_seed(0)
    output = recomputed(backbone, CHUNKS[0], CPU, trained(backbone))
    expected = torch.get_rng_state()
    output.sum().backward()
    assert torch.equal(torch.get_rng_state(), expected)


def test_inside_autocast_a_forward_with_gradients_may_follow() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        again = recomputed(layer, x, CPU, list(layer.parameters()))
        plainly = layer(x)
        assert again.dtype == plainly.dtype == torch.bfloat16
        plainly.float().sum().backward()
    assert layer.weight.grad is not None
    layer.zero_grad()
    again.float().sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(4, 4), rtol=0.02, atol=0.02)
