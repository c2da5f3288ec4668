"""The mask, padding and generation invariants, on a real tiny Llama and against plain transformers."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import adapter_gradients, distance, load, random_texts, singles, some_loss, train_a_little
from transformers import AttentionInterface, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from otherside.adapters import Lora
from otherside.attention import ATTENTION, packed_attention
from otherside.backbone import BackboneConfig, MaskError, fast_dtype
from otherside.encoder import Encoder
from otherside.pooling import pool
from otherside.tokenizer import load_tokenizer

LENGTHS = [1, 9, 3, 17, 9, 2]
DIRECTIONS = ["bidirectional", "causal"]
KERNELS = ["auto", "sdpa", "eager"]


def plain(folder, dtype=torch.float32):
    """The base model as transformers itself runs it."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval().requires_grad_(False)


def transformers_states(lm, ids, direction, **options):
    """Last hidden states (N, L, D) by transformers' own attention."""
    return lm.model(ids, is_causal=direction == "causal", use_cache=False, **options).last_hidden_state


@pytest.fixture
def attention_function():
    """Registers another attention in place of ours, for one test."""
    yield lambda function: AttentionInterface.register(ATTENTION, function)
    AttentionInterface.register(ATTENTION, packed_attention)


class TestMask:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_self_test_passes(self, tiny_llama, direction, kernel, dtype):
        load(tiny_llama, attention=direction, kernel=kernel, dtype=dtype, attention_dropout=0.3).self_test()

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_direction_can_be_turned_at_any_time(self, tiny_llama, direction):
        backbone = load(tiny_llama, attention=direction)
        backbone.attention = DIRECTIONS[1 - DIRECTIONS.index(direction)]
        backbone.self_test()

    @pytest.mark.parametrize(
        ("wanted", "computed", "seen"),
        [("bidirectional", "causal", "does not see"), ("causal", "bidirectional", "sees")],
    )
    def test_a_kernel_that_ignores_the_direction(self, tiny_llama, attention_function, wanted, computed, seen):
        attention_function(lambda *args, causal, **kw: packed_attention(*args, causal=computed == "causal", **kw))
        message = (
            rf"attention must be {wanted}, but an early token {seen} later ones \(kernel sdpa, cpu, .*float32\). Use"
        )
        with pytest.raises(MaskError, match=message):
            load(tiny_llama, attention=wanted, kernel="sdpa").self_test()

    def test_a_kernel_that_ignores_the_direction_only_with_dropout(self, tiny_llama, attention_function):
        """On CUDA, `auto` takes one kernel with dropout and another without."""

        def causal_with_dropout(*args, causal, dropout=0.0, **kw):
            return packed_attention(*args, causal=causal or dropout > 0, dropout=dropout, **kw)

        attention_function(causal_with_dropout)
        load(tiny_llama).self_test()
        with pytest.raises(MaskError, match="must be bidirectional, but an early token does not see"):
            load(tiny_llama, attention_dropout=0.3).self_test()

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_a_kernel_that_mixes_packed_texts(self, tiny_llama, attention_function, direction):
        def mixing(*args, borders, **kw):
            everything = borders.slots.numel()
            one = replace(borders, count=1, longest=everything, even=True)
            return packed_attention(*args, borders=one, **kw)

        attention_function(mixing)
        message = r"packed texts must not see each other, but they do.*Use another backbone.kernel"
        with pytest.raises(MaskError, match=message):
            load(tiny_llama, attention=direction).self_test()

    def test_a_kernel_that_returns_nan(self, tiny_llama, attention_function):
        def broken(*args, **kw):
            out, _ = packed_attention(*args, **kw)
            out[:, -1] = float("nan")  # in the neighbour, where a comparison with NaN would pass
            return out, None

        attention_function(broken)
        with pytest.raises(MaskError, match="hidden states must be finite"):
            load(tiny_llama).self_test()

    def test_a_model_that_ignores_its_input(self, tiny_llama):
        backbone = load(tiny_llama)
        backbone.lm.get_input_embeddings().weight.zero_()
        with pytest.raises(MaskError, match="must react to its input"):
            backbone.self_test()

    def test_leaves_mode_and_random_state_alone(self, tiny_llama):
        backbone = load(tiny_llama, attention_dropout=0.3)
        for training in (True, False):
            backbone.train(training)
            before = torch.get_rng_state()
            backbone.self_test()
            assert torch.equal(torch.get_rng_state(), before)
            assert all(module.training == training for module in backbone.modules())


