import random

import pytest
from conftest import SENTENCES
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from otherside.batching import Tokens
from otherside.tokenising import tokenise


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def tokenizer_bos(tiny_llama_bos):
    return AutoTokenizer.from_pretrained(tiny_llama_bos)


def pooled(tokenizer, text: Tokens) -> str:
    """What the pooled tokens say."""
    return tokenizer.decode(text.ids[text.skip :])


def byte_level() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return raw


def sentencepiece(model: models.Model) -> Tokenizer:
    """As Llama 2's, whose merges know no words but by their first letter; or Unigram, by words."""
    raw = Tokenizer(model)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    if isinstance(model, models.Unigram):
        raw.normalizer, raw.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
    return raw


SCRIPTS = [
    "the river of  music,\n\n",
    "Größe und Maß. ",
    "река и город ",
    "今天天气很好。",
    "สวัสดีครับ",
    "नमस्ते दुनिया ",
    "🙂🙃",
    "a" * 40,
]


@pytest.mark.parametrize(
    "make",
    [
        byte_level,
        lambda: sentencepiece(models.BPE(unk_token="?", fuse_unk=True)),
        lambda: sentencepiece(models.Unigram()),
    ],
    ids=["byte-level", "sentencepiece BPE", "sentencepiece Unigram"],
)
def test_long_texts_are_cut_before_they_are_tokenised(make, monkeypatch):
    """The ids are those of the whole text."""
    raw = make()
    kind = {"BPE": trainers.BpeTrainer, "Unigram": trainers.UnigramTrainer}[type(raw.model).__name__]
    raw.train_from_iterator(
        SCRIPTS[:4] * 9,
        kind(vocab_size=120, special_tokens=["?"], show_progress=False, unk_token="?")
        if kind is trainers.UnigramTrainer
        else kind(vocab_size=120, special_tokens=["?"], show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="?", eos_token="?")
    draw = random.Random(0)
    texts = [script * 300 for script in SCRIPTS] + ["".join(draw.choices(SCRIPTS, k=400)) for _ in range(20)]
    texts += [" " * 9000 + "end", "a b " * 3000]
    for length in (5, 16, 33):
        for instruction in ("", "the river: "):
            if length > 16 or not instruction:
                found = [text.ids for text in tokenise(tokenizer, texts, length, instruction)]
                whole = tokenizer([instruction + text for text in texts], truncation=True, max_length=length)[
                    "input_ids"
                ]
                assert found == whole
    longest = []
    real = PreTrainedTokenizerFast.__call__
    monkeypatch.setattr(
        PreTrainedTokenizerFast,
        "__call__",
        lambda self, texts, **options: longest.append(max(map(len, texts))) or real(self, texts, **options),
    )
    tokenise(tokenizer, ["a b " * 30_000], 16)
    assert max(longest) < 17 * 64


class TestTokenise:
    def test_without_instruction(self, tokenizer):
        found = tokenise(tokenizer, SENTENCES, 100)
        assert [text.ids for text in found] == [tokenizer.encode(sentence) for sentence in SENTENCES]
        assert {text.skip for text in found} == {0}

    def test_cut_after_max_length(self, tokenizer):
        (text,) = tokenise(tokenizer, [SENTENCES[1]], 4)
        assert text.ids == tokenizer.encode(SENTENCES[1])[:4]

    @pytest.mark.parametrize("instruction", ["", "Say: "])
    def test_cut_as_the_tokenizer_would_and_leaves_it_as_it_was(self, tiny_llama, instruction):
        """What it keeps would be in force in another thread, too."""
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
        tokenizer.backend_tokenizer.post_processor = ends
        found = [text.ids for text in tokenise(tokenizer, SENTENCES, 12, instruction)]
        assert tokenizer.backend_tokenizer.truncation is None
        whole = [instruction + sentence for sentence in SENTENCES]
        assert found == tokenizer(whole, truncation=True, max_length=12)["input_ids"]

    @pytest.mark.parametrize("instruction", ["Retrieve: ", "Retrieve:", "Find the ", "é→ ", "Find\n"])
    def test_instruction_is_left_out_of_pooling(self, tokenizer, tokenizer_bos, instruction):
        for tok in (tokenizer, tokenizer_bos):
            for text, sentence in zip(tokenise(tok, SENTENCES, 100, instruction), SENTENCES, strict=True):
                assert tok.decode(text.ids, skip_special_tokens=True) == instruction + sentence
                assert pooled(tok, text).lstrip() == sentence

    def test_a_space_at_the_instructions_end_belongs_to_the_texts_first_token(self, tokenizer):
        """Under byte-level BPE "the " + "cat" is `the| cat`: counting the instruction's own tokens is one too many."""
        (text,) = tokenise(tokenizer, ["cat sat"], 100, "on the ")
        assert pooled(tokenizer, text) == " cat sat"
        assert text.skip == len(tokenizer.encode("on the ")) - 1

    def test_special_tokens_before_the_instruction_are_left_out(self, tokenizer_bos):
        (text,) = tokenise(tokenizer_bos, ["Rain."], 100, "Say: ")
        assert text.ids[0] == tokenizer_bos.bos_token_id
        assert "<s>" not in pooled(tokenizer_bos, text)

    def test_special_tokens_behind_the_text_do_not_move_the_border(self, tiny_llama):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        ends = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
        tokenizer.backend_tokenizer.post_processor = ends
        (text,) = tokenise(tokenizer, ["Rain."], 100, "Say:")
        assert pooled(tokenizer, text) == "Rain.</s>"

    def test_an_instruction_that_leaves_no_room_is_an_error(self, tokenizer):
        instruction = "Given a question, retrieve a passage: "
        room = len(tokenizer.encode(instruction)) - 1
        with pytest.raises(ValueError, match=rf"max_length must leave room.*max_length={room}.*Raise max_length"):
            tokenise(tokenizer, ["the other side"], room, instruction)
        assert tokenise(tokenizer, ["the other side"], room + 1, instruction)[0].skip == room

    @pytest.mark.parametrize("instruction", ["", "Say: "])
    def test_an_empty_text_has_a_token_to_pool(self, tokenizer, tokenizer_bos, instruction):
        for tok in (tokenizer, tokenizer_bos):
            (text,) = tokenise(tok, [""], 100, instruction)
            assert len(text.ids) > text.skip

    def test_an_empty_text_is_the_end_of_text_token(self, tokenizer):
        assert tokenise(tokenizer, [""], 100) == [Tokens([tokenizer.eos_token_id])]
