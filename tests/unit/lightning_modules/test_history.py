"""What encoder folders say of their training."""

from pathlib import Path

import pytest
from stages import build, data, trainer

from datamodules import Source
from lightning_modules import history
from lightning_modules.contrastive import Supervised
from otherside.encoder import Encoder
from otherside.lineage import Card, Training
from otherside.losses import InfoNCE


@pytest.mark.parametrize(
    ("kind", "sources", "prompts"),
    [
        ("pair", [Source("a.jsonl"), Source("b.jsonl")], {}),
        ("pair", [Source("a", {}, "Find: "), Source("b", {}, "Find: ")], {"query": "Find: ", "document": ""}),
        ("text", [Source("a", {}, "Say: ")], {"query": "Say: ", "document": "Say: "}),
        (
            "pair",
            [Source("org/nq.jsonl", {}, "N: "), Source("quora.jsonl", {}, "Q: ", "Q: ")],
            {"nq": "N: ", "quora": "Q: "},
        ),
        ("pair", [Source("a", {}, "N: ", "P: "), Source("b")], {"a": "N: ", "a-document": "P: "}),
        (
            "pair",
            [Source("data/nq/train.jsonl", {}, "Q1: "), Source("data/fever/train.jsonl", {}, "Q2: ")],
            {"nq-train": "Q1: ", "fever-train": "Q2: "},
        ),
        ("pair", [Source("a", {}, "Q1: "), Source("a", {"query": "title"}, "Q2: ")], {"1": "Q1: ", "2": "Q2: "}),
    ],
)
def test_prompts(kind: str, sources: list[Source], prompts: dict[str, str]) -> None:
    assert history.prompts(sources, kind) == prompts


def test_a_stage_writes_its_own_behind_those_before(tiny_llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"query": "a cat", "positive": "an animal"}\n{"query": "a rose", "positive": "a flower"}\n')
    first = build(Supervised, tiny_llama, loss=InfoNCE(matryoshka=(8,)))
    run = trainer(tmp_path, max_steps=1)
    texts = data(first, file, global_batch_size=2)
    texts.sources[0].instruction = "Find: "
    run.fit(first, datamodule=texts)
    first.save_encoder(tmp_path / "first", first.state_dict())
    told = Training("supervised", 1, (str(file),), {"query": "Find: ", "document": ""}, (8,))
    assert Card.read(tmp_path / "first").history == (told,)
    assert Encoder.load(tmp_path / "first").history == (told,)
    second = build(Supervised, tmp_path / "first")
    second.encoder.save(tmp_path / "second", "again", 5)
    card = Card.read(tmp_path / "second")
    assert card.history == (told, Training("again", 5))
    assert (card.prompts, card.dimensions) == ({}, ())
