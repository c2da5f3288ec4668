"""What stands around texts, and how texts are cut for it."""

import pickle

import pytest
from conftest import build_tiny_llama
from transformers import PreTrainedTokenizerFast

from otherside.template import Template, set_template
from otherside.tokenising import tokenise
from otherside.tokenizer import digest


@pytest.fixture
def tokenizer(tmp_path):
    return PreTrainedTokenizerFast.from_pretrained(build_tiny_llama(tmp_path, bos=True))


def test_around():
    template = Template("<u> {instruction} {text}</u>", 400)
    assert template.around() == ("<u> ", "</u>")
    assert template.around(" Find: \n") == ("<u> Find: ", "</u>")


def test_long_texts_lose_words(tokenizer):
    template = Template("{instruction} {text}", 20)
    words = ("the other side " * 40).split()
    found = template.shortened(tokenizer, " ".join(words), 512)
    assert found.split() == words[: len(found.split())]
    assert 15 < len(tokenizer(found, add_special_tokens=False).input_ids) <= 20
    assert template.shortened(tokenizer, "x" * 100, 512) == "x" * 100  # one word, to be cut by tokens
    assert template.shortened(tokenizer, "  the \n side ", 512) == "  the \n side "


def test_tokens(tokenizer):
    set_template(tokenizer, Template("[INST] {instruction} {text} [/INST]", 400))
    [found] = tokenise(tokenizer, ["the street "], 512, "Find:")
    assert tokenizer.decode(found.ids) == "<s>[INST] Find: the street [/INST]"
    assert tokenizer.decode(found.ids[: found.skip]) == "<s>[INST] Find:"
    [plain] = tokenise(tokenizer, ["the street "], 512, in_template=False)
    assert tokenizer.decode(plain.ids) == "<s>the street "
    with pytest.raises(ValueError, match="must leave room"):
        tokenise(tokenizer, ["the street"], 4)


def test_tokenizers_that_differ_in_it_are_told_apart(tokenizer):
    before = digest(tokenizer)
    set_template(tokenizer, Template("{instruction} {text}", 400))
    assert digest(tokenizer) != before
    assert digest(pickle.loads(pickle.dumps(tokenizer))) == digest(tokenizer)
    set_template(tokenizer, None)
    assert digest(tokenizer) == before
