"""Texts in, vectors out; and the folder that a stage leaves behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from conftest import SENTENCES
from tiny import load, random_texts, train_a_little
from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

from otherside import encoder as encoder_module
from otherside.adapters import Lora, attach
from otherside.attention import ATTENTION, packed_attention
from otherside.backbone import Backbone, BackboneConfig, MaskError
from otherside.encoder import Encoder
from otherside.lineage import ADAPTER_WEIGHTS, Card, sha256
from otherside.tokenizer import load_tokenizer

INSTRUCTION = "Retrieve the other side: "


def close(found, expected, tolerance=1e-5) -> bool:
    return found.shape == expected.shape and abs(found - expected).max() <= tolerance * abs(expected).max()


def by_hand(folder, sentences, instruction="", skip=0) -> np.ndarray:
    """Plain transformers, one text at a time: mean over the start token and all behind `skip` tokens of instruction."""
    tokenizer = load_tokenizer(str(folder))
    lm = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    for sentence in sentences:
        ids = tokenizer(instruction + sentence, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = lm.model(ids, is_causal=False).last_hidden_state[0]
        vectors.append(torch.cat([states[:1], states[1 + skip :]]).mean(0))
    return torch.stack(vectors).numpy()


@pytest.fixture(scope="module")
def encoder(tiny_llama):
    return Encoder.load(tiny_llama)


def stage(model, folder, name, seed=1, **settings) -> Encoder:
    """What training a stage upon `model` leaves: an encoder with an attached adapter, and its folder."""
    trained = Encoder(load(model, Lora(r=4)), load_tokenizer(str(model)), **settings)
    train_a_little(trained.backbone.lm, seed, size=0.1)
    trained.save(folder, name, steps=seed)
    return trained.eval()


class TestEncode:
    def test_equals_plain_transformers(self, tiny_llama, encoder):
        found = encoder.encode(SENTENCES)
        assert found.dtype == np.float32
        assert close(found, by_hand(tiny_llama, SENTENCES))

    def test_order_is_kept(self, encoder):
        turned = encoder.encode(SENTENCES[::-1])
        assert close(turned[::-1], encoder.encode(SENTENCES))

    def test_sorted_by_length_inside(self, encoder, monkeypatch):
        seen = []
        forward = encoder.forward
        monkeypatch.setattr(encoder, "forward", lambda texts: (seen.extend(texts.lengths.tolist()), forward(texts))[1])
        encoder.encode(SENTENCES * 3, batch_size=4)
        assert len(seen) == 24
        assert max(seen[-4:]) < min(seen[:4])

    @pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
    def test_batch_size_does_not_matter(self, encoder, batch_size):
        assert close(encoder.encode(SENTENCES, batch_size=batch_size), encoder.encode(SENTENCES))

    def test_long_batches_are_cut_into_chunks(self, encoder, monkeypatch):
        expected = encoder.encode(SENTENCES)
        monkeypatch.setattr("otherside.encoder.tokens_at_once", lambda device: 20)
        assert close(encoder.encode(SENTENCES), expected)

    def test_instruction_is_attended_but_not_pooled(self, tiny_llama, encoder):
        skip = len(
            AutoTokenizer.from_pretrained(tiny_llama).encode(INSTRUCTION.rstrip())
        )  # " Rain" is one token or two
        with_space = [" " + sentence for sentence in SENTENCES]
        found = encoder.encode(with_space, instruction=INSTRUCTION.rstrip())
        assert close(found, by_hand(tiny_llama, with_space, INSTRUCTION.rstrip(), skip))
        assert not close(found, encoder.encode(with_space), 0.05)
        assert not close(found, encoder.encode(with_space, instruction="Find:"), 0.05)

    def test_instruction_that_ends_in_a_space(self, tiny_llama, encoder):
        """Its last space and the text's first word are one token, which belongs to the text."""
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        alone, together = tokenizer.encode(INSTRUCTION), tokenizer.encode(INSTRUCTION + "the street.")
        assert together[: len(alone)] != alone
        found = encoder.encode(["the street."], instruction=INSTRUCTION)
        assert close(found, by_hand(tiny_llama, ["the street."], INSTRUCTION, skip=len(alone) - 1))

    def test_instruction_after_a_beginning_of_text_token(self, tiny_llama_bos):
        opened = Encoder.load(tiny_llama_bos)
        found = opened.encode(["the street."], instruction=INSTRUCTION)
        skip = len(AutoTokenizer.from_pretrained(tiny_llama_bos).encode(INSTRUCTION)) - 2
        assert close(found, by_hand(tiny_llama_bos, ["the street."], INSTRUCTION, skip))
        assert opened.encode([""]).shape == (1, 64)

    def test_truncation_never_leaves_the_instruction_alone(self, tiny_llama):
        short = Encoder.load(tiny_llama, max_length=4).train()
        with pytest.raises(ValueError, match="max_length must leave room for text behind the instruction"):
            short.encode(SENTENCES, instruction=INSTRUCTION)

    def test_longer_texts_are_cut(self, tiny_llama):
        found = Encoder.load(tiny_llama, max_length=4).encode([SENTENCES[1]])
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        assert close(found, by_hand(tiny_llama, [tokenizer.decode(tokenizer.encode(SENTENCES[1])[:3])]))

    @pytest.mark.parametrize("instruction", ["", INSTRUCTION])
    def test_empty_strings_have_a_vector(self, encoder, instruction):
        found = encoder.encode(["", "Rain.", " "], instruction=instruction)
        assert np.isfinite(found).all()
        assert close(found[1:2], encoder.encode(["Rain."], instruction=instruction))

    def test_no_texts(self, encoder):
        assert encoder.encode([]).shape == (0, 64)

    @pytest.mark.parametrize("texts", ["one string", [1, 2], ["a", None], [b"bytes"]])
    def test_something_else_than_strings(self, encoder, texts):
        with pytest.raises(TypeError, match=r"encode takes a list of strings; for one text, pass \[text\]"):
            encoder.encode(texts)

    def test_a_generator_gives_its_texts(self, encoder):
        assert np.array_equal(encoder.encode(text for text in SENTENCES), encoder.encode(SENTENCES))

    @pytest.mark.parametrize("texts", [{"a": "one"}, pandas.DataFrame({"text": ["one"]})])
    def test_what_would_give_its_names(self, encoder, texts):
        with pytest.raises(TypeError, match=r"encode takes a list of strings; of a (dict|DataFrame), pass one column"):
            encoder.encode(texts)

    def test_half_a_surrogate_pair(self, encoder):
        error = r"every text must be valid Unicode; 'a \\ud83d' has a lone surrogate, '\\ud83d', at character 2"
        with pytest.raises(ValueError, match=error):
            encoder.encode(["Rain.", "a \ud83d"])
        with pytest.raises(ValueError, match=error):
            encoder.word_vectors(["a \ud83d"], [["a"]])

    def test_no_instruction_is_an_empty_one(self, encoder):
        with pytest.raises(TypeError, match=r"instruction must be a string; got None\. Leave it out"):
            encoder.encode(["Rain."], instruction=None)

    @pytest.mark.parametrize("batch_size", [0, -1])
    def test_batch_size_below_one(self, encoder, batch_size):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1; got {batch_size}"):
            encoder.encode(SENTENCES, batch_size=batch_size)

    def test_normalize(self, encoder):
        plain, unit = encoder.encode(SENTENCES), encoder.encode(SENTENCES, normalize=True)
        assert close(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True))

    def test_every_part_keeps_its_mode(self, tiny_llama, monkeypatch):
        """Also where `encode` raises, as in a notebook that is stopped."""
        encoder = Encoder(load(tiny_llama, Lora(r=4)), load_tokenizer(str(tiny_llama))).train()
        encoder.backbone.lm.get_input_embeddings().eval()
        before = [part.training for part in encoder.modules()]
        encoder.encode(["A cat."])
        assert [part.training for part in encoder.modules()] == before
        monkeypatch.setattr(Encoder, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            encoder.encode(["A cat."])
        assert [part.training for part in encoder.modules()] == before

    def test_no_dropout_even_while_training(self, tiny_llama, tmp_path):
        trained = stage(tiny_llama, tmp_path / "e", "mntp")
        expected = trained.encode(SENTENCES)
        trained.train()
        assert np.array_equal(trained.encode(SENTENCES), expected)
        assert trained.training
        assert trained.backbone.lm.training

    def test_forward_has_gradients(self, tiny_llama, tmp_path):
        trained = stage(tiny_llama, tmp_path / "e", "mntp")
        vectors = trained(random_texts([3, 4]))
        assert vectors.shape == (2, 64)
        assert vectors.requires_grad

    def test_under_a_half_precision_default(self, encoder):
        expected = encoder.encode(SENTENCES)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert np.array_equal(encoder.encode(SENTENCES), expected)
        finally:
            torch.set_default_dtype(torch.float32)

    def test_a_broken_kernel_is_refused(self, tiny_llama):
        AttentionInterface.register(ATTENTION, lambda *args, causal, **kw: packed_attention(*args, causal=True, **kw))
        try:
            with pytest.raises(MaskError):
                Encoder.load(tiny_llama)
        finally:
            AttentionInterface.register(ATTENTION, packed_attention)


class TestFolder:
    def test_round_trip(self, tiny_llama, tmp_path):
        trained = stage(tiny_llama, tmp_path / "mntp", "mntp", pooling="weighted_mean", max_length=33)
        opened = Encoder.load(tmp_path / "mntp")
        assert (opened.pooling, opened.max_length, opened.backbone.attention) == ("weighted_mean", 33, "bidirectional")
        assert not opened.training
        assert close(opened.encode(SENTENCES), trained.encode(SENTENCES))
        assert not close(opened.encode(SENTENCES), Encoder.load(tiny_llama, pooling="weighted_mean").encode(SENTENCES))

    def test_settings_can_be_overridden(self, tiny_llama, tmp_path):
        stage(tiny_llama, tmp_path / "mntp", "mntp")
        opened = Encoder.load(tmp_path / "mntp", attention="causal", pooling="last_token", max_length=7)
        assert (opened.pooling, opened.max_length, opened.backbone.attention) == ("last_token", 7, "causal")

    def test_settings_are_read_from_a_folder_under_home(self, tiny_llama, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        stage(tiny_llama, tmp_path / "mntp", "mntp", pooling="last_token", max_length=33)
        opened = Encoder.load("~/mntp")
        assert (opened.pooling, opened.max_length) == ("last_token", 33)

    def test_an_untrained_encoder(self, tiny_llama, tmp_path, encoder):
        encoder.save(tmp_path / "bi", "bi")
        assert Card.read(tmp_path / "bi").lineage.adapters == ()
        assert np.array_equal(Encoder.load(tmp_path / "bi").encode(SENTENCES), encoder.encode(SENTENCES))

    def test_what_is_inside(self, tiny_llama, tmp_path):
        stage(tiny_llama, tmp_path / "mntp", "mntp")
        files = {str(path.relative_to(tmp_path / "mntp")) for path in (tmp_path / "mntp").rglob("*") if path.is_file()}
        assert {"encoder.json", f"adapters/0-mntp/{ADAPTER_WEIGHTS}", "tokenizer.json"} <= files
        assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in files)
        assert "model.safetensors" not in files
        assert list(tmp_path.iterdir()) == [tmp_path / "mntp"]  # no temporary folder is left

    def test_encoding_leaves_no_trace_in_the_tokenizer(self, tiny_llama, tmp_path):
        """`encode` cuts texts; the tokenizer's file must not keep that for other readers."""
        encoder = Encoder.load(tiny_llama, max_length=5)
        encoder.encode(SENTENCES)
        encoder.save(tmp_path / "e", "bi")
        assert json.loads((tmp_path / "e" / "tokenizer.json").read_text())["truncation"] is None

    def test_a_stage_upon_a_stage_keeps_both_adapters(self, tiny_llama, tmp_path):
        stage(tiny_llama, tmp_path / "mntp", "mntp", seed=1)
        first = Card.read(tmp_path / "mntp").lineage.adapters[0].sha256
        trained = stage(tmp_path / "mntp", tmp_path / "simcse", "simcse", seed=2)
        card = Card.read(tmp_path / "simcse")
        assert (card.stage, card.steps) == ("simcse", 2)
        assert card.lineage.base == str(tiny_llama.resolve())
        assert [adapter.name for adapter in card.lineage.adapters] == ["mntp", "simcse"]
        assert card.lineage.adapters[0].sha256 == first
        for number, adapter in enumerate(card.lineage.adapters):
            weights = tmp_path / "simcse" / "adapters" / f"{number}-{adapter.name}" / ADAPTER_WEIGHTS
            assert sha256(weights) == adapter.sha256
        vectors = trained.encode(SENTENCES)
        assert close(Encoder.load(tmp_path / "simcse").encode(SENTENCES), vectors)
        assert not close(Encoder.load(tmp_path / "mntp").encode(SENTENCES), vectors, 0.01)

    def test_an_earlier_stage_changed_meanwhile_is_not_adopted(self, tiny_llama, tmp_path):
        """What was merged at the start is what the folder must hold, not what lies there at the end."""
        stage(tiny_llama, tmp_path / "mntp", "mntp", seed=1)
        running = Encoder(load(tmp_path / "mntp", Lora(r=4)), load_tokenizer(str(tiny_llama)))
        stage(tiny_llama, tmp_path / "mntp", "mntp", seed=3)
        with pytest.raises(ValueError, match=r"adapter 'mntp' .* must have SHA-256"):
            running.save(tmp_path / "simcse", "simcse")
        assert not (tmp_path / "simcse").exists()

    def test_a_tampered_adapter_is_refused(self, tiny_llama, tmp_path):
        stage(tiny_llama, tmp_path / "mntp", "mntp")
        with (tmp_path / "mntp" / "adapters" / "0-mntp" / ADAPTER_WEIGHTS).open("r+b") as file:
            file.seek(-1, 2)
            file.write(b"\x7f")
        with pytest.raises(ValueError, match="must have SHA-256"):
            Encoder.load(tmp_path / "mntp")

    def test_an_older_folder_is_replaced(self, tiny_llama, tmp_path):
        stage(tiny_llama, tmp_path / "e", "mntp", seed=1)
        (tmp_path / "e" / "stray").touch()
        trained = stage(tiny_llama, tmp_path / "e", "mntp", seed=2)
        assert close(Encoder.load(tmp_path / "e").encode(SENTENCES), trained.encode(SENTENCES))
        assert not (tmp_path / "e" / "stray").exists()
        assert list(tmp_path.iterdir()) == [tmp_path / "e"]

    def test_saved_over_itself(self, tiny_llama, tmp_path):
        expected = stage(tiny_llama, tmp_path / "e", "mntp").encode(SENTENCES)
        opened = Encoder.load(tmp_path / "e")
        opened.save(tmp_path / "e", "mntp")
        assert close(Encoder.load(tmp_path / "e").encode(SENTENCES), expected)

    @pytest.mark.parametrize("moment", ["tokenizer", "adapter", "card", "disk"])
    def test_a_failed_write_leaves_the_old_folder(self, tiny_llama, tmp_path, monkeypatch, moment):
        expected = stage(tiny_llama, tmp_path / "e", "mntp", seed=1).encode(SENTENCES)
        target = {
            "tokenizer": "transformers.PreTrainedTokenizerBase.save_pretrained",
            "adapter": "otherside.adapters.save_file",
            "card": "otherside.lineage.Card.write",
            "disk": "otherside.files.os.fsync",
        }[moment]

        def no_space(*args, **kwargs):
            raise OSError("no space left on device")

        with monkeypatch.context() as broken, pytest.raises(OSError, match="no space left"):
            broken.setattr(target, no_space)
            stage(tiny_llama, tmp_path / "e", "mntp", seed=2)
        assert list(tmp_path.iterdir()) == [tmp_path / "e"]
        assert close(Encoder.load(tmp_path / "e").encode(SENTENCES), expected)

    def test_missing(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nothing is at"):
            Encoder.load(tmp_path / "missing")

    def test_a_new_stage_starts_from_a_folder(self, tiny_llama, tmp_path):
        trained = stage(tiny_llama, tmp_path / "mntp", "mntp")
        backbone = Backbone.load(BackboneConfig(str(tmp_path / "mntp"), dtype="float32"), Lora())
        upon = Encoder(backbone, trained.tokenizer)
        assert close(upon.encode(SENTENCES), trained.encode(SENTENCES))  # the new adapter does nothing yet


class TestLimit:
    def test_a_max_length_beyond_the_models_positions_is_refused(self, tiny_llama):
        with pytest.raises(ValueError, match=r"max_length must be at most 512 tokens, the positions.*got 513"):
            Encoder.load(tiny_llama, max_length=513)

    def test_a_base_with_fewer_positions_than_the_default(self, tiny_llama, tmp_path):
        folder = shutil.copytree(tiny_llama, tmp_path / "short")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
        encoder = Encoder.load(folder)
        assert encoder.max_length == 20
        assert encoder.encode(["word " * 100]).shape == (1, 64)


def test_a_column_of_pandas_is_read_in_its_order(tiny_llama: Path) -> None:
    encoder, texts = Encoder.load(tiny_llama), pandas.Series(["a", "b c", "d e f"]).iloc[[2, 0, 1]]
    assert np.array_equal(encoder.encode(texts), encoder.encode(["d e f", "a", "b c"]))


def test_a_length_has_room_for_text(tiny_llama: Path) -> None:
    for length in (0, 1):
        with pytest.raises(ValueError, match=f"max_length must be at least 2 tokens; got {length}"):
            Encoder.load(tiny_llama, max_length=length)


def test_inside_as_base_it_is_the_base(tiny_llama: Path) -> None:
    """Its texts' vectors and what mteb files them under, too."""
    encoder = Encoder.load(tiny_llama)
    attach(encoder.backbone.lm, Lora(r=2))
    for name, parameter in encoder.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    encoder.factors = torch.linspace(0.5, 2, 64)
    base, texts = Encoder.load(tiny_llama, attention="causal"), ["a b c", "d e"]
    trained = encoder.encode(texts)
    with encoder.backbone.as_base():
        assert np.array_equal(encoder.encode(texts), base.encode(texts))
        named = encoder.mteb_model_meta
        assert (named.name, named.revision) == (base.mteb_model_meta.name, base.mteb_model_meta.revision)
    assert np.array_equal(encoder.encode(texts), trained)
    assert encoder.mteb_model_meta.revision != base.mteb_model_meta.revision


def test_texts_may_be_named(tiny_llama) -> None:
    encoder = Encoder.load(tiny_llama)
    assert np.array_equal(encoder.encode(texts=["a b"]), encoder.encode(["a b"]))
    with pytest.raises(TypeError, match="got normalise"):
        encoder.encode(["a b"], normalise=True)


def test_save_replaces_nothing_but_an_encoder(tiny_llama, tmp_path):
    (tmp_path / "thesis.txt").write_text("three years")
    encoder = Encoder(load(tiny_llama), load_tokenizer(str(tiny_llama)))
    with pytest.raises(FileExistsError, match="folder must be new, empty or an encoder's"):
        encoder.save(tmp_path, "bi")
    assert (tmp_path / "thesis.txt").read_text() == "three years"
    encoder.save(encoder.save(tmp_path / "encoder", "bi"), "bi")


def test_a_checkpoint_that_lacks_weights(tiny_llama, tmp_path):
    """transformers fills up with random ones."""
    llama = shutil.copytree(tiny_llama, tmp_path / "llama")
    config = json.loads((llama / "config.json").read_text())
    config["num_hidden_layers"] += 1
    (llama / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks 9, as model\.layers\.\d+\.input_layernorm\.weight, "):
        Encoder.load(llama)


def test_texts_are_cut_at_their_end(tiny_llama, tmp_path):
    """Whatever the base's tokenizer says; or the instruction would go first."""
    llama = shutil.copytree(tiny_llama, tmp_path / "llama")
    file = llama / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "truncation_side": "left"}))
    texts = [" ".join(map(str, range(400)))]
    found = Encoder.load(llama, max_length=32).encode(texts, instruction=INSTRUCTION)
    file.write_text(file.read_text().replace("left", "right"))
    assert np.array_equal(found, Encoder.load(llama, max_length=32).encode(texts, instruction=INSTRUCTION))


