"""Files for llama.cpp, run by xllamacpp."""

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exports import TEXTS, relative, trained
from tiny import SMOLLM2
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from otherside.encoder import Encoder
from otherside.export import TEXTS as MANY
from otherside.export import ParityError, export, gguf, llama_cpp
from otherside.pooling import Pooling


def embed(folder: Path, texts: list[str], length: int = 64) -> np.ndarray:
    return np.array(llama_cpp.embed(folder / "model.gguf", texts, length)[1])


def test_the_kept_sink_is_in_it(tiny_llama_sink: Path, tmp_path: Path) -> None:
    ours = Encoder.load(tiny_llama_sink)
    assert ours.backbone.sink is not None
    export(str(tiny_llama_sink), tmp_path / "out", kind="gguf")
    assert relative(embed(tmp_path / "out", TEXTS), ours.encode(TEXTS)) < 1e-4


@pytest.mark.parametrize(
    ("pooling", "pool_start", "attention", "base"),
    [  # each two of them together, somewhere
        ("mean", True, "bidirectional", "tiny_llama"),
        ("mean", True, "causal", "tiny_llama_bos"),
        ("last_token", True, "bidirectional", "tiny_llama_bos"),
        ("last_token", True, "causal", "tiny_llama"),
        ("last_token", False, "bidirectional", "tiny_llama_bos"),
        ("last_token", False, "causal", "tiny_llama"),
    ],
)
def test_llama_cpp_gives_the_same_vectors(
    pooling: Pooling,
    pool_start: bool,
    attention: str,
    base: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    folder = trained(request.getfixturevalue(base), tmp_path / "encoder", pooling, attention, pool_start)
    export(folder, tmp_path / "out", kind="gguf")
    texts = [*TEXTS, "A text that spells </s> is text.", "One long text that has to be cut. " * 30]
    ours = Encoder.load(folder)
    assert relative(embed(tmp_path / "out", texts), ours.encode(texts)) < 1e-4
    other = Encoder.load(folder, attention="causal" if attention == "bidirectional" else "bidirectional")
    assert relative(other.encode(TEXTS), ours.encode(TEXTS)) > 1e-3
    if pooling == "last_token":
        prompted = embed(tmp_path / "out", [f"Find this:\n{text}" for text in TEXTS])
        assert relative(prompted, ours.encode(TEXTS, instruction="Find this:\n")) < 1e-4


def test_a_text_may_have_all_of_the_length(tiny_llama: Path, tmp_path: Path) -> None:
    """llama.cpp rounds its context up to 256 tokens, of which it wants one more than the text has."""
    folder = trained(tiny_llama, tmp_path / "encoder", "last_token")
    card = json.loads((tmp_path / "encoder" / "encoder.json").read_text())
    (tmp_path / "encoder" / "encoder.json").write_text(json.dumps({**card, "max_length": 256}))
    export(folder, tmp_path / "out", kind="gguf")
    text = ["One long text that has to be cut. " * 60]
    assert relative(embed(tmp_path / "out", text, 256), Encoder.load(folder).encode(text)) < 1e-4


def words(pattern: str) -> Any:
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), bytewise])


BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)
LLAMA_3, QWEN_2 = (words(pattern) for pattern in gguf.SPLITS)
CUTS = {"gpt-2": BYTES, "smollm": pre_tokenizers.Sequence([DIGITS, BYTES]), "llama-bpe": LLAMA_3, "qwen2": QWEN_2}


def base(folder: Path, raw: Tokenizer, **config: Any) -> Path:
    """A tiny Llama with this tokenizer."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bytewise(cuts: Any) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = cuts
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(
        [*MANY, "12 123 1234 12345 123456 2026 2026", "I'VE they'll IT'S\r\n\r\nend  \n\n  x"], trainer
    )
    return raw


def pieces() -> Tokenizer:
    """As SentencePiece's of Llama 2 are in tokenizer.json: bytes for what is unknown, a space before the text."""
    raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    names = ["<unk>", "<s>", "</s>"]
    special = [*names, *(f"<0x{i:02X}>" for i in range(256))]
    raw.train_from_iterator(MANY[:10], trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    content = json.loads(raw.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in names]
    content["pre_tokenizer"]["split"] = False
    return Tokenizer.from_str(json.dumps(content))


MORE = [
    "12345 and 2026",
    "I'VE they'll IT'S",
    "line\r\n\r\nend  \n\n  x",
    "Ünïcödé 東京 👩‍🔬 x",
    "x" * 30,
    "a\u00a0b\t\tc",
    "a <tool>b <s>c",
]


@pytest.mark.parametrize("name", [*CUTS, "pieces"])
def test_texts_are_read_alike(name: str, tmp_path: Path) -> None:
    raw = pieces() if name == "pieces" else bytewise(CUTS[name])
    if name != "pieces":
        raw.add_tokens(["<tool>"])  # which texts may spell, unlike special ones
    export(str(base(tmp_path / "base", raw)), tmp_path / "out", kind="gguf")
    ours, texts = Encoder.load(tmp_path / "base").tokenizer, [*MANY[:-1], *MORE]
    found, _ = llama_cpp.embed(tmp_path / "out" / "model.gguf", texts, 512)
    for text, tokens in zip(texts, found, strict=True):
        assert tokens == ours(text)["input_ids"], text
    if name != "pieces":
        assert gguf.pre_tokenizer(json.loads(ours.backend_tokenizer.to_str())) == name


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ],
)
def test_positions(rope: dict[str, Any], tmp_path: Path) -> None:
    folder = base(tmp_path / "base", bytewise(BYTES), rope_parameters=rope)
    export(str(folder), tmp_path / "out", kind="gguf")
    text = ["One long text. " * 40]
    found = embed(tmp_path / "out", text, 512)
    assert relative(found, Encoder.load(folder).encode(text)) < 1e-4


