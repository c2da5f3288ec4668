"""LoRA on a real tiny Llama, and its files in real PEFT."""

import gc
import json
import shutil
import weakref

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import adapter_gradients, distance, load, random_texts, some_loss, train_a_little
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from otherside import adapters
from otherside.adapters import PROJECTIONS, Lora, SavedAdapter, SharedDropout
from otherside.lineage import ADAPTER_WEIGHTS, Lineage, Merged

TEXTS = random_texts([1, 9, 3, 17, 9, 2])


def adapted(lm) -> set[str]:
    """Last parts of the names of layers that have an adapter."""
    return {name.rpartition(".")[2] for name, layer in lm.named_modules() if isinstance(layer, adapters.LoraLayer)}


def trained(folder, seed=1, size=0.1, lora=None, **options):
    """A backbone whose adapter does something."""
    backbone = load(folder, lora or Lora(r=4), **options)
    train_a_little(backbone.lm, seed, size)
    return backbone


class TestTargets:
    @pytest.mark.parametrize(
        ("targets", "expected"),
        [
            (list(PROJECTIONS), set(PROJECTIONS)),
            (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
            (["*_proj"], set(PROJECTIONS)),
            (["?_proj"], {"q_proj", "k_proj", "v_proj", "o_proj"}),
            (["*"], set(PROJECTIONS)),  # not the output head, which no encoder reads
        ],
    )
    def test_matched(self, tiny_llama, targets, expected):
        assert adapted(load(tiny_llama, Lora(targets=targets)).lm) == expected

    @pytest.mark.parametrize(
        ("targets", "lost"),
        [
            (["query"], "query"),
            (["q_proj", "qproj", "v_proj"], "qproj"),
            (["*_proj", "x*", "fc?"], r"x\*, fc\?"),
            (["lm_head"], "lm_head"),
            (["embed_tokens"], "embed_tokens"),
            ([], "an empty list"),
        ],
    )
    def test_a_name_that_matches_nothing_is_an_error(self, tiny_llama, targets, lost):
        with pytest.raises(
            ValueError, match=rf"must match a linear layer.*; {lost} matches none. .* are: down_proj, gate"
        ):
            load(tiny_llama, Lora(targets=targets))


class TestAttach:
    def test_output_does_not_change(self, tiny_llama):
        assert torch.equal(load(tiny_llama, Lora())(TEXTS), load(tiny_llama)(TEXTS))

    def test_only_the_adapter_trains(self, tiny_llama):
        lm = load(tiny_llama, Lora(r=4)).lm
        trainable = {name: p for name, p in lm.named_parameters() if p.requires_grad}
        assert all("lora_" in name for name in trainable)
        assert len(trainable) == 2 * 7 * 2
        for name, p in trainable.items():
            assert (p == 0).all() if "lora_B" in name else p.std() > 0

    def test_float32_adapter_on_a_bfloat16_base(self, tiny_llama):
        backbone = trained(tiny_llama, dtype="bfloat16").train()
        assert backbone.lm.dtype == torch.bfloat16
        assert {p.dtype for p in backbone.parameters() if p.requires_grad} == {torch.float32}
        states = backbone(TEXTS)
        assert states.dtype == torch.bfloat16
        some_loss(states).backward()
        gradients = adapter_gradients(backbone.lm)
        assert len(gradients) == 2 * 7 * 2
        assert all(g.dtype == torch.float32 and g.isfinite().all() and g.any() for g in gradients.values())

    def test_bfloat16_gradients_point_where_float32_ones_do(self, tiny_llama):
        def gradients(dtype):
            backbone = trained(tiny_llama, dtype=dtype)
            some_loss(backbone(TEXTS)).backward()
            return torch.cat([g.flatten() for g in adapter_gradients(backbone.lm).values()])

        assert torch.cosine_similarity(gradients("bfloat16"), gradients("float32"), dim=0) > 0.99

    def test_scaling(self, tiny_llama):
        def change(lora):
            return trained(tiny_llama, size=1e-3, lora=lora)(TEXTS) - base

        base = load(tiny_llama)(TEXTS)
        plain = change(Lora(r=4, alpha=8))
        assert distance(change(Lora(r=4, alpha=16)), 2 * plain) < 1e-2
        assert distance(change(Lora(r=4, alpha=8, rslora=True)), 2 * plain) < 1e-2  # 8 / sqrt(4) instead of 8 / 4

    @pytest.mark.parametrize("lora", [Lora(r=4, dora=True), Lora(r=4, rslora=True), Lora(r=4, share_dropout=False)])
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_variants_train(self, tiny_llama, lora, dtype):
        backbone = load(tiny_llama, lora, dtype=dtype)
        assert distance(backbone(TEXTS), load(tiny_llama, dtype=dtype)(TEXTS)) < (1e-5 if dtype == "float32" else 0.05)
        train_a_little(backbone.lm)
        some_loss(backbone.train()(TEXTS)).backward()
        gradients = adapter_gradients(backbone.lm)
        assert len(gradients) == (3 if lora.dora else 2) * 7 * 2
        assert all(g.isfinite().all() and g.any() for g in gradients.values())


class Masks:
    """Records which inputs of `lora_A` were dropped, by layer name; not those of filler tokens behind the texts."""

    def __init__(self, lm: nn.Module) -> None:
        self.dropped: dict[str, list[torch.Tensor]] = {}
        for name, layer in lm.named_modules():
            if isinstance(layer, adapters.LoraLayer):
                self.dropped[name.removeprefix("model.")] = seen = []
                layer.lora_A["default"].register_forward_hook(
                    lambda _, args, out, seen=seen: seen.append(args[0][:, : len(TEXTS.input_ids)] == 0)
                )

    def __call__(self, name: str, forward: int = 0) -> torch.Tensor:
        return self.dropped[name][forward]


class TestSharedDropout:
    P = 0.3

    @pytest.fixture(params=["float32", "bfloat16"])
    def masks(self, tiny_llama, request):
        backbone = load(tiny_llama, Lora(r=4, dropout=self.P), dtype=request.param).train()
        masks = Masks(backbone.lm)
        for _ in range(2):
            backbone(TEXTS)
        return masks

    @pytest.mark.parametrize("first", ["self_attn.q_proj", "mlp.gate_proj"])
    def test_one_mask_for_layers_that_read_the_same_tensor(self, masks, first):
        others = {"self_attn.q_proj": ["self_attn.k_proj", "self_attn.v_proj"], "mlp.gate_proj": ["mlp.up_proj"]}[first]
        for forward in (0, 1):
            for layer in (0, 1):
                for other in others:
                    assert torch.equal(
                        masks(f"layers.{layer}.{first}", forward), masks(f"layers.{layer}.{other}", forward)
                    )

    def test_other_masks_in_other_layers_forwards_and_blocks(self, masks):
        q = masks("layers.0.self_attn.q_proj")
        for other in (
            masks("layers.0.self_attn.q_proj", forward=1),
            masks("layers.1.self_attn.q_proj"),
            masks("layers.0.self_attn.o_proj"),
            masks("layers.0.mlp.gate_proj"),
        ):
            assert not torch.equal(q, other)

    def test_share_of_dropped_inputs(self, masks):
        for name in masks.dropped:
            assert masks(name).float().mean().item() == pytest.approx(self.P, abs=0.05), name

    def test_kept_inputs_are_scaled(self):
        x = torch.ones(10_000)
        dropped = SharedDropout(0.3, users=1)(x)
        assert sorted(set(dropped.tolist())) == pytest.approx([0.0, 1 / 0.7], rel=1e-4)  # p is rounded to 1 / 65,536
        assert dropped.mean().item() == pytest.approx(1, abs=0.05)

    def test_not_shared_where_asked(self, tiny_llama):
        backbone = load(tiny_llama, Lora(r=4, dropout=self.P, share_dropout=False)).train()
        masks = Masks(backbone.lm)
        backbone(TEXTS)
        assert not torch.equal(masks("layers.0.self_attn.q_proj"), masks("layers.0.self_attn.k_proj"))

    def test_partly_adapted_blocks_share_too(self, tiny_llama):
        backbone = load(tiny_llama, Lora(r=4, dropout=self.P, targets=["q_proj", "v_proj", "up_proj"])).train()
        masks = Masks(backbone.lm)
        backbone(TEXTS)
        assert torch.equal(masks("layers.0.self_attn.q_proj"), masks("layers.0.self_attn.v_proj"))

    def test_identity_in_eval(self, tiny_llama):
        def states(dropout):
            return trained(tiny_llama, lora=Lora(r=4, dropout=dropout))(TEXTS)

        assert torch.equal(states(0.3), states(0.0))

    def test_nothing_is_kept_after_the_forward(self, tiny_llama):
        backbone = load(tiny_llama, Lora(r=4, dropout=self.P)).train()
        inputs = []
        for layer in adapters.adapter_layers(backbone.lm):
            layer.lora_A["default"].register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0])))
        with torch.no_grad():
            backbone(TEXTS)
        gc.collect()
        assert len(inputs) == 2 * 7
        assert not any(ref() is not None for ref in inputs)
        shared = [module for module in backbone.modules() if isinstance(module, SharedDropout)]
        assert shared
        assert all(module._input is None and module._dropped is None for module in shared)

    @pytest.mark.parametrize("how", ["whole", "per layer", "both"])
    def test_recomputed_exactly(self, tiny_llama, how):
        def gradients(whole, per_layer):
            backbone = trained(tiny_llama, lora=Lora(r=4, dropout=self.P), activation_checkpointing=per_layer).train()
            torch.manual_seed(0)
            parts = [TEXTS.select(chunk) for chunk in TEXTS.chunks(20)]
            run = (lambda part: checkpoint(backbone, part, use_reentrant=False)) if whole else backbone
            some_loss(torch.cat([run(part) for part in parts])).backward()
            return adapter_gradients(backbone.lm)

        expected = gradients(whole=False, per_layer=False)
        found = gradients(whole=how != "per layer", per_layer=how != "whole")
        for name in expected:
            assert torch.equal(found[name], expected[name]), name


