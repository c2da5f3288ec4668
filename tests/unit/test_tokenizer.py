"""The start token: there exactly once, whatever the tokenizer does by itself, in texts of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import SENTENCES
from tokenizers import Tokenizer, models, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, LlamaConfig, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from otherside import mntp
from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder
from otherside.lineage import CARD
from otherside.mntp import Masking
from otherside.pooling import weights
from otherside.tokenising import tokenise
from otherside.tokenizer import (
    check_fits,
    default_start,
    digest,
    load_tokenizer,
    set_start,
    special_ids,
    start_id,
    start_name,
)

BYTES = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
PIECES = {letter: i + 3 for i, letter in enumerate(sorted({"▁", *"".join(SENTENCES), *"<|>_/0x"}))}
SPECIAL = {"<unk>": 0, "<s>": 1, "</s>": 2}


def byte_level(*special: str, template: str | None = None, **names: str) -> PreTrainedTokenizerFast:
    """As Llama 3, SmolLM2 and Qwen have it."""
    raw = Tokenizer(models.BPE(vocab=BYTES, merges=[]))
    raw.pre_tokenizer = ByteLevel(add_prefix_space=False)
    raw.add_special_tokens(list(special))
    steps = [processors.ByteLevel(trim_offsets=True)]
    if template:
        known = [(token, raw.token_to_id(token)) for token in special if token in template]
        steps.append(processors.TemplateProcessing(single=template, pair=f"{template} $B", special_tokens=known))
    raw.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def llama_2(add_bos: bool = True) -> PreTrainedTokenizerFast:
    """Pieces with a `▁` for the space, `<s>` by template."""
    raw = Tokenizer(models.BPE(vocab=SPECIAL | PIECES, merges=[], unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_special_tokens(list(SPECIAL))
    if add_bos:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TEXT, END = "<|begin_of_text|>", "<|end_of_text|>"
FAMILIES: dict[str, tuple[Callable[[], PreTrainedTokenizerFast], str]] = {  # and what `auto` means for it
    "Llama 2": (llama_2, "<s>"),
    "Llama 2, BOS off": (lambda: llama_2(add_bos=False), "<s>"),
    "Llama 3": (lambda: byte_level(TEXT, END, template=f"{TEXT} $A", bos_token=TEXT, eos_token=END), TEXT),
    "SmolLM2": (
        lambda: byte_level(
            "<|endoftext|>", "<|im_start|>", "<|im_end|>", bos_token="<|im_start|>", eos_token="<|im_end|>"
        ),
        "<|endoftext|>",
    ),
    "Qwen": (lambda: Qwen2Tokenizer(vocab=BYTES | {"<|endoftext|>": 256}, merges=[]), "<|endoftext|>"),
    "Qwen, with EOS": (
        lambda: byte_level("<|endoftext|>", template="$A <|endoftext|>", eos_token="<|endoftext|>"),
        "<|endoftext|>",
    ),
    "Mistral": (lambda: LlamaTokenizer(vocab=SPECIAL | PIECES, merges=[]), "<s>"),
    "Llama 2, with EOS": (lambda: LlamaTokenizer(vocab=SPECIAL | PIECES, merges=[], add_eos_token=True), "<s>"),
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    """A base model's folder as far as tokenizers are concerned, and its start token."""
    build, start = FAMILIES[request.param]
    build().save_pretrained(tmp_path)
    LlamaConfig().save_pretrained(tmp_path)
    return tmp_path, start


def adds_eos(folder: Path) -> bool:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer("a")["input_ids"][-1] in tokenizer.all_special_ids


def test_once_before_every_text(family: tuple[Path, str]) -> None:
    folder, start = family
    tokenizer = load_tokenizer(str(folder))
    assert start_name(tokenizer) == start
    eos = 1 if adds_eos(folder) else 0
    for text, tokens in zip(SENTENCES, tokenise(tokenizer, SENTENCES, 512), strict=True):
        first = start_id(tokenizer)
        body = tokens.ids[1 : len(tokens.ids) - eos]
        assert tokens.ids[0] == first
        assert not {first, *tokenizer.all_special_ids} & set(body)
        assert (tokens.start, tokens.skip) == (1, 1)
        assert body == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_before_the_instruction_and_not_cut_off(family: tuple[Path, str]) -> None:
    folder, _ = family
    tokenizer = load_tokenizer(str(folder))
    [plain] = tokenise(tokenizer, ["a dog"], 512)
    [asked] = tokenise(tokenizer, ["a dog"], 512, "Find:")
    [cut] = tokenise(tokenizer, [SENTENCES[1] * 9], 8)
    assert asked.ids[0] == cut.ids[0] == start_id(tokenizer)
    assert asked.ids.count(asked.ids[0]) == plain.ids.count(plain.ids[0])
    assert len(cut.ids) == 8
    assert asked.skip > asked.start == 1


