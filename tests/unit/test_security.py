"""What comes with a model from elsewhere is never run; .bin files are in test_conversion.py."""

from __future__ import annotations

import builtins
import json
import shutil
from pathlib import Path

import pytest

from otherside import sharding
from otherside.lineage import Lineage
from otherside.loading import base
from otherside.probing.bert import is_bert
from otherside.tokenizer import load_tokenizer


@pytest.fixture
def stranger(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a family that only its own code knows; whoever asks whether to run it, is told yes."""
    monkeypatch.setattr(builtins, "input", lambda question="": "y")  # as on a terminal
    folder = shutil.copytree(tiny_llama, tmp_path / "stranger")
    (folder / "code.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')")
    classes = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoTokenizer": ["code.T", "code.T"]}
    for name, changes in {
        "config.json": {"model_type": "stranger", "architectures": ["M"]},
        "tokenizer_config.json": {"tokenizer_class": "T"},
    }.items():
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | changes | {"auto_map": classes}))
    return folder


@pytest.mark.parametrize("way", ["base", "shards", "tokenizer", "bert"])
def test_code_beside_a_model_is_not_run(way: str, stranger: Path) -> None:
    ways = {
        "base": lambda: base(Lineage(str(stranger)), None, str(stranger)),
        "shards": lambda: sharding.empty(stranger, None, None),
        "tokenizer": lambda: load_tokenizer(str(stranger)),
        "bert": lambda: is_bert(str(stranger)),
    }
    with pytest.raises((FileNotFoundError, ValueError), match=r"custom code|trust_remote_code|without code of its own"):
        ways[way]()
    assert not (stranger.parent / "was-run").exists()