@pytest.mark.parametrize(("dtype", "share"), [("float16", 0.55), ("q8_0", 0.32)])
def test_fewer_bits(dtype: Any, share: float, tiny_llama: Path, tmp_path: Path) -> None:
    folder = trained(tiny_llama, tmp_path / "encoder")
    export(folder, tmp_path / "whole", kind="gguf")
    export(folder, tmp_path / "out", kind="gguf", dtype=dtype)
    found, expected = embed(tmp_path / "out", TEXTS), Encoder.load(folder).encode(TEXTS)
    assert 1e-5 < relative(found, expected) < 0.1
    small, large = ((tmp_path / name / "model.gguf").stat().st_size for name in ("out", "whole"))
    assert small < share * large
    assert [path.name for path in (tmp_path / "out").glob("*.gguf")] == ["model.gguf"]


def test_what_the_readme_says_runs(tiny_llama: Path, tmp_path: Path) -> None:
    folder = trained(tiny_llama, tmp_path / "encoder")
    export(folder, tmp_path / "out", kind="gguf")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: llama.cpp" in text
    lines = text.split("```python\n")[1].split("```")[0].replace('"Rain."', '"Rain. </s> " * 60')
    lines += "print(json.dumps(vectors))"
    done = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, stdout=subprocess.PIPE, check=True)
    expected = Encoder.load(folder).encode(["The cat sat on the mat.", "Rain. </s> " * 60])
    assert relative(np.array(json.loads(done.stdout)), expected) < 1e-4


def test_other_weights_are_refused(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "interleaved", lambda weight, _: weight)
    with pytest.raises(ParityError, match="must equal the encoder's"):
        export(trained(tiny_llama, tmp_path / "encoder"), tmp_path / "out", kind="gguf")
    assert not (tmp_path / "out").exists()


def test_what_llama_cpp_cannot_do_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match=r"cannot leave a start token out of the mean.*--kind=onnx"):
        export(trained(tiny_llama, tmp_path / "a", pool_start=False), out, kind="gguf")
    with pytest.raises(ValueError, match=r"as llama.cpp pools; got weighted_mean.*--kind=onnx"):
        export(trained(tiny_llama, tmp_path / "b", "weighted_mean"), out, kind="gguf")
    with pytest.raises(ValueError, match=r"--dtype must be one of float32, float16, q8_0 with --kind=gguf; got int8"):
        export(str(tiny_llama), out, kind="gguf", dtype="int8")
    encoder = Encoder.load(tiny_llama)
    encoder.backbone.lm.config.rope_parameters = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(ValueError, match="takes rope_type default, linear, llama3; got yarn"):
        gguf.check(encoder)
    encoder.backbone.lm.config.sliding_window = 8
    with pytest.raises(ValueError, match="takes llama and mistral without sliding windows"):
        gguf.check(encoder)
    read = json.loads(encoder.tokenizer.backend_tokenizer.to_str())
    level = read["pre_tokenizer"]
    for other in (
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": {**level, "add_prefix_space": True}},
        {"pre_tokenizer": {"pretokenizers": [{"type": "Digits", "individual_digits": False}, level]}},
        {"normalizer": {"type": "NFC"}},
    ):
        with pytest.raises(ValueError, match=r"this one has .*\. Export --kind=onnx"):
            gguf.pre_tokenizer({**read, **other})
    raw = pieces()
    raw.add_tokens(["<tool>"])
    with pytest.raises(ValueError, match=r"without added tokens .* this one has '<tool>'\. Export --kind=onnx"):
        export(str(base(tmp_path / "base", raw)), out, kind="gguf")


def test_missing_packages_are_named(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "find_spec", lambda name: None if name == "xllamacpp" else name)
    with pytest.raises(ModuleNotFoundError, match=r"no xllamacpp\. .*otherside\[gguf\]"):
        export(str(tiny_llama), tmp_path / "out", kind="gguf")


def test_where_llama_cpp_aborts_this_process_does_not(tiny_llama: Path, tmp_path: Path) -> None:
    export(str(tiny_llama), tmp_path / "out", kind="gguf")
    whole = (tmp_path / "out" / "model.gguf").read_bytes()
    key = b"llama-embed.pooling_type" + struct.pack("<I", 4)
    found = whole.index(key) + len(key)
    unknown, torn = tmp_path / "unknown.gguf", tmp_path / "torn.gguf"
    unknown.write_bytes(whole[:found] + struct.pack("<I", 77) + whole[found + 4 :])
    torn.write_bytes(whole[:-100])
    with pytest.raises(RuntimeError, match=r"open unknown.gguf.* ended by SIGABRT: .*unknown pooling type\. Nothing"):
        llama_cpp.embed(unknown, TEXTS, 64)
    with pytest.raises(RuntimeError, match=r"open none.gguf.* with status 1: .*failed to open .* … RuntimeError: "):
        llama_cpp.embed(tmp_path / "none.gguf", TEXTS, 64)
    with pytest.raises(RuntimeError, match=r"open torn.gguf.* with status 1: .*corrupted or incomplete"):
        llama_cpp.embed(torn, TEXTS, 64)


@pytest.mark.slow
def test_a_real_llama(tmp_path: Path) -> None:
    export(SMOLLM2, tmp_path / "out", kind="gguf", dtype="q8_0")
    found, expected = embed(tmp_path / "out", TEXTS, 512), Encoder.load(SMOLLM2).encode(TEXTS)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.99
