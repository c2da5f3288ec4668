"""Our forward is the model's own, or the model is refused by name. What a family must show is in test_families.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SMOLLM2, distance, load, nothing, random_texts, train_a_little
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM

from otherside import self_test
from otherside.adapters import Lora
from otherside.attention import ATTENTION, packed_attention
from otherside.backbone import Backbone, BackboneConfig, MaskError
from otherside.batching import Packed, Tokens
from otherside.llama import check_decoder
from otherside.self_test import _ids
from otherside.tokenizer import load_tokenizer, start_id

SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT_OSS = {"num_local_experts": 2, "num_experts_per_tok": 1, "head_dim": 16, "layer_types": ["full_attention"] * 2}
LONGROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 16,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
    "original_max_position_embeddings": 16,
}
DYNAMIC = {
    "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0},
    "max_position_embeddings": 16,
}


def save(folder: Path, family: str, **settings: Any) -> Path:
    """A tiny model of that family."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **settings})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture
def attention_function():
    """Registers another attention in place of ours, for one test."""
    yield lambda function: AttentionInterface.register(ATTENTION, function)
    AttentionInterface.register(ATTENTION, packed_attention)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {}),
        ("mistral", {"sliding_window": None}),
        ("nanochat", {"final_logit_softcapping": 3.0}),
    ],
)
def test_states_and_logits_are_the_models_own(family: str, settings: dict[str, Any], tmp_path: Path) -> None:
    folder, text = save(tmp_path, family, **settings), random_texts([13])
    backbone = load(folder, attention="causal")
    backbone.self_test()
    with torch.no_grad():
        own = AutoModelForCausalLM.from_pretrained(folder).eval()(text.input_ids[None], output_hidden_states=True)
        states = backbone(text)
        assert distance(states, own.hidden_states[-1][0]) < 1e-5
        assert distance(backbone.logits(states), own.logits[0]) < 1e-5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "granite"])
def test_passes_with_an_adapter_in_every_type(family: str, dtype: str, tmp_path: Path) -> None:
    backbone = load(save(tmp_path, family), Lora(r=4, dropout=0.3), dtype=dtype, attention_dropout=0.3)
    backbone.self_test()
    train_a_little(backbone.lm, size=0.3)
    backbone.self_test()
    assert backbone.attention == "bidirectional" and backbone.lm.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("keep_sink", [True, False])
def test_reads_ordinary_words(keep_sink: bool) -> None:
    """Special tokens' states cancel: in bfloat16 a trained SmolLM2's kernels then differed by .97 of their size."""
    tokenizer = load_tokenizer(SMOLLM2)
    start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    config = BackboneConfig(SMOLLM2, dtype="bfloat16", keep_sink=keep_sink)
    backbone = Backbone.load(config, start=start)  # type: ignore[arg-type]
    first, *others = _ids(backbone).tolist()
    assert not set(others) & set(tokenizer.all_special_ids) and (first == start) is keep_sink
    states = []
    text = Packed.from_tokens([Tokens([first, *others])])
    for backbone.kernel in ("eager", "sdpa"):  # type: ignore[assignment]
        with torch.no_grad():
            states.append(backbone(text).float())
    assert distance(*states) < 0.1


def test_a_start_token_whose_states_cancel_is_no_fault() -> None:
    """In bfloat16 transformers' own kernels differ by .2 to .5 of the size of SmolLM2's states behind `<file_sep>`."""
    tokenizer = load_tokenizer(SMOLLM2, start_token="<file_sep>")
    config = BackboneConfig(SMOLLM2, dtype="bfloat16", start_token="<file_sep>")
    Backbone.load(config, start=start_id(tokenizer)).self_test()


