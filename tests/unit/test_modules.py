"""Encoders that others made for sentence-transformers, which runs them beside us."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from exports import TEXTS, relative
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer, WordWeights
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertConfig, BertModel

from otherside import modules, weights
from otherside.encoder import Encoder
from otherside.export import export
from otherside.probing.variants import find_variants

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


def test_it_is_exported_to_what_reads_texts_alike(published: Path, tmp_path: Path) -> None:
    export(str(published), tmp_path / "out")
    assert relative(theirs(tmp_path / "out").encode(MANY), theirs(published).encode(MANY)) < 1e-5
    for kind in ("onnx", "gguf"):
        with pytest.raises(ValueError, match=f"{kind} must read texts as .* Use --kind=sentence-transformers"):
            export(str(published), tmp_path / kind, kind=kind)


def test_it_is_a_row_of_its_own_in_a_comparison(published: Path, tiny_llama: Path) -> None:
    rows = find_variants([str(published), str(tiny_llama)], baselines=True)
    assert [row.name for row in rows] == ["uni", "bi", "published"]
    assert relative(rows[-1].open("float32", "cpu").encode(TEXTS), theirs(published).encode(TEXTS)) < 1e-5


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


def test_without_a_length_it_reads_all_that_the_model_can(published: Path) -> None:
    for length in (10**30, None, 300):
        edit(published / "tokenizer_config.json", model_max_length=length)
        edit(published / "config.json", max_position_embeddings=4096)
        ours = Encoder.load(published)
        assert ours.max_length == theirs(published).max_seq_length == min(length or 4096, 4096)
        assert modules.settings(published)["max_length"] == ours.max_length  # a stage upon it takes that
        assert relative(ours.encode([MANY[-1] * 2]), theirs(published).encode([MANY[-1] * 2])) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_with_open_attention_and_its_start_token_as_trained(
    pooling: str, tiny_llama_sink: Path, tmp_path: Path
) -> None:
    folder = made(tiny_llama_sink, tmp_path / "published", pooling)
    edit(folder / "config.json", is_causal=False)
    ours = Encoder.load(folder)
    assert (ours.backbone.attention, ours.backbone.sink) == ("bidirectional", None)
    assert relative(ours.encode(MANY), theirs(folder).encode(MANY)) < 1e-5


def test_older_files(published: Path) -> None:
    content = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}
    (published / "1_Pooling" / "config.json").write_text(json.dumps(content))
    (published / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 32, "do_lower_case": False}))
    (published / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "Find: "}}))
    edit(published / "tokenizer_config.json", model_max_length=None)
    assert Encoder.load(published).max_length == 32
    assert relative(Encoder.load(published).encode(MANY), theirs(published).encode(MANY)) < 1e-5


def test_newer_words_win(published: Path) -> None:
    edit(published / "1_Pooling" / "config.json", pooling_mode="mean", pooling_mode_lasttoken=True)
    assert relative(Encoder.load(published).encode(MANY), theirs(published).encode(MANY)) < 1e-5


def test_a_folder_of_transformers_says_its_attention_alone(tiny_llama: Path, tmp_path: Path) -> None:
    """As our merged exports do."""
    folder = shutil.copytree(tiny_llama, tmp_path / "merged")
    for causal, attention in ((True, "causal"), (False, "bidirectional")):
        edit(folder / "config.json", is_causal=causal)
        assert modules.settings(folder) == {"attention": attention}


def edit(file: Path, **more: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def renamed(number: int, name: str) -> Callable[[Path], None]:
    """With another type of module."""

    def change(folder: Path) -> None:
        content = json.loads((folder / "modules.json").read_text())
        content[number]["type"] = name
        (folder / "modules.json").write_text(json.dumps(content))

    return change


def edited(file: str, **more: object) -> Callable[[Path], None]:
    return lambda folder: edit(folder / file, **more)


def older(**flags: bool) -> Callable[[Path], None]:
    return lambda folder: (folder / "1_Pooling" / "config.json").write_text(json.dumps(flags)) and None


REFUSED = {
    "another module": (renamed(1, "sentence_transformers.models.Dense"), "must consist of Transformer, .* has Dense"),
    "its own module": (
        renamed(0, "custom_st.Transformer"),
        "must consist of Transformer, .* has custom_st.Transformer",
    ),
    "no pooling": (renamed(1, "sentence_transformers.models.Normalize"), "must pool by mean, .* has no pooling"),
    "no flag": (older(pooling_mode_mean_tokens=False), "has no pooling"),
    "cls": (edited("1_Pooling/config.json", pooling_mode="cls"), "mean, weighted_mean, last_token; .* has cls"),
    "two": (edited("1_Pooling/config.json", pooling_mode=["mean", "lasttoken"]), "has mean and lasttoken"),
    "two flags": (
        older(pooling_mode_cls_token=True, pooling_mode_mean_tokens=True),
        "has pooling_mode_cls_token and pooling_mode_mean_tokens",
    ),
    "its own model": (
        edited("config.json", auto_map={"AutoModel": "modeling.Model"}),
        "must have no code of its own.* has auto_map of AutoModel",
    ),
    "its own tokenizer": (
        edited("tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization.T", "tokenization.Fast"]}),
        "has auto_map of AutoTokenizer",
    ),
    "lower case": (edited("sentence_bert_config.json", do_lower_case=True), "must read texts as .* has do_lower_case"),
    **{
        name: (edited("sentence_bert_config.json", **{name: {"a": 1}}), f"must read texts as .* has {name}")
        for name in modules.UNREAD[1:]
    },
    "beginnings are cut": (
        edited("tokenizer_config.json", truncation_side="left"),
        "must cut texts at their end; .* has truncation_side: left",
    ),
    "cut vectors": (edited("config_sentence_transformers.json", truncate_dim=16), "whole vectors .*truncate_dim: 16"),
    "a prompt": (
        edited("config_sentence_transformers.json", prompts={"query": "Find: "}, default_prompt_name="query"),
        "texts as they are; .* has default_prompt_name: query",
    ),
    "no JSON": (lambda folder: (folder / "modules.json").write_text("["), "modules.json must be JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_we_do_not_compute_is_refused(what: str, published: Path) -> None:
    change, said = REFUSED[what]
    change(published)
    with pytest.raises(ValueError, match=said):
        Encoder.load(published)


def test_a_bert_is_refused_before_it_is_loaded(published: Path) -> None:
    config = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    BertModel(config).save_pretrained(published)
    with pytest.raises(ValueError, match=r"must be a decoder of texts.* a bert is an encoder, bidirectional"):
        Encoder.load(published)


def test_modules_must_be_a_list(published: Path) -> None:
    (published / "modules.json").write_text('{"0": "Transformer"}')
    with pytest.raises(ValueError, match=r"modules.json must be a list of modules; got \{'0': 'Transformer'\}"):
        Encoder.load(published)


def test_weights_of_words_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    vocabulary = AutoTokenizer.from_pretrained(tiny_llama).get_vocab()
    words = sorted(vocabulary, key=vocabulary.__getitem__)
    for number, weights_of in enumerate((WordWeights(words, {"a": 5.0}), WordWeights(words, {}, 0.5))):
        llama = Transformer(str(tiny_llama))
        folder = tmp_path / str(number)
        pool = Pooling(llama.get_embedding_dimension(), "mean")
        SentenceTransformer(modules=[llama, weights_of, pool], device="cpu").save(str(folder))
        with pytest.raises(ValueError, match=r"must give tokens a weight of 1, or none; .* has WordWeights of words"):
            Encoder.load(folder)


def test_normalised_tokens_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    llama, tokens = Transformer(str(tiny_llama)), Normalize("token_embeddings")
    pool = Pooling(llama.get_embedding_dimension(), "mean")
    SentenceTransformer(modules=[llama, tokens, pool], device="cpu").save(str(tmp_path / "published"))
    with pytest.raises(ValueError, match="must normalise no tokens"):
        Encoder.load(tmp_path / "published")


def test_texts_in_a_chat_template_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    """Which sentence-transformers 6 puts around them where an encoder is made from a model that has one."""
    base = shutil.copytree(tiny_llama, tmp_path / "llama")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for message in messages %}Q: {{ message['content'] }} A: {% endfor %}"
    tokenizer.save_pretrained(base)
    folder = made(base, tmp_path / "published", "mean")
    with pytest.raises(ValueError, match=r"must read texts as they stand; .* has a chat template around them"):
        Encoder.load(folder)


@pytest.mark.parametrize("said", [None, 1e30, 32, 100_000])
def test_texts_are_cut_where_it_cuts_them(said: float | None, published: Path) -> None:
    edit(published / modules.READING, max_seq_length=None)
    edit(published / modules.TOKENIZER, model_max_length=said)
    edit(published / modules.CONFIG, max_position_embeddings=600)
    ours, other = Encoder.load(published), theirs(published)
    assert ours.max_length == other.max_seq_length
    texts = ["One long text that has to be cut. " * 200]
    assert relative(ours.encode(texts), other.encode(texts)) < 1e-5


def test_a_prompt_by_default_that_is_empty_is_none(published: Path) -> None:
    for prompts in ({"query": "Find: ", "document": ""}, None):
        edit(published / "config_sentence_transformers.json", prompts=prompts, default_prompt_name="document")
        assert modules.settings(published)["pooling"] == "last_token"
