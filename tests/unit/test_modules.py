"""Encoders that others made for sentence-transformers, which runs them beside us."""

import json
import shutil
from pathlib import Path

import pytest
from exports import TEXTS, relative
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from otherside import modules, weights
from otherside.encoder import Encoder

MANY = [*TEXTS, "One long text that has to be cut. " * 30]


@pytest.fixture
def published(tiny_llama: Path, tmp_path: Path) -> Path:
    """A causal Llama that was trained to say all in the token behind a text, as Qwen3 Embedding was."""
    base = shutil.copytree(tiny_llama, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save_pretrained(base)
    return made(base, tmp_path / "published", "lasttoken")


def made(base: Path, folder: Path, pooling: str, *more: object) -> Path:
    llama = Transformer(str(base), max_seq_length=64)
    pool = Pooling(llama.get_embedding_dimension(), pooling)
    SentenceTransformer(modules=[llama, pool, *more], device="cpu").save(str(folder))
    return folder


def theirs(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu")


def test_it_is_read_and_pooled_as_it_was_made(published: Path) -> None:
    ours = Encoder.load(published)
    assert (ours.backbone.attention, ours.pooling, ours.max_length) == ("causal", "last_token", 64)
    assert relative(ours.encode(MANY), theirs(published).encode(MANY)) < 1e-5
    prompted = theirs(published).encode(TEXTS, prompt="Find this: ")
    assert relative(ours.encode(TEXTS, instruction="Find this: "), prompted) < 1e-5


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_llama_bos"])
@pytest.mark.parametrize(("pooling", "ours"), [("mean", "mean"), ("weightedmean", "weighted_mean")])
def test_by_any_pooling_that_we_have(
    pooling: str, ours: str, base: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = made(request.getfixturevalue(base), tmp_path / "published", pooling, Normalize())
    encoder = Encoder.load(folder)
    assert encoder.pooling == ours
    assert relative(encoder.encode(MANY, normalize=True), theirs(folder).encode(MANY)) < 1e-5


def test_it_can_be_told_otherwise(published: Path) -> None:
    opened = Encoder.load(published, attention="bidirectional", pooling="mean", start_token="<s>")
    assert (opened.backbone.attention, opened.pooling) == ("bidirectional", "mean")
    assert opened.tokenizer("Rain.")["input_ids"][0] == 0


def test_on_the_hub(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached = tmp_path / "hub" / "models--someone--embedder"
    shutil.copytree(published, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    modules.downloaded.cache_clear()
    card = weights.card_of("someone/embedder")
    assert (card.attention, card.pooling, card.max_length) == ("causal", "last_token", 64)
    assert card.lineage.base == "someone/embedder"
    modules.downloaded.cache_clear()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("sentence_transformers.models.Dense", "must consist of Transformer, Pooling.* has Dense"),
        ("sentence_transformers.models.Pooling", "must pool by mean, weighted_mean, last_token; .* has cls"),
    ],
)
def test_what_we_do_not_compute_is_refused(kind: str, said: str, published: Path) -> None:
    file = published / "modules.json"
    content = json.loads(file.read_text())
    (published / content[-1]["path"] / "config.json").write_text(json.dumps({"pooling_mode": "cls"}))
    content[-1]["type"] = kind
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=said):
        Encoder.load(published)