def test_an_unknown_pooling_is_refused_at_once(tiny_llama) -> None:
    with pytest.raises(ValueError, match="pooling must be one of mean, weighted_mean, last_token; got 'cls'"):
        Encoder.load(tiny_llama, pooling="cls")


def test_a_revision_reaches_all_that_is_read(tiny_llama, monkeypatch) -> None:
    asked = []
    real_card, real_tokenizer, real_load = (encoder_module.card_of, load_tokenizer, Backbone.load)
    monkeypatch.setattr(encoder_module, "card_of", lambda m, revision: asked.append(revision) or real_card(m))
    monkeypatch.setattr(
        encoder_module, "load_tokenizer", lambda m, revision, start: asked.append(revision) or real_tokenizer(m)
    )
    monkeypatch.setattr(
        Backbone, "load", lambda config, **options: asked.append(config.revision) or real_load(config, **options)
    )
    Encoder.load(tiny_llama, revision="abc")
    assert asked == ["abc"] * 3


def test_the_type_is_fast_where_the_encoder_is(tiny_llama, monkeypatch) -> None:
    """A CPU beside a GPU may know no bfloat16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert Encoder.load(tiny_llama, dtype="auto", device="cpu").backbone.dtype == torch.float32


@pytest.mark.parametrize("special", [False, True])
def test_a_tokenizer_with_more_tokens_than_embeddings(tiny_llama, tmp_path, special) -> None:
    llama = shutil.copytree(tiny_llama, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    size = len(tokenizer)
    tokenizer.add_tokens(["<new>"], special_tokens=special)
    tokenizer.save_pretrained(llama)
    if special:  # which no text can spell
        assert Encoder.load(llama).encode(["a <new> b"]).shape == (1, 64)
        return
    with pytest.raises(ValueError, match=f"has {size + 1} tokens, the model {size} embeddings: none for '<new>'"):
        Encoder.load(llama)