@pytest.mark.parametrize("pool_start", [True, False])
def test_queries_with_an_instruction_and_documents_without_are_pooled_alike(
    family: tuple[Path, str], pool_start: bool
) -> None:
    folder, _ = family
    tokenizer = load_tokenizer(str(folder))
    plain, asked = tokenise(tokenizer, ["dogs"], 512)[0], tokenise(tokenizer, ["dogs"], 512, "Find:\n")[0]
    shares = [weights(Packed.from_tokens([text]), "mean", pool_start) for text in (plain, asked)]
    assert (shares[0][0] > 0) == (shares[1][0] > 0) == pool_start
    assert not shares[1][1 : asked.skip].any()
    pooled = [sorted(share[share > 0].tolist()) for share in shares]
    if len(plain.ids) - plain.skip == len(asked.ids) - asked.skip:  # else the line break made another first token
        assert pooled[0] == pooled[1]


def test_its_spelling_in_a_text_is_text(family: tuple[Path, str]) -> None:
    folder, start = family
    tokenizer = load_tokenizer(str(folder))
    [tokens] = tokenise(tokenizer, [f"a{start}b</s>"], 512)
    special = set(special_ids(tokenizer))
    assert not special & set(tokens.ids[1 : len(tokens.ids) - (1 if adds_eos(folder) else 0)]) - {0}  # 0: <unk>
    with pytest.raises(ValueError, match=r"instruction must be text; .* spells the special token"):
        tokenise(tokenizer, ["a"], 512, f"{start} Find:")


def test_by_name_and_none(family: tuple[Path, str]) -> None:
    folder, start = family
    ends = 1 if adds_eos(folder) else 0
    bare = AutoTokenizer.from_pretrained(folder)("a dog", add_special_tokens=False)["input_ids"]
    other = next(
        token
        for token in ("</s>", "<|im_start|>", END, "<|endoftext|>")
        if token in load_tokenizer(str(folder)).get_vocab()
    )
    for name in (None, other, start):
        tokenizer = load_tokenizer(str(folder), start_token=name)
        ids = tokenizer("a dog")["input_ids"]
        begin = [] if name is None else [tokenizer.convert_tokens_to_ids(name)]
        assert ids[: len(ids) - ends] == begin + bare
        assert start_name(tokenizer) == name
    with pytest.raises(
        ValueError, match=r"backbone.start_token must be auto, null or a token of the vocabulary.*'<no>'"
    ):
        load_tokenizer(str(folder), start_token="<no>")


def test_saved_with_the_tokenizer(family: tuple[Path, str], tmp_path: Path) -> None:
    """What opens the folder later need not know of start tokens."""
    folder, _ = family
    tokenizer = load_tokenizer(str(folder))
    tokenizer.save_pretrained(tmp_path / "saved")
    LlamaConfig().save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    texts = [*SENTENCES, "<s> a <|endoftext|></s>"]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]


def test_set_twice_changes_nothing(family: tuple[Path, str]) -> None:
    tokenizer = load_tokenizer(str(family[0]))
    before = tokenizer.backend_tokenizer.to_str()
    set_start(tokenizer, default_start(tokenizer))
    assert tokenizer.backend_tokenizer.to_str() == before


def test_added_words_are_text() -> None:
    tokenizer = byte_level("<|endoftext|>", eos_token="<|endoftext|>")
    tokenizer.add_tokens(["otherside"])
    assert special_ids(tokenizer) == [tokenizer.eos_token_id]


def test_a_digest_tells_apart_what_reads_texts_otherwise(family: tuple[Path, str]) -> None:
    """Blocks are kept by it, and a run compares it."""
    folder, start = family
    plain = AutoTokenizer.from_pretrained(folder)
    found = {digest(load_tokenizer(str(folder), start_token=name)) for name in (None, start)} | {digest(plain)}
    assert len(found) == 3, "a spelled special token is one token to the plain one"
    used = load_tokenizer(str(folder), start_token=start)
    used(SENTENCES, truncation=True, max_length=3)
    assert digest(used) in found


