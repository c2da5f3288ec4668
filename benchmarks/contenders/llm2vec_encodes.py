"""LLM2Vec's own package writes tiny models in its published layout, and encodes with them.

    python llm2vec_encodes.py CASES FOLDER TEXTS

For each case a base model, `X-mntp` upon it, `X-mntp-supervised` and `X-mntp-unsup-simcse` upon both are written into
FOLDER; vectors of TEXTS (a JSON list), with each instruction, go into FOLDER/vectors.safetensors. Published adapters
have a `config.json` beside them, uploaded by hand: the base's, with the base's name.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from llm2vec import LLM2Vec
from llm2vec.models import LlamaBiForMNTP, MistralBiForMNTP, Qwen2BiForMNTP
from llm2vec.models.bidirectional_qwen2 import Qwen2BiModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizerFast,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

LORA = {"r": 4, "lora_alpha": 8, "lora_dropout": 0.0, "bias": "none", "task_type": None}
PROJECTIONS = ["q_proj", "v_proj", "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, LlamaBiForMNTP),
    "mistral": (MistralConfig, MistralForCausalLM, MistralBiForMNTP),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, Qwen2BiForMNTP),
}
STAGES = ("mntp", "mntp-supervised", "mntp-unsup-simcse")
MARKS = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]


def byte_level(texts: list[str], start: bool = True) -> PreTrainedTokenizerFast:
    """As Llama 3's: bytes, special tokens of a chat, a beginning of text; without the last as Qwen 2's."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin_of_text|>", "<|end_of_text|>", *MARKS]
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    if start:
        raw.post_processor = processors.TemplateProcessing(
            single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<|begin_of_text|>" if start else None,
        eos_token="<|end_of_text|>",
        model_input_names=["input_ids", "attention_mask"],
    )


def sentence_pieces(texts: list[str]) -> LlamaTokenizerFast:
    """As Llama 2's and Mistral's: a `▁` before every text, spaces as `▁`, unknown characters as bytes."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False))
    content = json.loads(raw.to_str())
    content["added_tokens"] = content["added_tokens"][:3]  # bytes are tokens like any other
    content["decoder"] = {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]}
    return LlamaTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)), legacy=True)


TOKENIZERS = {
    "bytes": byte_level,
    "bytes, no start": partial(byte_level, start=False),
    "sentence pieces": sentence_pieces,
}


def shaken(model: torch.nn.Module, seed: int) -> None:
    """Random adapters, as after training."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=random) * 0.1)


def open_mask(_: Any, attention_mask: torch.Tensor, inputs: torch.Tensor, *__: Any) -> torch.Tensor:
    """What flash attention makes of `is_causal = False`. With other kernels the package leaves Qwen 2 causal: it turns
    masks of Llama and Mistral only.
    """
    return (1 - attention_mask[:, None, None].to(inputs.dtype)) * torch.finfo(inputs.dtype).min


Qwen2BiModel._update_causal_mask = open_mask


def write(case: dict[str, Any], folder: Path, texts: list[str]) -> dict[str, torch.Tensor]:
    """A case's folders; vectors by stage and number of the instruction."""
    config_class, lm_class, mntp_class = KINDS[case["kind"]]
    tokenizer = TOKENIZERS[case["tokenizer"]](texts)
    base, mntp = folder / f"{case['name']}-base", folder / f"LLM2Vec-{case['name']}-mntp"
    torch.manual_seed(0)
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **({"sliding_window": None} if case["kind"] == "mistral" else {}),
    )
    lm_class(config).save_pretrained(base)
    tokenizer.save_pretrained(base)

    # as experiments/run_mntp.py ends
    model = mntp_class.from_pretrained(base)
    model.set_model_for_peft(get_peft_model(model.get_model_for_peft(), LoraConfig(target_modules=PROJECTIONS, **LORA)))
    shaken(model, 1)
    model.save_peft_model(mntp)
    tokenizer.mask_token = "_"
    tokenizer.save_pretrained(mntp)
    uploaded = {**json.loads((base / "config.json").read_text()), "_name_or_path": case["base"]}
    uploaded["auto_map"] = {"AutoModel": "modeling_encoder.EncoderModel"}  # remote code, which is not there
    (mntp / "config.json").write_text(json.dumps(uploaded))

    # as experiments/run_supervised.py and run_simcse.py do
    for seed, ending in enumerate(("supervised", "unsup-simcse"), 2):
        encoder = LLM2Vec.from_pretrained(str(base), peft_model_name_or_path=str(mntp), merge_peft=True)
        encoder.model = get_peft_model(encoder.model, LoraConfig(target_modules=PROJECTIONS, **LORA))
        shaken(encoder.model, seed)
        encoder.save(f"{mntp}-{ending}")

    found = {}
    for stage in STAGES:
        adapter = None if stage == "mntp" else str(folder / f"LLM2Vec-{case['name']}-{stage}")
        encoder = LLM2Vec.from_pretrained(str(mntp), peft_model_name_or_path=adapter)
        for i, instruction in enumerate(case["instructions"]):
            pairs = [[instruction, text] for text in texts]
            vectors = encoder.encode(pairs, batch_size=case["batch_size"], show_progress_bar=False)
            found[f"{case['name']} {stage} {i}"] = vectors.contiguous()
    return found


if __name__ == "__main__":
    cases, folder, texts = json.loads(sys.argv[1]), Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    vectors: dict[str, torch.Tensor] = {}
    for case in cases:
        vectors |= write(case, folder, texts)
    save_file(vectors, folder / "vectors.safetensors")