@pytest.mark.parametrize(("what", "factor"), [("logits", 1.4), ("hidden states", 0.0)])
def test_that_kernels_differ_excuses_no_other_fault(
    what: str, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far transformers' own kernels are apart."""
    own, ours = self_test._by_transformers, {"logits": "logits", "hidden states": "forward"}[what]
    backbone = load(save(tmp_path, "llama"), dtype="bfloat16")

    def apart(backbone: Backbone, ids: torch.Tensor, kind: Any) -> tuple[torch.Tensor, torch.Tensor]:
        states, logits = own(backbone, ids, kind)
        return (states * 2 if kind == "sdpa" else states), logits

    monkeypatch.setattr(self_test, "_by_transformers", apart)
    self_test._test_numbers(backbone, ("sdpa",))
    right = getattr(Backbone, ours)
    monkeypatch.setattr(Backbone, ours, lambda self, *inputs: right(self, *inputs) * factor)
    with pytest.raises(MaskError, match=f"{what} must be those of the model's own forward"):
        self_test._test_numbers(backbone, ("sdpa",))


def test_logits_scaled_in_a_way_we_do_not_know(tmp_path: Path) -> None:
    """HyperCLOVA X multiplies by what Granite divides by."""
    message = r"logits must be those of the model's own forward; of a hyperclovax they are off by .*another backbone"
    with pytest.raises(MaskError, match=message):
        load(save(tmp_path, "hyperclovax", logits_scaling=3.0)).self_test()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_kernel_that_computes_something_else(
    tiny_llama: Path, attention_function: Any, kernel: str, dtype: str
) -> None:
    """Right mask, wrong numbers, and with `auto` on one kernel only."""

    def wrong(*args: Any, scaling: float, **options: Any) -> Any:
        return packed_attention(*args, scaling=scaling * (4 if options["kernel"] == kernel else 1), **options)

    attention_function(wrong)
    message = rf"hidden states must be those of the model's own forward; of a llama they are off.*kernel {kernel}, cpu"
    with pytest.raises(MaskError, match=message):
        load(tiny_llama, dtype=dtype).self_test()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("direction", ["bidirectional", "causal"])
def test_a_kernel_with_another_mask(tiny_llama: Path, attention_function: Any, direction: Any, kernel: str) -> None:
    """The texts of training meet both kernels of `auto`."""

    def wrong(*args: Any, causal: bool, **options: Any) -> Any:
        turned = direction == "bidirectional" if options["kernel"] == kernel else causal
        return packed_attention(*args, causal=turned, **options)

    attention_function(wrong)
    with pytest.raises(MaskError, match=rf"attention must be {direction}, but an early token .*kernel {kernel}, cpu"):
        load(tiny_llama, attention=direction).self_test()


def test_attention_sinks_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"GptOssAttention asks for s_aux.*another backbone\.model"):
        load(save(tmp_path, "gpt_oss", **GPT_OSS)).self_test()


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize(("family", "window"), [("mistral", {}), ("gemma3_text", {"head_dim": 16})])
def test_windows_longer_than_its_text_are_tested_too(
    family: str, window: dict[str, Any], kernel: str, tmp_path: Path, attention_function: Any
) -> None:
    folder = save(tmp_path, family, sliding_window=32, **window)
    load(folder).self_test()

    def wrong(*args: Any, sliding_window: int | None, **options: Any) -> Any:
        longer = sliding_window and sliding_window + (options["kernel"] == kernel)
        return packed_attention(*args, sliding_window=longer, **options)

    attention_function(wrong)
    backbone = load(folder)
    with pytest.raises(MaskError, match=rf"hidden states must be .*kernel {kernel}, cpu"):
        backbone.self_test()
    assert backbone.lm.config.sliding_window == backbone.lm.model.layers[0].self_attn.config.sliding_window == 32


@pytest.mark.parametrize(
    ("family", "settings", "why"),
    [
        ("gemma3", {}, "a gemma3 reads more than texts"),
        ("bert", {}, "a bert is an encoder, bidirectional from the start"),
        ("qwen3_next", {}, "a qwen3_next has layers of linear_attention, which cannot be turned"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "a gemma3_text with use_bidirectional_attention is an"),
    ],
)
def test_what_cannot_be_turned_is_refused_by_name(family: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=f"must be a decoder of texts with attention in all layers; {why}"):
        check_decoder(AutoConfig.for_model(family, **settings))


@pytest.mark.parametrize("shard", [None, nothing])
def test_an_encoder_of_gemmas_is_refused_whoever_loads_it(shard: Any, tmp_path: Path) -> None:
    folder = save(tmp_path, "gemma3_text", head_dim=16, use_bidirectional_attention=True)
    with pytest.raises(ValueError, match="is an encoder already"):
        Backbone.load(BackboneConfig(str(folder)), None, shard)


@pytest.mark.parametrize(("family", "rope"), [("phi3", LONGROPE), ("llama", DYNAMIC)])
class TestRopeThatDependsOnTheLongestText:
    def test_short_texts_do_not(self, family: str, rope: dict[str, Any], tmp_path: Path) -> None:
        backbone = load(save(tmp_path, family, **rope), attention="causal")
        backbone.self_test()
        together, alone = random_texts([9, 16]), random_texts([9])
        assert distance(backbone(together)[:9], backbone(alone)) < 1e-5

    def test_longer_ones_are_refused(self, family: str, rope: dict[str, Any], tmp_path: Path) -> None:
        message = rf"at most 16 tokens.*{rope['rope_parameters']['rope_type']} RoPE.*got 17"
        with pytest.raises(ValueError, match=message):
            load(save(tmp_path, family, **rope))(random_texts([9, 17]))


def test_a_text_beyond_the_models_positions(tmp_path: Path) -> None:
    backbone = load(save(tmp_path, "llama"))
    assert len(backbone(random_texts([64]))) == 64
    with pytest.raises(ValueError, match="at most 64 tokens, the positions of a LlamaForCausalLM; got 65"):
        backbone(random_texts([65]))
