"""QLoRA: what is rounded, that it trains as on the rounded weights written out, and what it is refused for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit
from families import FAMILIES
from peft.tuners.lora import Linear4bit as AdaptedLinear4bit
from tiny import adapter_gradients, distance, load, nothing, random_texts, some_loss, train_a_little
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from otherside import quantized
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed
from otherside.encoder import Encoder
from otherside.evaluation.model import model_meta
from otherside.full import Full
from otherside.lineage import Card
from otherside.recompute import recomputed
from otherside.tokenizer import load_tokenizer, start_id

TEXTS = ["The cat sat on the mat.", "Rain.", "A dog barked at the postman all morning long."]
PLAIN = Lora(r=4, dropout=0.0)


def rounded(model: Path, lora: Lora | None = PLAIN, dtype: str = "float32") -> Backbone:
    """A backbone in four bits, whose adapter does something."""
    torch.manual_seed(0)
    backbone = load(model, lora, dtype=dtype, quantized="nf4")
    train_a_little(backbone.lm)
    return backbone.train()


def matrices(backbone: Backbone) -> dict[str, Tensor]:
    """The weights in four bits, written out, by the names that they have in the base."""
    found = {}
    for name, weight in backbone.lm.named_parameters():
        if isinstance(weight, Params4bit):
            found[name.replace(".base_layer", "")] = dequantize_4bit(weight.data, weight.quant_state)
    return found


@pytest.fixture(scope="module")
def written_out(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The tiny Llama with its rounded weights in a type, as an ordinary model."""

    def get(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(f"written-{dtype}")
        lm = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=getattr(torch, dtype))
        lm.load_state_dict(matrices(rounded(tiny_llama, None, dtype)), strict=False)
        lm.save_pretrained(folder)
        load_tokenizer(str(tiny_llama)).save_pretrained(folder)
        return folder

    return get


class TestRounded:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_are_the_layers_matrices_and_nothing_else(self, dtype: str, tiny_llama: Path) -> None:
        backbone, plain = rounded(tiny_llama, None, dtype), load(tiny_llama, dtype=dtype)
        weights = dict(plain.lm.named_parameters())
        found = matrices(backbone)
        assert set(found) == {name for name in weights if name.endswith("_proj.weight")}
        for name, parameter in backbone.lm.named_parameters():
            if name in found:
                assert parameter.quant_state.nested and parameter.quant_state.quant_type == "nf4"
                assert parameter.numel() * 2 == weights[name].numel() and not parameter.requires_grad
                off = (found[name] - weights[name]).norm() / weights[name].norm()
                assert 0.05 < off < 0.15, name
            else:
                assert torch.equal(parameter, weights[name]) and parameter.dtype == weights[name].dtype, name

    def test_it_computes_in_the_bases_type_and_adapters_are_float32(self, tiny_llama: Path) -> None:
        backbone = rounded(tiny_llama, dtype="bfloat16")
        assert all(state.dtype == torch.bfloat16 for state in backbone.hidden_states(random_texts([5, 9])))
        assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
        assert sum(isinstance(layer, AdaptedLinear4bit) for layer in backbone.lm.modules()) == 14
        backbone.self_test()

    def test_stages_before_are_merged_first(self, tiny_llama: Path, tmp_path: Path) -> None:
        folder = stage(tiny_llama, tmp_path / "mntp")
        found, merged = matrices(rounded(folder)), load(folder).lm
        for part in merged.model.layers:
            quantized.quantize(part, torch.float32)
        expected = {name: p for name, p in merged.named_parameters() if isinstance(p, Params4bit)}
        assert found.keys() == expected.keys()
        for name, weight in expected.items():
            assert torch.equal(found[name], dequantize_4bit(weight.data, weight.quant_state)), name
        assert Card.read(folder).lineage.fingerprint == rounded(folder).lineage.fingerprint

    @pytest.mark.parametrize("family", FAMILIES)
    def test_families(self, family: str, tiny_llama_bos: Path, tmp_path: Path) -> None:
        backbone = rounded(FAMILIES[family].save(tmp_path, tiny_llama_bos))
        backbone.self_test()
        some_loss(backbone(random_texts([5, 9, 12]))).backward()
        assert all(grad.abs().sum() > 0 for grad in adapter_gradients(backbone.lm).values())


class TestTraining:
    @pytest.mark.parametrize(("dtype", "allowed"), [("float32", 2e-6), ("bfloat16", 0.05)])
    @pytest.mark.parametrize("lora", [PLAIN, Lora(r=4, dropout=0.1), Lora(r=4, dropout=0.0, dora=True)], ids=str)
    def test_is_lora_on_the_rounded_weights_written_out(
        self, lora: Lora, dtype: str, allowed: float, tiny_llama: Path, written_out: Callable[[str], Path]
    ) -> None:
        found = rounded(tiny_llama, lora, dtype)
        torch.manual_seed(0)
        plain = load(written_out(dtype), lora, dtype=dtype)
        train_a_little(plain.lm)
        states, gradients = zip(*(trained(backbone) for backbone in (found, plain.train())), strict=True)
        assert distance(*states) < allowed
        assert gradients[0].keys() == gradients[1].keys()
        for name, gradient in gradients[1].items():
            assert distance(gradients[0][name], gradient) < 3 * allowed, name

    def test_layers_and_chunks_that_are_computed_again_have_the_same_gradients(self, tiny_llama: Path) -> None:
        backbone, texts = rounded(tiny_llama, Lora(r=4, dropout=0.1)), random_texts([5, 9, 12])
        states, expected = trained(backbone)
        parameters = [p for p in backbone.parameters() if p.requires_grad]

        def chunk(texts: Packed) -> Tensor:
            return recomputed(backbone, texts, torch.device("cpu"), parameters)

        for way in (chunk, backbone):
            torch.manual_seed(1)
            found = way(texts)
            assert torch.equal(found, states)
            some_loss(found).backward()
            gradients = adapter_gradients(backbone.lm)
            assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())
            backbone.compute_layers_again()

    def test_use_between_steps_leaves_it_as_it_is(self, tiny_llama: Path) -> None:
        """bitsandbytes packs weights anew, for good and without gradients, where a CPU computes without them first."""
        before, expected = trained(rounded(tiny_llama, dtype="bfloat16"))
        backbone = rounded(tiny_llama, dtype="bfloat16").eval()
        with torch.no_grad():
            backbone(random_texts([5, 9, 12]))
        found, gradients = trained(backbone.train())
        assert torch.equal(found, before)
        assert all(torch.equal(gradients[name], gradient) for name, gradient in expected.items())

    def test_it_learns(self, tiny_llama: Path) -> None:
        """To predict the next token, through the head."""
        backbone, texts = rounded(tiny_llama, dtype="bfloat16"), random_texts([12, 9, 12])
        optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for _ in range(12):
            loss = nn.functional.cross_entropy(backbone.logits(backbone(texts)).float(), texts.input_ids)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[-1] < 0.5 * losses[0]


