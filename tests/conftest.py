"""What many tests share: one tiny Llama with a real tokenizer, built once per session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # processes that tests start would compile all libraries each time
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ["OMP_NUM_THREADS"] = "1"  # OpenMP's threads do not survive a fork: a forked run would wait for them for ever

import pytest
import torch

SHARED = Path(os.environ.get("OTHERSIDE_SHARED", Path(__file__).parents[2] / "shared"))

SENTENCES = [
    "The cat sat on the mat.",
    "A dog barked at the postman all morning long, as dogs do.",
    "Rain.",
    "She opened the window and looked at the other side of the street.",
    "Paris is the capital of France, and Lyon its third-largest city.",
    "Snow fell.",
    "The committee could not agree on a date for the next meeting.",
    "Water boils at one hundred degrees.",
]


def shared(path: str) -> Path:
    """Published data that is not in this repository, in $OTHERSIDE_SHARED or ../shared; else the test is skipped."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"needs {path} in {SHARED}; set OTHERSIDE_SHARED to the folder that holds it")
    return found


def build_tiny_llama(folder: Path, bos: bool = False, tied: bool = False, sink: bool = False) -> Path:
    """A two-layer Llama (hidden 64, grouped queries) and a byte-level BPE tokenizer trained on SENTENCES.

    `bos` puts `<s>` before every text, `tied` makes the head the embeddings' transpose, as in small Llamas; `sink` adds
    a layer, and lets the state of a `<s>` that sees only itself grow in the second, as in every trained Llama.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(SENTENCES, trainer)
    if bos:
        raw.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=256
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3 if sink else 2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=tied,
        initializer_range=0.2,  # so that attention and adapters make visible differences
    )
    model = LlamaForCausalLM(config)
    if sink:
        add_sink(model.model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def add_sink(model: Any) -> None:
    """One neuron of the second layer answers to the state of a `<s>` that sees only itself."""
    seen: list[torch.Tensor] = []
    mlp = model.layers[1].mlp
    hook = mlp.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0][0, 0]))
    with torch.no_grad():
        model(torch.tensor([[0]]))
        hook.remove()
        mlp.gate_proj.weight[0] = mlp.up_proj.weight[0] = 4 * seen[0] / seen[0].norm()
        mlp.down_proj.weight[:, 0] = 0.05 * torch.randn(64)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture(scope="session")
def tiny_llama_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_llama`; its tokenizer puts a `<s>` first, as the Llama 2 and 3 tokenizers do."""
    return build_tiny_llama(tmp_path_factory.mktemp("tiny-llama-bos"), bos=True)


@pytest.fixture(scope="session")
def tiny_llama_sink(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `tiny_llama_bos`, with a sink and a head that shares the embeddings' weights."""
    return build_tiny_llama(tmp_path_factory.mktemp("tiny-llama-sink"), bos=True, tied=True, sink=True)


@pytest.fixture
def sentences() -> list[str]:
    return list(SENTENCES)