class TestPadding:
    """A text's vectors depend on nothing but the text."""

    @pytest.mark.parametrize(("kernel", "pads"), [("auto", True), ("sdpa", True), ("eager", True), ("varlen", False)])
    def test_which_kernels_pad(self, tiny_llama, kernel, pads):
        assert load(tiny_llama, kernel=kernel).pads(torch.device("cpu")) is pads

    @pytest.mark.parametrize("kernel", KERNELS)
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_packed_is_single(self, tiny_llama, direction, kernel):
        backbone, texts = load(tiny_llama, attention=direction, kernel=kernel), random_texts(LENGTHS)
        alone = torch.cat([backbone(text) for text in singles(texts)])
        assert distance(backbone(texts), alone) < 1e-5

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_packed_is_plain_transformers_text_by_text(self, tiny_llama, direction):
        lm, texts = plain(tiny_llama), random_texts(LENGTHS)
        expected = torch.cat([transformers_states(lm, t.input_ids[None], direction)[0] for t in singles(texts)])
        assert distance(load(tiny_llama, attention=direction, kernel="sdpa")(texts), expected) < 1e-6
        assert distance(load(tiny_llama, attention=direction, kernel="eager")(texts), expected) < 1e-5

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_packed_is_plain_transformers_padded(self, tiny_llama, direction, side):
        texts, longest = random_texts(LENGTHS), max(LENGTHS)
        slots = [slice(longest - n, longest) if side == "left" else slice(n) for n in LENGTHS]
        ids = torch.ones(len(LENGTHS), longest, dtype=torch.long)
        mask, positions = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, (slot, text) in enumerate(zip(slots, singles(texts), strict=True)):
            ids[row, slot], mask[row, slot], positions[row, slot] = text.input_ids, 1, text.positions
        padded = transformers_states(plain(tiny_llama), ids, direction, attention_mask=mask, position_ids=positions)
        expected = torch.cat([padded[row, slot] for row, slot in enumerate(slots)])
        assert distance(load(tiny_llama, attention=direction)(texts), expected) < 1e-5

    def test_these_tests_would_see_texts_mixed(self, tiny_llama):
        """transformers drops position_ids from the mask of a bidirectional model and mixes packed texts silently."""
        texts = random_texts(LENGTHS)
        mixed = transformers_states(
            plain(tiny_llama), texts.input_ids[None], "bidirectional", position_ids=texts.positions[None]
        )
        assert distance(mixed[0], load(tiny_llama)(texts)) > 0.1

    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_gradients_packed_are_gradients_single(self, tiny_llama, direction):
        backbone, texts = load(tiny_llama, Lora(r=4, dropout=0), attention=direction), random_texts(LENGTHS)
        train_a_little(backbone.lm)
        aim = torch.randn(len(LENGTHS), backbone.hidden_size)
        (pool(backbone(texts), texts, "mean") * aim).sum().backward()
        packed = adapter_gradients(backbone.lm)
        for text, wanted in zip(singles(texts), aim, strict=True):
            (pool(backbone(text), text, "mean") * wanted).sum().backward()
        single = adapter_gradients(backbone.lm)
        assert len(packed) == 2 * 7 * 2
        for name in packed:
            assert distance(packed[name], single[name]) < 1e-5, name

    @pytest.mark.parametrize("budget", [1, 9, 20, 27, 1000])
    def test_any_chunking_gives_the_same_states(self, tiny_llama, budget):
        backbone, texts = load(tiny_llama), random_texts(LENGTHS)
        whole = backbone(texts).split(LENGTHS)
        for chunk in texts.chunks(budget):
            part = backbone(texts.select(chunk))
            assert distance(part, torch.cat([whole[i] for i in chunk])) < 1e-5

    def test_eager_is_sdpa(self, tiny_llama):
        texts = random_texts(LENGTHS)
        assert distance(load(tiny_llama, kernel="eager")(texts), load(tiny_llama, kernel="sdpa")(texts)) < 1e-5

    def test_bfloat16(self, tiny_llama):
        backbone, texts = load(tiny_llama, dtype="bfloat16"), random_texts(LENGTHS)
        together = pool(backbone(texts), texts, "mean")
        alone = torch.cat([pool(backbone(text), text, "mean") for text in singles(texts)])
        assert torch.cosine_similarity(together, alone).min() >= 0.9997

    @pytest.mark.parametrize(("dtype", "few"), [("bfloat16", True), ("float32", False)])
    def test_half_precision_on_cpus_meets_few_sizes(self, tiny_llama, dtype, few):
        """oneDNN compiles, and keeps, a kernel for each new size."""
        backbone, sizes = load(tiny_llama, dtype=dtype), set()
        for module in backbone.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda _, args, out: sizes.add(tuple(args[0].shape)))
        for longest in range(100, 128):
            texts = random_texts([longest, 7])
            assert len(backbone(texts)) == longest + 7
            assert [len(states) for states in backbone.hidden_states(texts)] == [longest + 7] * 3
        assert len({size[1] for size in sizes}) == (4 if few else 28)

    @pytest.mark.parametrize("direction", DIRECTIONS)
    @pytest.mark.parametrize("kernel", KERNELS)
    def test_filling_up_changes_no_text(self, tiny_llama, monkeypatch, kernel, direction):
        backbone = load(tiny_llama, Lora(dropout=0), dtype="bfloat16", kernel=kernel, attention=direction).train()
        train_a_little(backbone.lm)
        texts = random_texts([9, 50, 50, 44])
        found = backbone(texts)
        some_loss(found).backward()
        gradients = adapter_gradients(backbone.lm)
        monkeypatch.setattr("otherside.backbone.rounded", lambda n: n)
        expected = backbone(texts)
        some_loss(expected).backward()
        assert distance(found, expected) < 0.02  # bfloat16
        for name, gradient in adapter_gradients(backbone.lm).items():
            assert torch.cosine_similarity(gradients[name].flatten(), gradient.flatten(), 0) > 0.999


