"""Loading piece by piece gives what loading as a whole gives; shards between ranks are tested in tests/distributed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import build_tiny_llama
from tiny import load, train_a_little
from torch import nn
from transformers import AutoModelForCausalLM

from otherside import sharding
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder


def nothing(modules: list[nn.Module]) -> None:
    """One rank keeps all."""


def assert_loads_equal(model: Path, lora: Lora | None = None) -> None:
    loaded = []
    for shard in (None, nothing):
        torch.manual_seed(3)
        loaded.append(Backbone.load(BackboneConfig(str(model), dtype="bfloat16"), lora, shard))
    whole, pieces = loaded
    expected, found = dict(whole.lm.named_parameters()), dict(pieces.lm.named_parameters())
    assert list(found) == list(expected)
    for name, parameter in expected.items():
        assert torch.equal(found[name], parameter), name
        assert found[name].dtype == parameter.dtype
        assert found[name].requires_grad == parameter.requires_grad
    assert pieces.lineage == whole.lineage
    pieces.self_test()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lora", [None, Lora(r=4), Lora(r=4, rslora=True, dora=True, targets=["q_proj", "up_proj"])])
def test_base(tied: bool, lora: Lora | None, tmp_path: Path) -> None:
    assert_loads_equal(build_tiny_llama(tmp_path, tied=tied), lora)


def test_base_in_several_files(tiny_llama: Path, tmp_path: Path) -> None:
    build_tiny_llama(tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(tiny_llama)
    (tmp_path / "model.safetensors").unlink()
    lm.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_loads_equal(tmp_path, Lora(r=4))


def test_earlier_adapters(tiny_llama: Path, tmp_path: Path) -> None:
    place: str | Path = tiny_llama
    for stage in ("mntp", "simcse"):
        backbone = load(Path(place), Lora(r=4, rslora=stage == "simcse"))
        train_a_little(backbone.lm)
        tokenizer = Encoder.load(tiny_llama).tokenizer
        place = Encoder(backbone, tokenizer).save(tmp_path / stage, stage)
    assert_loads_equal(Path(place), Lora(r=8))


def test_every_parameter_is_in_one_piece(tiny_llama: Path) -> None:
    lm = AutoModelForCausalLM.from_pretrained(tiny_llama)
    pieces = [{p for module in modules for p in module.parameters()} for modules in sharding.pieces(lm)]
    assert sum(map(len, pieces)) == len(set.union(*pieces)) == len(list(lm.parameters()))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = build_tiny_llama(tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        Backbone.load(BackboneConfig(str(tmp_path)), None, nothing)
