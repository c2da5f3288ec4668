"""What servers that do not run here read of an exported folder, by rules written down from their sources.

- text-embeddings-inference 1.9.3 (0d124dc): router/src/lib.rs, backends/candle/src/{lib,models/flash_mistral}.rs
- vLLM, main of mid-2026: model_executor/models/{registry,llama,config}.py, transformers_utils/config.py
"""

import json
from pathlib import Path
from typing import Any

import pytest
from exports import PROMPTS, trained, with_history
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel

from otherside.encoder import Encoder
from otherside.export import Reference, export, transformers
from otherside.export.readme import servers
from otherside.pooling import Pooling


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def tei(folder: Path) -> dict[str, Any]:
    """What text-embeddings-inference would run.

    Raises:
        ValueError: it does not start.
    """
    config = read(folder / "config.json")
    assert config["model_type"] in ("llama", "llama_bidirec")
    if config.get("rope_scaling") is not None:
        raise ValueError("Rope scaling is not supported for FlashLlama yet")
    if not (folder / "1_Pooling" / "config.json").is_file():
        raise ValueError("The `--pooling` arg is not set and we could not find a pooling configuration")
    modes = read(folder / "1_Pooling" / "config.json")
    named = {"cls_token": "cls", "mean_tokens": "mean", "lasttoken": "last_token"}  # the first that is set
    pooling = next((name for mode, name in named.items() if modes[f"pooling_mode_{mode}"]), None)
    if pooling is None:
        raise ValueError("Pooling config is not supported")
    return {
        "causal": not config.get("use_bidirectional_attention", False),
        "theta": config.get("rope_theta") or config["rope_parameters"]["rope_theta"],
        "pooling": pooling,
        "length": read(folder / "sentence_bert_config.json")["max_seq_length"],
        "prompts": read(folder / "config_sentence_transformers.json")["prompts"],
        "weights": {name.partition(".")[0] for name in load_file(folder / "model.safetensors")},
    }


def vllm(folder: Path) -> dict[str, Any]:
    """What vLLM would run: it reads modules.json of sentence-transformers, and the config as transformers does."""
    config = AutoConfig.from_pretrained(folder)
    modules = read(folder / "modules.json")
    pooling = next(module for module in modules if module["type"] == "sentence_transformers.models.Pooling")
    modes = read(folder / pooling["path"] / "config.json")
    [mode] = [name for name, on in modes.items() if on is True and name.startswith("pooling_mode")]
    return {
        "architecture": config.architectures[0],
        "causal": getattr(config, "is_causal", True),
        "rope": config.rope_parameters,
        "pooling": {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last_token"}.get(mode),
        "length": read(folder / "sentence_bert_config.json")["max_seq_length"],
    }


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_both_compute_what_the_encoder_does(pooling: Pooling, attention: str, tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_history(trained(tiny_llama, tmp_path / "encoder", pooling, attention), PROMPTS)
    export(folder, tmp_path / "out")
    there, causal = tei(tmp_path / "out"), attention == "causal"
    assert (there["causal"], there["pooling"], there["length"]) == (causal, pooling, 64)
    assert there["prompts"] == PROMPTS
    assert there["weights"] == {"embed_tokens", "layers", "norm"}
    other = vllm(tmp_path / "out")
    assert (other["causal"], other["pooling"], other["length"]) == (causal, pooling, 64)
    assert other["architecture"] == "LlamaModel"
    assert there["theta"] == other["rope"]["rope_theta"]
    said = (tmp_path / "out" / "README.md").read_text()
    assert "vllm serve FOLDER" in said and "text-embeddings-router" in said


def test_llama_3_positions_do_not_start_where_they_are_ignored(tiny_llama: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_llama)
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    encoder.backbone.lm.config.rope_parameters = rope
    transformers.write(encoder, tmp_path, head=False)
    with pytest.raises(ValueError, match="Rope scaling is not supported"):
        tei(tmp_path)
    assert servers(encoder, Reference.of(encoder, {})) == ["`vllm serve FOLDER --runner pooling`"]
    again = AutoModel.from_pretrained(tmp_path)  # transformers, and vLLM with it, read it all the same
    assert again.config.rope_parameters == rope


def test_a_start_token_that_is_not_pooled(tiny_llama: Path, tmp_path: Path) -> None:
    """One does not start; the other would pool it, and the folder says so."""
    export(trained(tiny_llama, tmp_path / "encoder", pool_start=False), tmp_path / "out")
    with pytest.raises(ValueError, match="could not find a pooling configuration"):
        tei(tmp_path / "out")
    assert vllm(tmp_path / "out")["pooling"] == "mean"
    said = (tmp_path / "out" / "README.md").read_text()
    assert "vLLM pools the start token" in said and "vllm serve" not in said