class TestAgainstTransformers:
    @pytest.mark.parametrize("direction", DIRECTIONS)
    def test_all_layers(self, tiny_llama, direction):
        backbone, text = load(tiny_llama, attention=direction), random_texts([23])
        expected = plain(tiny_llama).model(
            text.input_ids[None], is_causal=direction == "causal", use_cache=False, output_hidden_states=True
        )
        found = backbone.hidden_states(text)
        assert len(found) == backbone.layers + 1 == 3
        assert torch.equal(found[0], backbone.lm.get_input_embeddings()(text.input_ids))
        assert torch.equal(found[-1], backbone(text))
        for layer, states in zip(expected.hidden_states, found, strict=True):
            assert distance(states, layer[0]) < 1e-6

    def test_the_two_directions_differ(self, tiny_llama):
        text = random_texts([23])
        assert distance(load(tiny_llama)(text), load(tiny_llama, attention="causal")(text)) > 0.1

    def test_head(self, tiny_llama):
        backbone = load(tiny_llama)
        states = torch.randn(3, backbone.hidden_size)
        assert torch.equal(backbone.logits(states), states @ plain(tiny_llama).lm_head.weight.T)


def generated(lm, **options):
    prompt = torch.tensor([[5, 60, 70, 80]])
    options = {
        "max_new_tokens": 12,
        "do_sample": False,
        "return_dict_in_generate": True,
        "output_logits": True,
        **options,
    }
    outcome = lm.generate(prompt, **options)
    return outcome.sequences, torch.stack(outcome.logits)


class TestGeneration:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_adapters_off_and_causal_is_the_base_bit_for_bit(self, tiny_llama, dtype):
        backbone = load(tiny_llama, Lora(), attention="causal", dtype=dtype)
        train_a_little(backbone.lm)
        backbone(random_texts(LENGTHS))
        with backbone.without_adapters():
            tokens, logits = generated(backbone)
        base_tokens, base_logits = generated(plain(tiny_llama, getattr(torch, dtype)))
        assert torch.equal(tokens, base_tokens)
        assert torch.equal(logits, base_logits)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_with_adapters_on(self, tiny_llama, dtype):
        backbone = load(tiny_llama, Lora(), attention="causal", dtype=dtype)
        untrained, _ = generated(backbone)
        assert torch.equal(untrained, generated(plain(tiny_llama, getattr(torch, dtype)))[0])
        train_a_little(backbone.lm, size=0.3)
        assert not torch.equal(generated(backbone)[0], untrained)

    def test_bidirectional_is_refused(self, tiny_llama):
        with pytest.raises(ValueError, match=r"needs causal attention; got bidirectional. Generate inside `with"):
            load(tiny_llama).generate(torch.tensor([[5, 6]]))

    def test_encoding_is_unchanged_afterwards(self, tiny_llama):
        backbone, texts = load(tiny_llama, attention="causal"), random_texts(LENGTHS)
        before = backbone(texts)
        generated(backbone)
        assert torch.equal(backbone(texts), before)

    def test_without_adapters_may_be_nested(self, tiny_llama):
        backbone, texts = load(tiny_llama, Lora()), random_texts(LENGTHS)
        train_a_little(backbone.lm)
        with backbone.without_adapters():
            base = backbone(texts)
            with backbone.without_adapters():
                pass
            assert torch.equal(backbone(texts), base)
        assert not torch.equal(backbone(texts), base)