def trained(backbone: Backbone) -> tuple[Tensor, dict[str, Tensor]]:
    """States, and the gradients of the adapter."""
    torch.manual_seed(1)
    states = backbone(random_texts([5, 9, 12]))
    some_loss(states).backward()
    return states.detach(), adapter_gradients(backbone.lm)


def opened(model: str | Path, quantized: Any = "nf4") -> Encoder:
    """An encoder with an adapter that does something."""
    tokenizer = load_tokenizer(str(model))
    config = BackboneConfig(str(model), dtype="float32", quantized=quantized)
    torch.manual_seed(0)
    encoder = Encoder(Backbone.load(config, PLAIN, start=start_id(tokenizer)), tokenizer, max_length=64).eval()
    train_a_little(encoder.backbone.lm, size=0.1)
    return encoder


def stage(model: str | Path, folder: Path, quantized: Any = None) -> Path:
    return opened(model, quantized).save(folder, folder.name)


class TestFolder:
    def test_is_that_of_any_adapter(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder, plain = stage(tiny_llama_sink, tmp_path / "a", "nf4"), stage(tiny_llama_sink, tmp_path / "b")
        one, other = (Card.read(place).lineage for place in (folder, plain))
        assert one.fingerprint == other.fingerprint
        assert one.adapters[0].sha256 == other.adapters[0].sha256
        assert {file.name for file in folder.rglob("*")} - {"a", "0-a"} == {file.name for file in plain.rglob("*")} - {
            "b",
            "0-b",
        }

    def test_opens_in_the_usual_types_near_what_was_trained(self, tiny_llama: Path, tmp_path: Path) -> None:
        encoder = opened(tiny_llama)
        folder = encoder.save(tmp_path / "encoder", "mntp")
        again = torch.tensor(Encoder.load(folder).encode(TEXTS))
        assert not quantized.is_quantized(Encoder.load(folder).backbone.lm)
        near = nn.functional.cosine_similarity(again, torch.tensor(encoder.encode(TEXTS)))
        assert near.min() > 0.8 and near.max() < 0.9999

    def test_mteb_knows_it_and_counts_its_weights(self, tiny_llama: Path) -> None:
        found, plain = (model_meta(opened(tiny_llama, how)) for how in ("nf4", None))
        assert found.n_parameters == plain.n_parameters
        assert found.revision != plain.revision

    def test_it_is_not_the_base_that_generates(self, tiny_llama: Path) -> None:
        backbone = opened(tiny_llama).backbone
        with (
            pytest.raises(ValueError, match=r"as_base needs .*quantized rounded them. Open it beside this one: /"),
            backbone.as_base(),
        ):
            pass


class TestRefused:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"new": Full()}, r"needs an adapter to train.*got model.lora: null. Set model.lora, or"),
            ({"new": PLAIN, "shard": nothing}, r"shares it out \(zero3, fsdp2\). Use trainer.strategy: ddp, zero1 or"),
            ({"merge": False}, r"merge=False is for encoders in use; .* nf4 need merge=True"),
        ],
        ids=["full", "shards", "not merged"],
    )
    def test_what_cannot_be(self, options: dict[str, Any], says: str, tiny_llama: Path) -> None:
        with pytest.raises(ValueError, match=says):
            Backbone.load(BackboneConfig(str(tiny_llama), quantized="nf4"), **options)

    def test_an_unknown_type(self, tiny_llama: Path) -> None:
        with pytest.raises(ValueError, match=r"backbone.quantized must be nf4 or null; got 'int8'"):
            BackboneConfig(str(tiny_llama), quantized="int8")  # type: ignore[arg-type]

    def test_without_the_package(self, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(quantized, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match=r"bitsandbytes, which is not installed. Run `pip install 'otherside\[qu"):
            rounded(tiny_llama)

    def test_matrices_outside_of_linear_layers(self) -> None:
        """As the experts of a mixture have them."""
        layer = nn.Module()
        layer.up, layer.norm = nn.Linear(4, 4, bias=False), nn.LayerNorm(4, bias=False)
        layer.experts = nn.Parameter(torch.zeros(2, 4, 4))
        with pytest.raises(ValueError, match=r"torch's nn.Linear; of a Module's 31% are. Set quantized: null"):
            quantized.quantize(layer, torch.float32)
        assert type(layer.up) is nn.Linear, "it is as it was"
