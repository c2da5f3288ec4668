import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentence_transformers
import torch
from conftest import SENTENCES, add_sink, build_tiny_llama
from tiny import SMOLLM2, distance
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed
from otherside.encoder import Encoder
from otherside.export import export
from otherside.lineage import AUTO, CARD, SINK, Card, Lineage
from otherside.sink import Sink, find
from otherside.tokenising import tokenise
from otherside.tokenizer import load_tokenizer

START = 0


def states_of_start(base: Path) -> list[torch.Tensor]:
    """Hidden states of a text that is only the start token, in transformers' own model."""
    model = AutoModel.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        found: Any = model(torch.tensor([[START]]), output_hidden_states=True).hidden_states
    return [state[0, 0] for state in found]


def packed(base: Path) -> Packed:
    return Packed.from_tokens(tokenise(load_tokenizer(str(base)), SENTENCES, 64))


def load(base: Path, start: int | None = START, **options: Any) -> Backbone:
    config = BackboneConfig(str(base), dtype="float32", **options)
    return Backbone.load(config, start=start).eval()


def trained(base: Path, folder: Path, **options: Any) -> str:
    """An encoder folder whose adapter is random."""
    backbone = Backbone.load(BackboneConfig(str(base), dtype="float32", **options), Lora(r=4), start=START)
    torch.manual_seed(1)
    for name, parameter in backbone.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return str(Encoder(backbone, load_tokenizer(str(base)), max_length=64).save(folder, "mntp"))


class TestFind:
    def test_the_state_before_it_grows(self, tiny_llama_sink: Path) -> None:
        states = states_of_start(tiny_llama_sink)
        assert states[2].norm() > 4 * states[1].norm(), "the tiny Llama must have a sink in its second layer"
        found = find(Lineage(str(tiny_llama_sink)), START)
        assert found is not None and found.token == START
        assert torch.allclose(found.state, states[1], atol=1e-5)

    def test_on_the_cpu_whatever_device_tensors_are_made_on(self, tiny_llama_sink: Path) -> None:
        expected = find(Lineage(str(tiny_llama_sink)), START)
        with torch.device("meta"):  # as Lightning has a GPU around `configure_model`
            found = find(Lineage(str(tiny_llama_sink)), START)
        assert found is not None and expected is not None and torch.equal(found.state, expected.state)

    def test_without_a_sink_there_is_none(self, tiny_llama: Path) -> None:
        assert find(Lineage(str(tiny_llama)), START) is None

    def test_of_a_model_whose_attention_is_open_there_is_none(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        model = AutoModel.from_pretrained(tiny_llama_sink)
        model.config.is_causal = False
        model.save_pretrained(tmp_path)
        assert find(Lineage(str(tmp_path)), START) is None

    @pytest.mark.parametrize(("family", "scale"), [("llama", 1.0), ("qwen3", 1.0), ("mistral", 1.0), ("granite", 12.0)])
    def test_in_the_first_layers_of_other_families(self, family: str, scale: float, tmp_path: Path) -> None:
        """Of more layers than are read, some with a list of kinds of layers, or with embeddings that are multiplied."""
        sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 10}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "initializer_range": 0.2}
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes, **heads, sliding_window=None)
        if family == "granite":
            config.embedding_multiplier = scale
        model = AutoModelForCausalLM.from_config(config)
        add_sink(model.model)
        model.save_pretrained(tmp_path)
        found, states = find(Lineage(str(tmp_path)), START), states_of_start(tmp_path)
        assert found is not None
        assert torch.allclose(scale * found.state, states[1], atol=1e-4)

    def test_says_nothing_of_the_layers_left_out(self, capfd: pytest.CaptureFixture[str]) -> None:
        found = find(Lineage(SMOLLM2), START)
        assert found is not None and 60 < found.state.norm() < 90
        assert capfd.readouterr() == ("", "")


class TestInTheModel:
    def test_it_is_an_embedding(self, tiny_llama_sink: Path) -> None:
        backbone, plain = load(tiny_llama_sink), load(tiny_llama_sink, keep_sink=False)
        texts = packed(tiny_llama_sink)
        with torch.no_grad():
            found, without = backbone(texts), plain(texts)
            plain.lm.get_input_embeddings().weight[START] = states_of_start(tiny_llama_sink)[1]
            expected = plain(texts)
        assert distance(found, expected) < 1e-5
        assert distance(found, without) > 0.01

    def test_causal_attention_knows_nothing_of_it(self, tiny_llama_sink: Path) -> None:
        texts = packed(tiny_llama_sink)
        kept, plain = (load(tiny_llama_sink, attention="causal", keep_sink=keep) for keep in (True, False))
        with torch.no_grad():
            assert torch.equal(kept(texts), plain(texts))

    def test_texts_in_a_pack_are_as_alone(self, tiny_llama_sink: Path) -> None:
        backbone, texts = load(tiny_llama_sink), packed(tiny_llama_sink)
        backbone.self_test()
        with torch.no_grad():
            alone = [backbone(texts.select(torch.tensor([i]))) for i in range(len(texts))]
            assert distance(backbone(texts), torch.cat(alone)) < 1e-5

    @pytest.mark.parametrize("place", [None, 0, 1, 4, 7, 8, 12])
    def test_the_self_test_may_read_the_start_token(self, tiny_llama_sink: Path, place: int | None) -> None:
        """Its text is eight tokens from the middle of the vocabulary, of which one is changed to the fifth behind."""
        plain = load(tiny_llama_sink)
        token = 0 if place is None else plain.lm.config.vocab_size // 2 + place
        Backbone(plain.lm, plain.lineage, sink=Sink(token, 20 * torch.randn(64))).self_test()

    def test_logits_are_those_of_the_models_own_head(self, tiny_llama_sink: Path) -> None:
        states = torch.randn(3, 64)
        kept, plain = (load(tiny_llama_sink, keep_sink=keep) for keep in (True, False))
        assert torch.equal(kept.logits(states), plain.logits(states))

    def test_without_a_start_token_there_is_none(self, tiny_llama_sink: Path) -> None:
        assert load(tiny_llama_sink, start=None).sink is None

    def test_nothing_can_be_kept_of_no_token(self, tiny_llama_sink: Path) -> None:
        with pytest.raises(ValueError, match=r"backbone.keep_sink needs a start token"):
            BackboneConfig(str(tiny_llama_sink), start_token=None, keep_sink=True)
        encoder = Encoder.load(tiny_llama_sink, start_token=None, max_length=64)
        assert encoder.backbone.sink is None

    def test_attention_rests_on_the_start_token_again(self) -> None:
        """In SmolLM2 its state grows in the third layer, if it sees nothing else, or if its sink is kept."""
        texts = Packed.from_tokens(tokenise(load_tokenizer(SMOLLM2), ["Rain fell all night on the roofs."], 64))
        norms = {}
        for attention, keep in (("causal", False), ("bidirectional", False), ("bidirectional", True)):
            config = BackboneConfig(SMOLLM2, dtype="float32", attention=attention, keep_sink=keep)  # type: ignore[arg-type]
            with torch.no_grad():
                norms[attention, keep] = Backbone.load(config, start=START).hidden_states(texts)[3][0].norm().item()
        assert norms["causal", False] > 800
        assert norms["bidirectional", False] < 200
        assert norms["bidirectional", True] > 800


