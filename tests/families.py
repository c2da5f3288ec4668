"""Tiny models of all families that docs/models.md names, with the tokenizer of the tiny Llama."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,  # so that attention and adapters make visible differences
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
SLIDING = ["sliding_attention", "full_attention"] * 2
WINDOW = 6  # shorter than the texts of tests


@dataclass(frozen=True)
class Family:
    """One of them.

    Args:
        kind: its `model_type`.
        settings: of its config, besides `SIZES`.
        window: whether some layers have a sliding window.
    """

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    window: bool = False

    def save(self, folder: Path, tokenizer: Path, **settings: Any) -> Path:
        """A tiny model with random weights, norms included."""
        torch.manual_seed(0)
        config = AutoConfig.for_model(self.kind, **{**SIZES, **self.settings, **settings})
        lm = AutoModelForCausalLM.from_config(config)
        for name, parameter in lm.named_parameters():
            if "norm" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
        lm.save_pretrained(folder)
        for file in tokenizer.glob("*token*"):
            shutil.copy(file, folder)
        return folder


FAMILIES = {
    "llama": Family("llama"),
    "mistral": Family("mistral", {"sliding_window": WINDOW}, window=True),
    "qwen2": Family("qwen2", {"use_sliding_window": False, "sliding_window": WINDOW, "max_window_layers": 2}),
    "qwen2, windows": Family(
        "qwen2", {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2}, window=True
    ),
    "qwen3": Family("qwen3", {"head_dim": 16}),
    "gemma2": Family(
        "gemma2",
        {
            "head_dim": 16,
            "query_pre_attn_scalar": 32,
            "sliding_window": WINDOW,
            "layer_types": SLIDING,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        window=True,
    ),
    "gemma3": Family(
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 32, "sliding_window": WINDOW, "layer_types": SLIDING},
        window=True,
    ),
    "phi3": Family("phi3", {"sliding_window": WINDOW}, window=True),
    "olmo2": Family("olmo2"),
    "smollm3": Family("smollm3", {"no_rope_layers": [1, 0, 1, 0]}),
    "granite": Family(
        "granite",
        {
            "logits_scaling": 7.0,
            "residual_multiplier": 0.3,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.1,
        },
    ),
    "cohere": Family("cohere", {"logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": Family("cohere2", {"logit_scale": 0.25, "sliding_window": WINDOW, "layer_types": SLIDING}, window=True),
}