def test_masks_never_touch_it(family: tuple[Path, str]) -> None:
    tokenizer = load_tokenizer(str(family[0]))
    texts = tokenise(tokenizer, SENTENCES, 512)
    joined = Tokens(texts[0].ids + texts[1].ids, 1, 1)  # as in a block: a start token in the middle
    packed = Packed.from_tokens([*texts, joined])
    masking, special = Masking(0.9, "all", "_"), special_ids(tokenizer)
    hidden, labels = mntp.mask(packed, torch.arange(len(packed)), masking, masking.token_id(tokenizer), 100, 0, special)
    started = torch.isin(packed.input_ids, torch.tensor(special))
    assert started.sum() > len(SENTENCES)
    assert (labels[started] == -100).all()
    assert torch.equal(hidden.input_ids[started], packed.input_ids[started])
    assert (labels[packed.borders[:-1] + 1] != -100).any(), "the first word can be hidden: the start token precedes it"


class TestBase:
    def test_it_is_cut_at_the_end_whatever_it_says(self, tiny_llama: Path, tmp_path: Path) -> None:
        """By who opens it after us, too."""
        folder = shutil.copytree(tiny_llama, tmp_path / "base")
        content = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**content, "truncation_side": "left"}))
        tokenizer = load_tokenizer(str(folder))
        read = tokenizer("Rain and snow.", truncation=True, max_length=3)["input_ids"]
        assert read == tokenizer("Rain and snow.")["input_ids"][:3]

    def test_its_digest_is_the_same_whatever_it_was_used_for(self, tiny_llama: Path) -> None:
        tokenizer = load_tokenizer(str(tiny_llama))
        before = digest(tokenizer)
        tokenizer(["Rain.", "Snow fell."], truncation=True, max_length=3, padding=True)
        assert digest(tokenizer) == before
        tokenizer.eos_token = "<s>"
        assert digest(tokenizer) != before

    def test_one_that_does_not_know_where_words_are_is_refused(self, tiny_llama: Path, tmp_path: Path) -> None:
        folder = shutil.copytree(tiny_llama, tmp_path / "base")
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
        with pytest.raises(ValueError, match=r"must have a fast tokenizer .* is a ByT5Tokenizer"):
            load_tokenizer(str(folder))

    @pytest.mark.parametrize("use", ["eos_token", "start_token", "text", None])
    def test_a_token_without_an_embedding_must_stand_in_no_text(
        self, use: str | None, tiny_llama: Path, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(tiny_llama, tmp_path / "base")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(["[NEW]"], special_tokens=use != "text")
        if use == "eos_token":
            tokenizer.eos_token = "[NEW]"
        tokenizer.save_pretrained(folder)
        opened = load_tokenizer(str(folder), start_token="[NEW]" if use == "start_token" else "<s>")
        if use is None:
            check_fits(opened, 400)
            return
        with pytest.raises(ValueError, match=r"has 401 tokens, the model 400 embeddings: none for '\[NEW\]'"):
            check_fits(opened, 400)


class TestFolder:
    def test_says_so(self, tiny_llama: Path, tmp_path: Path) -> None:
        Encoder.load(tiny_llama, pool_start=False).save(tmp_path / "e", "bi")
        card = json.loads((tmp_path / "e" / CARD).read_text())
        assert (card["start_token"], card["pool_start"]) == ("<s>", False)
        opened = Encoder.load(tmp_path / "e")
        assert (start_name(opened.tokenizer), opened.pool_start) == ("<s>", False)
        assert Encoder.load(tmp_path / "e", pool_start=True).pool_start is True
        assert start_name(Encoder.load(tmp_path / "e", start_token=None).tokenizer) is None

    @pytest.mark.parametrize("base", ["tiny_llama", "tiny_llama_bos"])
    def test_written_before_there_were_start_tokens(
        self, base: str, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        """No token is added; one that the tokenizer adds is pooled where there is no instruction, as it was then."""
        old = Encoder.load(request.getfixturevalue(base))
        old.tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(base))
        old.save(tmp_path / "e", "bi")
        card = json.loads((tmp_path / "e" / CARD).read_text())
        del card["start_token"], card["pool_start"]
        (tmp_path / "e" / CARD).write_text(json.dumps({**card, "format": 1}))
        opened = Encoder.load(tmp_path / "e")
        assert opened.tokenizer("a</s>")["input_ids"] == old.tokenizer("a</s>")["input_ids"]
        for instruction, pooled in (("", True), ("Find:", False)):
            [text] = tokenise(opened.tokenizer, ["a dog"], 64, instruction)
            share = weights(Packed.from_tokens([text]), "mean", opened.pool_start)
            assert bool(share[0] > 0) == (pooled if base == "tiny_llama_bos" else not instruction)