class TestInAFolder:
    def test_is_kept_with_the_encoder(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "encoder")
        card = Card.read(Path(folder))
        assert card.sink not in (None, AUTO)
        encoder = Encoder.load(folder)
        assert encoder.backbone.sink is not None
        assert torch.equal(encoder.backbone.sink.state, find(Lineage(str(tiny_llama_sink)), START).state)  # type: ignore[union-attr]
        again = Encoder.load(encoder.save(tmp_path / "again", "same"))
        assert np.array_equal(again.encode(SENTENCES), encoder.encode(SENTENCES))

    def test_a_later_stage_reads_it_and_does_not_look_again(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "mntp")
        config = BackboneConfig(folder, dtype="float32")
        backbone = Backbone.load(config, Lora(r=4), start=START)
        merged = Encoder(backbone, load_tokenizer(folder), max_length=64).save(tmp_path / "simcse", "simcse")
        assert (merged / SINK).read_bytes() == (Path(folder) / SINK).read_bytes()

    def test_without_is_a_setting_that_is_kept_too(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "encoder", keep_sink=False)
        assert not (Path(folder) / SINK).exists()
        assert Encoder.load(folder).backbone.sink is None
        assert Encoder.load(folder, keep_sink=True).backbone.sink is not None

    def test_of_another_start_token_is_found_in_the_base(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "encoder")
        assert Encoder.load(folder, start_token="</s>").backbone.sink is None  # which does not grow

    @pytest.mark.parametrize("version", [1, 2])
    def test_older_folders_have_none(self, tiny_llama_sink: Path, tmp_path: Path, version: int) -> None:
        folder = Path(trained(tiny_llama_sink, tmp_path / "encoder", keep_sink=False))
        expected = Encoder.load(folder).encode(SENTENCES)
        card = json.loads((folder / CARD).read_text())
        left_out = {1: ("sink", "start_token", "pool_start"), 2: ("sink",)}[version]
        card = {name: value for name, value in card.items() if name not in left_out}
        (folder / CARD).write_text(json.dumps({**card, "format": version}))
        encoder = Encoder.load(folder)
        assert encoder.backbone.sink is None
        assert np.array_equal(encoder.encode(SENTENCES), expected)

    def test_another_one_is_refused(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = Path(trained(tiny_llama_sink, tmp_path / "encoder"))
        other = Path(trained(build_tiny_llama(tmp_path / "base", bos=True, sink=True), tmp_path / "other"))
        (folder / SINK).write_bytes((other / SINK).read_bytes()[:-1] + b"?")
        with pytest.raises(ValueError, match=r"sink.safetensors must have SHA-256"):
            Encoder.load(folder)
        (folder / SINK).unlink()
        with pytest.raises(FileNotFoundError, match=r"must be at .*sink.safetensors"):
            Encoder.load(folder)


class TestExported:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_sentence_transformers_gives_the_same_vectors(
        self, tiny_llama_sink: Path, tmp_path: Path, dtype: Any
    ) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "encoder")
        export(folder, tmp_path / "out", dtype=dtype)  # compares
        model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
        found, expected = model.encode(SENTENCES), Encoder.load(folder).encode(SENTENCES)
        tolerance = 1e-5 if dtype == "float32" else 0.1
        assert (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max() < tolerance

    def test_merged_weights_keep_the_head_and_are_opened_again(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = trained(tiny_llama_sink, tmp_path / "encoder")
        export(folder, tmp_path / "out", kind="merged")
        head = AutoModelForCausalLM.from_pretrained(tmp_path / "out").get_output_embeddings().weight
        assert torch.equal(head, Encoder.load(folder).backbone.lm.get_output_embeddings().weight)
        again = Encoder.load(tmp_path / "out", max_length=64)
        expected = Encoder.load(folder).encode(SENTENCES)
        assert distance(torch.tensor(again.encode(SENTENCES)), torch.tensor(expected)) < 1e-5
