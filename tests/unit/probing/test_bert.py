"""A BERT of transformers as a row beside ours."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SENTENCES
from probing_data import word_vectors

from otherside.probing.bert import is_bert, load_bert
from otherside.probing.tasks import word_spans
from otherside.probing.variants import find_variants


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer BERT with a WordPiece tokenizer, as `bert-base-uncased` has."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "tiny-bert"
    raw = BertWordPieceTokenizer()
    raw.train_from_iterator(SENTENCES, vocab_size=120, show_progress=False)
    folder.mkdir()
    raw.save_model(str(folder))
    tokenizer = BertTokenizerFast.from_pretrained(folder, model_max_length=64)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_word_vectors_are_those_of_transformers(bert: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = load_bert(str(bert), "float32").eval()
    model, tokenizer = AutoModel.from_pretrained(bert).eval(), AutoTokenizer.from_pretrained(bert)
    spans = [word_spans(text) for text in SENTENCES]
    for layer in (0, 2):
        for text, words, vectors in zip(
            SENTENCES, spans, word_vectors(encoder, SENTENCES, spans, layer=layer), strict=True
        ):
            encoded = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
            offsets = encoded.pop("offset_mapping")[0].tolist()
            with torch.no_grad():
                states = model(**encoded, output_hidden_states=True).hidden_states[layer][0]
            for (start, end), vector in zip(words, vectors, strict=True):
                own = [i for i, (a, b) in enumerate(offsets) if a >= start and b <= end and b > a]
                np.testing.assert_allclose(vector, states[own].mean(0).numpy(), atol=1e-5)


def test_texts_do_not_depend_on_their_batch(bert: Path) -> None:
    encoder = load_bert(str(bert), "float32")
    together = encoder.encode(SENTENCES)
    for text, vector in zip(SENTENCES, together, strict=True):
        np.testing.assert_allclose(encoder.encode([text])[0], vector, atol=1e-5)


def test_a_row_of_its_own(bert: Path, tiny_llama: Path) -> None:
    assert is_bert(str(bert)) and not is_bert(str(tiny_llama))
    names = [variant.name for variant in find_variants([str(bert), str(tiny_llama)], baselines=True)]
    assert names == ["uni", "bi", "tiny-bert"]
    [alone] = find_variants([str(bert)], baselines=True)
    assert alone.settings()["fingerprint"] and alone.settings()["attention"] == "bidirectional"


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_one_for_sentence_transformers_is_a_bert_all_the_same(bert: Path, tmp_path: Path, pooling: str) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    model = Transformer(str(bert))
    pool = Pooling(model.get_embedding_dimension(), pooling)
    SentenceTransformer(modules=[model, pool], device="cpu").save(str(tmp_path / "minilm"))
    [row] = find_variants([str(tmp_path / "minilm")], baselines=True)
    assert (row.name, row.kind) == ("minilm", "bert")
    vectors = [encoder.encode(SENTENCES) for encoder in (row.open("float32", "cpu"), load_bert(str(bert), "float32"))]
    np.testing.assert_array_equal(*vectors)


def test_a_roberta_has_fewer_positions_than_its_config_says(bert: Path, tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    roberta = shutil.copytree(bert, tmp_path / "roberta")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    RobertaModel(RobertaConfig(vocab_size=120, max_position_embeddings=16, **sizes)).save_pretrained(roberta)
    encoder = load_bert(str(roberta), "float32")
    text = " ".join(["a"] * 12)  # and two special tokens
    assert encoder.max_length == 14
    assert encoder.encode([text * 2]).shape == encoder.word_vectors([text], [[(0, 1)]])[0].shape == (1, 32)
    with pytest.raises(ValueError, match=r"the model's 14 positions; .* has 15 tokens"):
        encoder.word_vectors([f"{text} a"], [[(0, 1)]])


def test_pickled_weights_are_refused(bert: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(bert, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="weights in safetensors"):
        load_bert(str(pickled), "float32")
    with pytest.raises(FileNotFoundError, match="transformers knows without code"):
        (pickled / "config.json").write_text('{"model_type": "their-own", "auto_map": {"AutoConfig": "a.B"}}')
        is_bert(str(pickled))
