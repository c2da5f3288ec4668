"""Generation: with adapters off it is the base's, bit for bit, through a chain of stages too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import train_a_little
from transformers import AutoModelForCausalLM

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed
from otherside.encoder import Encoder
from otherside.probing.generation import OFF, ON, PROMPT, completion, generation, read_texts, surprisals
from otherside.tokenising import tokenise
from otherside.tokenizer import load_tokenizer, start_id


@pytest.fixture(scope="module")
def chain(tiny_llama_sink: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an encoder of two stages."""
    model, folder = str(tiny_llama_sink), tmp_path_factory.mktemp("chain")
    for stage in ("mntp", "simcse"):
        tokenizer = load_tokenizer(model)
        backbone = Backbone.load(BackboneConfig(model, dtype="float32"), Lora(r=4), start=start_id(tokenizer))
        train_a_little(backbone.lm, size=0.1)
        model = str(Encoder(backbone, tokenizer, max_length=64).save(folder / stage, stage))
    return Path(model)


def scores(encoder: Encoder, texts: list[str]) -> dict[str, float]:
    return {row.input: row.score.value for row in generation(encoder, texts)}


def by_transformers(base: Path, text: str) -> float:
    """Sum of −log p by the model's own forward."""
    lm = AutoModelForCausalLM.from_pretrained(base)
    [tokens] = tokenise(load_tokenizer(str(base)), [text], 512)
    ids = torch.tensor(tokens.ids)
    with torch.no_grad():
        logits = lm(ids[None]).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()


def test_surprisals_are_those_of_the_models_own_forward(tiny_llama_sink: Path, sentences: list[str]) -> None:
    encoder = Encoder.load(tiny_llama_sink, attention="causal", max_length=64)
    found = surprisals(encoder, Packed.from_tokens(tokenise(encoder.tokenizer, sentences, 512)))
    expected = [by_transformers(tiny_llama_sink, text) for text in sentences]
    assert np.allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_off_is_the_base_bit_for_bit(tiny_llama_sink: Path, chain: Path, sentences: list[str], dtype: str) -> None:
    base = scores(Encoder.load(tiny_llama_sink, merge=False, dtype=dtype, max_length=64), sentences)  # type: ignore[arg-type]
    found = scores(Encoder.load(chain, merge=False, dtype=dtype), sentences)  # type: ignore[arg-type]
    assert base[ON] == base[OFF] == found[OFF] != found[ON]


def test_on_is_what_the_merged_model_says(chain: Path, sentences: list[str]) -> None:
    merged = Encoder.load(chain, attention="causal")
    packed = Packed.from_tokens(tokenise(merged.tokenizer, sentences, 512))
    perplexity = np.exp(surprisals(merged, packed).sum() / (packed.lengths - 1).sum().item())
    encoder = Encoder.load(chain, merge=False)
    assert scores(encoder, sentences)[ON] == pytest.approx(perplexity, rel=1e-5)
    assert encoder.backbone.attention == "bidirectional", "left as it was"


def test_the_interval_is_that_of_texts(chain: Path, sentences: list[str]) -> None:
    encoder = Encoder.load(chain, merge=False)
    with encoder.backbone.as_base():
        packed = Packed.from_tokens(tokenise(encoder.tokenizer, sentences, 512))
        sums, predicted = surprisals(encoder, packed), (packed.lengths - 1).numpy()
    times = np.random.default_rng(5).multinomial(len(sentences), [1 / len(sentences)] * len(sentences), size=4000)
    low, high = np.percentile(np.exp(times @ sums / (times @ predicted)), [2.5, 97.5])
    [row] = [row for row in generation(encoder, sentences) if row.input == OFF]
    assert (row.score.low, row.score.high) == (pytest.approx(low, rel=0.02), pytest.approx(high, rel=0.02))


def test_short_texts_and_short_models(tiny_llama: Path, sentences: list[str]) -> None:
    """A text of one token predicts none; one that is too long for the model is cut."""
    encoder = Encoder.load(tiny_llama, start_token=None, merge=False)
    alone = scores(encoder, sentences)
    assert scores(encoder, [*sentences, "a"]) == alone
    with pytest.raises(ValueError, match="two tokens or more; none has"):
        generation(encoder, ["a", "b"])
    encoder.backbone.lm.config.max_position_embeddings = 8
    assert scores(encoder, [text * 9 for text in sentences])[OFF] > 0


def test_unmerged_encodes_as_merged(chain: Path, sentences: list[str]) -> None:
    vectors = [Encoder.load(chain, merge=merge).encode(sentences, normalize=True) for merge in (True, False)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-5


def test_unmerged_is_saved_as_it_was(chain: Path, sentences: list[str], tmp_path: Path) -> None:
    encoder = Encoder.load(chain, merge=False)
    again = Encoder.load(encoder.save(tmp_path / "again", "simcse"))
    assert again.backbone.lineage.adapters[1].sha256 == encoder.backbone.lineage.adapters[1].sha256
    assert len(again.backbone.lineage.adapters) == 2
    assert np.abs(again.encode(sentences) - encoder.encode(sentences)).max() < 1e-4


def test_completions(tiny_llama_sink: Path, chain: Path) -> None:
    """Of the base: what transformers' own `generate` says."""
    encoder, text = Encoder.load(chain, merge=False), "One two three four five six seven"
    lm = AutoModelForCausalLM.from_pretrained(tiny_llama_sink)
    ids = torch.tensor(encoder.tokenizer("One two three four five six")["input_ids"])[None]
    made = lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert len(text.split()) == PROMPT + 1
    with encoder.backbone.as_base():
        assert completion(encoder, text) == encoder.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_merged_adapters_cannot_be_turned_off(chain: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"mntp, simcse is merged into them\. Open it by Encoder"),
        Encoder.load(chain).backbone.as_base(),
    ):
        pass


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    with pytest.raises(FileNotFoundError, match="--generation must be a text file"):
        read_texts(file)
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="--generation must have a text in each line"):
        read_texts(file)
    file.write_text("".join(f"text {i}\n\n" for i in range(300)))
    assert len(read_texts(file)) == 100