class TestSwitch:
    def test_off_is_the_base_and_on_again_the_adapter(self, tiny_llama):
        backbone = trained(tiny_llama)
        before = backbone(TEXTS)
        with backbone.without_adapters():
            assert torch.equal(backbone(TEXTS), load(tiny_llama)(TEXTS))
        assert torch.equal(backbone(TEXTS), before)
        assert all(p.requires_grad for n, p in backbone.named_parameters() if "lora_" in n)

    def test_on_again_after_an_error(self, tiny_llama):
        backbone = trained(tiny_llama)
        with pytest.raises(KeyError), backbone.without_adapters():
            raise KeyError
        assert adapters.are_on(backbone.lm)


def save(backbone, folder, name="mntp") -> Merged:
    adapters.save(backbone.lm, folder, backbone.lineage.base)
    return Lineage("base").extended(name, folder).adapters[0]


class TestFiles:
    @pytest.mark.parametrize(
        "lora", [Lora(r=4), Lora(r=4, rslora=True, targets=["q_proj", "*down*"]), Lora(r=4, dora=True)]
    )
    def test_real_peft_opens_it(self, tiny_llama, tmp_path, lora):
        backbone = trained(tiny_llama, lora=lora, attention="causal")
        backbone.kernel = "sdpa"  # as in the model that PEFT opens
        save(backbone, tmp_path)
        base = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
        opened = peft.PeftModel.from_pretrained(base, tmp_path).eval()
        text = random_texts([23])
        expected = opened.base_model.model.model(text.input_ids[None]).last_hidden_state[0]
        assert distance(backbone(text), expected) < 5e-6  # sums in another order; both are 1e-6 from float64's
        assert distance(backbone(text), load(tiny_llama, attention="causal")(text)) > 0.01

    def test_files_hold_the_adapter_only(self, tiny_llama, tmp_path):
        save(trained(tiny_llama), tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {ADAPTER_WEIGHTS, "adapter_config.json"}
        names = load_file(tmp_path / ADAPTER_WEIGHTS).keys()
        assert len(names) == 2 * 7 * 2
        assert all(".lora_" in name for name in names)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(tiny_llama.resolve())
        assert config["target_modules"] == sorted(PROJECTIONS)

    @pytest.mark.parametrize("dora", [False, True])
    def test_merged_is_attached(self, tiny_llama, tmp_path, dora):
        backbone = trained(tiny_llama, lora=Lora(r=4, dora=dora))
        adapter = save(backbone, tmp_path)
        merged = load(tiny_llama)
        SavedAdapter(adapter).merge(merged.lm)
        assert distance(merged(TEXTS), backbone(TEXTS)) < 1e-5
        assert not adapted(merged.lm)
        assert not any(p.requires_grad for p in merged.parameters())

    def test_two_merged_in_order(self, tiny_llama, tmp_path):
        """Base + first, then the second trained upon it, is what merging both gives."""
        first = save(trained(tiny_llama, seed=1), tmp_path / "first")
        upon = load(tiny_llama)
        SavedAdapter(first).merge(upon.lm)
        adapters.attach(upon.lm, Lora(r=8, alpha=8))
        train_a_little(upon.lm, seed=2, size=0.1)
        second = save(upon, tmp_path / "second")
        both = load(tiny_llama)
        for adapter in (first, second):
            SavedAdapter(adapter).merge(both.lm)
        assert distance(both(TEXTS), upon.eval()(TEXTS)) < 1e-5
        alone = load(tiny_llama)
        SavedAdapter(second).merge(alone.lm)
        assert distance(both(TEXTS), alone(TEXTS)) > 0.01

    def test_a_tampered_adapter_is_refused(self, tiny_llama, tmp_path):
        adapter = save(trained(tiny_llama), tmp_path)
        tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
        next(iter(tensors.values()))[0, 0] += 1
        save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
        with pytest.raises(ValueError, match=r"'mntp'.*must have SHA-256"):
            SavedAdapter(adapter).merge(load(tiny_llama).lm)

    def test_an_adapter_of_another_width_is_refused(self, tiny_llama, tmp_path):
        adapter = save(trained(tiny_llama), tmp_path)
        other = LlamaForCausalLM(
            LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        )
        with pytest.raises(ValueError, match=r"(?s)'mntp' in .* must fit the base model.*size mismatch.*Use the base"):
            SavedAdapter(adapter).merge(other)

    def test_an_adapter_of_more_layers_is_refused(self, tiny_llama, tmp_path):
        adapter = save(trained(tiny_llama), tmp_path)
        lm = load(tiny_llama).lm
        del lm.model.layers[1]
        with pytest.raises(ValueError, match=r"(?s)must fit the base model.*unexpected.*layers.1"):
            SavedAdapter(adapter).merge(lm)

    def test_an_adapter_without_some_tensors_is_refused(self, tiny_llama, tmp_path):
        save(trained(tiny_llama), tmp_path)
        tensors = load_file(tmp_path / ADAPTER_WEIGHTS)
        tensors.pop(next(iter(tensors)))
        save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
        adapter = Lineage("base").extended("mntp", tmp_path).adapters[0]
        with pytest.raises(ValueError, match=r"must fit the base model.*missing"):
            SavedAdapter(adapter).merge(load(tiny_llama).lm)

    def test_a_missing_adapter(self, tiny_llama, tmp_path):
        adapter = save(trained(tiny_llama), tmp_path / "a")
        shutil.rmtree(tmp_path / "a")
        with pytest.raises(FileNotFoundError, match="adapter 'mntp' must be at"):
            SavedAdapter(adapter).merge(load(tiny_llama).lm)


class TestFingerprint:
    def lm(self, folder, dtype=torch.float32):
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def test_does_not_depend_on_the_loading_type(self, tiny_llama):
        prints = {adapters.fingerprint(self.lm(tiny_llama, dtype)) for dtype in (torch.float32, torch.bfloat16)}
        assert len(prints) == 1
        assert None not in prints

    @pytest.mark.parametrize(
        "name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"]
    )
    def test_sees_a_change_of_any_parameter(self, tiny_llama, name):
        lm = self.lm(tiny_llama)
        before = adapters.fingerprint(lm)
        with torch.no_grad():
            lm.get_parameter(name).mul_(1.05)
        assert adapters.fingerprint(lm) != before

    def test_none_where_weights_cannot_be_compared(self, tiny_llama):
        assert adapters.fingerprint(self.lm(tiny_llama, torch.float16)) is None  # its range is smaller than bfloat16's
