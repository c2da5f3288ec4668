"""A cache of its own for every test, and small files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from datamodules import Sentences, Source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    datasets.disable_progress_bars()
    return folder


@pytest.fixture(scope="session")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture
def write_texts(tmp_path: Path) -> Callable[..., str]:
    def write(count: int, name: str = "texts.jsonl") -> str:
        return write_lines(tmp_path / name, (json.dumps({"text": f"text {i}"}) for i in range(count)))

    return write


@pytest.fixture
def write_pairs(tmp_path: Path) -> Callable[..., str]:
    def write(count: int, negatives: int = 3, name: str = "pairs.jsonl") -> str:
        rows: Iterable[dict[str, Any]] = (
            {"query": f"q {i}", "positive": f"p {i}", "negatives": [f"n {i} {j}" for j in range(negatives)]}
            for i in range(count)
        )
        return write_lines(tmp_path / name, map(json.dumps, rows))

    return write


@pytest.fixture
def sentences_of(tokenizer: PreTrainedTokenizerBase) -> Callable[..., Sentences]:
    def build(*paths: str, **settings: Any) -> Sentences:
        settings = {"global_batch_size": 4, "max_length": 16, "num_workers": 0, **settings}
        data = Sentences(tokenizer, [Source(path) for path in paths], **settings)
        data.prepare_data()
        return data

    return build


def write_lines(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)
