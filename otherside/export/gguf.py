"""A file for llama.cpp: weights, tokenizer and pooling in one."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from otherside.encoder import Encoder
from otherside.export.transformers import embed_sink, fold_factors
from otherside.tokenizer import start_id

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

PACKAGES = {"gguf": "gguf", "xllamacpp": "xllamacpp"}  # modules, as pip calls them
MODEL = "model.gguf"
SMALL = ("float16", "q8_0")
FAMILIES = ("llama", "mistral")  # that llama.cpp computes alike, as its `llama-embed`
ROPE = ("default", "linear", "llama3")
DIGITS = r"\p{N}{1,3}"
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {WORDS.replace("DIGITS", DIGITS): "llama-bpe", WORDS.replace("DIGITS", r"\p{N}"): "qwen2"}


def check_installed() -> None:
    """Raise unless the packages are there that write and run a file."""
    if missing := [name for module, name in PACKAGES.items() if find_spec(module) is None]:
        raise ModuleNotFoundError(
            f"--kind=gguf needs {' and '.join(PACKAGES.values())}, to compare vectors as llama.cpp computes them; "
            f"there is no {missing[0]}. Install them: pip install 'otherside[gguf]'"
        )


def write(encoder: Encoder, folder: Path) -> None:
    """`model.gguf`, in float32.

    Args:
        encoder: in float32, without an attached adapter.
        folder: an empty folder.

    Raises:
        ValueError: llama.cpp would not compute what the encoder does, or not read texts as it does.
    """
    import gguf

    check(encoder)
    embed_sink(encoder.backbone)
    fold_factors(encoder)
    model: Any = encoder.backbone.lm.base_model
    arch = gguf.MODEL_ARCH.LLAMA_EMBED  # of the causal ones, too: `llama` keeps keys and values, in 16 bits
    writer = gguf.GGUFWriter(folder / MODEL, gguf.MODEL_ARCH_NAMES[arch])
    _write_settings(writer, encoder)
    _write_tokenizer(writer, encoder.tokenizer, model.config.vocab_size)
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        weight = tensor.float().numpy()
        if (projection := name.split(".")[-2]) in heads:
            weight = interleaved(weight, heads[projection])
        named = names.get_name(f"model.{name}", try_suffixes=(".weight", ".bias"))
        assert named is not None, name
        writer.add_tensor(named, weight)
    if (factors := _rope_factors(model)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    _close(writer)


def check(encoder: Encoder) -> None:
    """Raise unless llama.cpp computes what the encoder does."""
    config, pooling = encoder.backbone.lm.config, encoder.pooling
    instead = "Export --kind=onnx."
    if pooling == "weighted_mean":
        raise ValueError(f"--kind=gguf takes mean and last_token, as llama.cpp pools; got weighted_mean. {instead}")
    if pooling == "mean" and encoder.pool_start is False and start_id(encoder.tokenizer) is not None:
        raise ValueError(
            f"llama.cpp cannot leave a start token out of the mean; this encoder does (pool_start: false). {instead}"
        )
    if config.model_type not in FAMILIES or getattr(config, "sliding_window", None):
        raise ValueError(
            f"--kind=gguf takes {' and '.join(FAMILIES)} without sliding windows; got {config.model_type}. {instead}"
        )
    if (kind := config.rope_parameters["rope_type"]) not in ROPE:
        raise ValueError(f"--kind=gguf takes rope_type {', '.join(ROPE)}; got {kind}. {instead}")


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a projection as llama.cpp turns them: pairs side by side, not one half of a head behind the other."""
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def quantise(folder: Path, dtype: str) -> None:
    """Write matrices in another type: float16, or q8_0, 8 bits and a scale for each 32 of them."""
    import gguf
    from gguf.quants import quantize

    kind = {"float16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}[dtype]
    whole = (folder / MODEL).rename(folder / f"whole-{MODEL}")
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(folder / MODEL, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            parts = {"sub_type": field.types[-1]} if len(field.types) > 1 else {}
            writer.add_key_value(name, field.contents(), field.types[0], **parts)
    writer.add_file_type({"float16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[dtype])
    for tensor in reader.tensors:
        values, to = tensor.data, kind
        if values.ndim < 2:
            to = gguf.GGMLQuantizationType.F32
        elif values.shape[-1] % 32:
            to = gguf.GGMLQuantizationType.F16
        writer.add_tensor(tensor.name, quantize(values, to), raw_dtype=to)
    _close(writer)
    whole.unlink()


def _write_settings(writer: GGUFWriter, encoder: Encoder) -> None:
    import gguf

    config = encoder.backbone.lm.config
    rope = config.rope_parameters
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(encoder.max_length + 1)  # its server keeps room for one more where it takes the last
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_causal_attention(encoder.backbone.attention == "causal")
    writer.add_pooling_type(gguf.PoolingType.MEAN if encoder.pooling == "mean" else gguf.PoolingType.LAST)


def _rope_factors(model: Any) -> np.ndarray | None:
    """What Llama 3.1 divides its rotary frequencies by."""
    rope = model.config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    found = model.rotary_emb.inv_freq.float().numpy()
    plain = 1.0 / rope["rope_theta"] ** (np.arange(len(found), dtype=np.float32) / len(found))
    return np.asarray(plain / found, dtype=np.float32)


def _write_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """Vocabulary, merges, and how texts are cut before them; `size` is that of the embeddings."""
    import gguf

    read = json.loads(tokenizer.backend_tokenizer.to_str())
    pieces = bool(read["model"].get("byte_fallback"))  # SentencePiece's, whose scores say which are merged first
    merges = [m if isinstance(m, list) else m.split(" ") for m in read["model"]["merges"]]
    special = {token["id"]: token["special"] for token in read["added_tokens"]}
    unknown = read["model"].get("unk_token")
    added = [token["content"] for token in read["added_tokens"] if not token["special"]]
    if pieces and added and prepends_space(read):
        raise ValueError(
            f"--kind=gguf takes tokenizers of SentencePiece without added tokens that texts may spell, behind which "
            f"llama.cpp puts a space; this one has {added[0]!r}. Export --kind=onnx."
        )
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, i in tokenizer.get_vocab().items():
        if i >= size:  # texts cannot spell it, see `tokenizer.check_fits`
            continue
        tokens[i], kinds[i] = token, gguf.TokenType.NORMAL
        if pieces and token.startswith("<0x"):
            kinds[i] = gguf.TokenType.BYTE
        if i in special:
            kinds[i] = gguf.TokenType.CONTROL if special[i] else gguf.TokenType.USER_DEFINED
        if pieces and token == unknown:
            kinds[i] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama" if pieces else "gpt2")
    writer.add_tokenizer_pre("default" if pieces else pre_tokenizer(read))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if pieces:
        ranks = {"".join(pair): -float(rank) for rank, pair in reversed(list(enumerate(merges)))}
        writer.add_token_scores([ranks.get(token, 0.0) for token in tokens])
        writer.add_add_space_prefix(prepends_space(read))
    else:
        writer.add_token_merges([" ".join(pair) for pair in merges])
    start = start_id(tokenizer)
    writer.add_add_bos_token(start is not None)
    writer.add_add_eos_token(False)
    for add, number in ((writer.add_bos_token_id, start), (writer.add_eos_token_id, tokenizer.eos_token_id)):
        if number is not None:
            add(number)


def pre_tokenizer(read: dict[str, Any]) -> str:
    """What llama.cpp calls the rules by which a tokenizer cuts texts into words.

    Args:
        read: its tokenizer.json.

    Raises:
        ValueError: none that is known here.
    """
    pre = read["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    kinds = [step.get("type") for step in steps]
    bytewise = kinds[-1] == "ByteLevel" and not steps[-1]["add_prefix_space"] and not read["normalizer"]
    if read["model"]["type"] == "BPE" and bytewise:
        if kinds == ["ByteLevel"]:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
            return "smollm"
        if kinds == ["Split", "ByteLevel"] and (name := SPLITS.get(steps[0]["pattern"].get("Regex", ""))):
            return name
    raise ValueError(
        "--kind=gguf takes tokenizers that cut texts as GPT-2's, SmolLM's, Llama 3's, Qwen 2's or SentencePiece; this "
        f"one has {', '.join(map(str, kinds))}. Export --kind=onnx."
    )


def prepends_space(read: dict[str, Any]) -> bool:
    """Whether a tokenizer of SentencePiece puts a space before a text."""
    steps = [read["normalizer"] or {}, read["pre_tokenizer"] or {}]
    steps += [inner for step in steps for inner in step.get("normalizers", step.get("pretokenizers", []))]
    return any(step.get("type") == "Prepend" or step.get("prepend_scheme") in ("first", "always") for step in steps)


def _close(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