class TestTraining:
    def test_attention_dropout_only_in_training(self, tiny_llama):
        backbone, texts = load(tiny_llama, attention_dropout=0.3), random_texts(LENGTHS)
        assert torch.equal(backbone(texts), load(tiny_llama)(texts))
        backbone.train()
        assert not torch.equal(backbone(texts), backbone(texts))

    def test_attention_dropout_that_no_layer_heeds(self, tmp_path):
        GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"attention_dropout must be 0 for a GPT2LMHeadModel.*; got 0\.3"):
            load(tmp_path, attention_dropout=0.3)

    def test_activation_checkpointing_keeps_gradients(self, tiny_llama):
        def gradients(**options):
            backbone = load(tiny_llama, Lora(dropout=0.1), attention_dropout=0.1, **options).train()
            train_a_little(backbone.lm)
            torch.manual_seed(0)
            texts = random_texts(LENGTHS)
            some_loss(backbone(texts)).backward()
            return adapter_gradients(backbone.lm)

        plainly, recomputed = gradients(), gradients(activation_checkpointing=True)
        for name in plainly:
            assert torch.equal(recomputed[name], plainly[name]), name


@pytest.fixture
def tiny_llama_copy(tiny_llama, tmp_path):
    return shutil.copytree(tiny_llama, tmp_path / "base")


def change_base(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})


class TestLoading:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_every_dtype_opens_what_another_saved(self, tiny_llama, tmp_path, dtype):
        first = Encoder(load(tiny_llama, Lora(), dtype="bfloat16"), load_tokenizer(str(tiny_llama))).save(
            tmp_path, "mntp"
        )
        opened = load(first, dtype=dtype)
        assert opened.lm.dtype == getattr(torch, dtype)
        assert opened.lineage.fingerprint == load(tiny_llama).lineage.fingerprint

    def test_another_base_than_the_adapters_was_is_refused(self, tiny_llama_copy, tmp_path):
        folder = Encoder(load(tiny_llama_copy, Lora()), load_tokenizer(str(tiny_llama_copy))).save(
            tmp_path / "e", "mntp"
        )
        load(folder)
        change_base(tiny_llama_copy)
        with pytest.raises(ValueError, match=r"trained on a base with fingerprint .*The base's weights have changed"):
            load(folder)

    def test_everything_but_the_adapter_is_frozen(self, tiny_llama):
        assert not any(p.requires_grad for p in load(tiny_llama).parameters())

    def test_lineage_of_a_base_is_its_full_path(self, tiny_llama, monkeypatch):
        monkeypatch.chdir(tiny_llama.parent)
        assert load(tiny_llama.name).lineage.base == str(tiny_llama.resolve())

    def test_a_base_without_a_head(self, tiny_llama_copy, tmp_path):
        """As models that were trained to be encoders are kept: transformers makes up another head at each load."""
        file = tiny_llama_copy / "model.safetensors"
        weights = load_file(file)
        del weights["lm_head.weight"]
        save_file(weights, file, {"format": "pt"})
        encoder = Encoder(load(tiny_llama_copy, Lora()), load_tokenizer(str(tiny_llama_copy)))
        opened = load(encoder.save(tmp_path / "e", "simcse"), attention="causal")
        with pytest.raises(ValueError, match=r"generate needs .* has no lm_head.weight"):
            opened.generate(torch.tensor([[5]]))

    def test_missing_weights(self, tiny_llama_copy):
        (tiny_llama_copy / "model.safetensors").unlink()
        with pytest.raises(FileNotFoundError, match="must be a folder here or a model on the hub, with safetensors"):
            load(tiny_llama_copy)

    @pytest.mark.parametrize("load_from", [load, load_tokenizer])
    def test_neither_here_nor_on_the_hub(self, load_from):
        """A mistyped relative path reads like a hub id; the hub is off in tests."""
        with pytest.raises(FileNotFoundError, match=r"backbone.model must be a folder here or .*runs/mntp"):
            load_from("runs/mntp")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"attention": "both"}, "backbone.attention must be bidirectional or causal; got 'both'"),
            ({"dtype": "int8"}, "backbone.dtype must be one of auto, float32, bfloat16, float16; got 'int8'"),
            ({"kernel": "fast"}, "backbone.kernel must be one of"),
            ({"attention_dropout": 1.0}, r"backbone.attention_dropout must lie in \[0, 1\); got 1.0"),
            ({"kernel": "varlen", "attention_dropout": 0.3}, "varlen has no dropout; got attention_dropout=0.3"),
        ],
    )
    def test_bad_settings(self, options, message):
        with pytest.raises(ValueError, match=message):
            BackboneConfig("model", **options)


@pytest.mark.parametrize(
    ("known", "expected"), [({"avx2": True, "avx512_bf16": False}, "float32"), ({"amx_bf16": True}, "bfloat16")]
)
def test_auto_is_the_type_in_which_the_processor_is_fast(known, expected, monkeypatch):
    """Another processor cannot be had; what torch says of this one is replaced."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert BackboneConfig("any").dtype == fast_dtype() == expected
