"""The encoder as a model of mteb, and evaluations within a budget; real mteb on a small local copy of STSBenchmark."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import mteb
import numpy as np
import pytest
import torch
from sts import write_sts
from tiny import train_a_little

from otherside import adapters
from otherside.adapters import Lora
from otherside.encoder import Encoder
from otherside.evaluation import Evaluation, MTEBModel, Scores, model_meta
from otherside.evaluation.run import OutOfTimeError
from otherside.evaluation.tasks import load
from otherside.lineage import Training

NAME = "STSBenchmark"


@pytest.fixture(scope="module")
def encoder(tiny_llama: Path) -> Encoder:
    return Encoder.load(tiny_llama, max_length=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sts(tmp_path_factory.mktemp("data"))


def test_mteb_takes_an_encoder_as_it_is(encoder: Encoder, data: Path) -> None:
    assert isinstance(encoder, mteb.EncoderProtocol)
    task = mteb.get_task(NAME)
    load(task, data)
    found = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    assert found.model_name == f"otherside/{Path(encoder.backbone.lineage.base).name}-bi"
    rows = task.dataset["test"]
    one, other = (encoder.encode(rows[column], normalize=True) for column in ("sentence1", "sentence2"))
    ranks = [np.argsort(np.argsort(values)) for values in ((one * other).sum(1), rows["score"])]
    assert found.task_results[0].get_score() == pytest.approx(np.corrcoef(*ranks)[0, 1], abs=0.15)  # ties aside
    again = Evaluation([NAME], ["eng"], data)
    scores = again.run(lambda texts, _: encoder.encode(texts), model_meta(encoder))
    assert scores.tasks[NAME] == found.task_results[0].get_score()


def test_similarities_are_cosines(encoder: Encoder) -> None:
    a, b = torch.randn(3, 8), torch.randn(3, 8)
    expected = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    torch.testing.assert_close(encoder.similarity(a.numpy(), b), expected)
    torch.testing.assert_close(encoder.similarity_pairwise(a, b.numpy()), expected.diagonal())


def test_the_most_special_instruction_holds(encoder: Encoder) -> None:
    said = []

    def encode(texts: list[str], instruction: str) -> np.ndarray:
        said.append((texts, instruction))
        return np.zeros((len(texts), 2))

    told = {"SciFact-query": "claim: ", "SciFact": "science: ", "Retrieval": "search: ", "document": "text: "}
    model = MTEBModel(encode, model_meta(encoder), told)
    asked = [
        ("SciFact", "query"),
        ("SciFact", "document"),
        ("NFCorpus", "query"),
        ("STS13", "document"),
        ("STS13", None),
    ]
    for task, side in asked:
        kind = mteb.types.PromptType(side) if side else None
        model.encode(
            [{"text": ["a", "b"]}, {"text": ["c"]}], task_metadata=mteb.get_task(task).metadata, prompt_type=kind
        )
    assert [instruction for _, instruction in said] == ["claim: ", "science: ", "search: ", "text: ", ""]
    assert said[0][0] == ["a", "b", "c"]


def test_a_revision_stands_for_all_that_decides_vectors(tiny_llama: Path, encoder: Encoder) -> None:
    def revision(
        changed: Encoder = encoder, instructions: dict[str, str] | None = None, step: int | None = None
    ) -> str:
        return model_meta(changed, instructions, step=step).revision

    trained = Encoder.load(tiny_llama, max_length=64)
    adapters.attach(trained.backbone.lm, Lora(r=4))
    untrained = revision(trained)
    train_a_little(trained)
    found = [
        *(revision(), revision(instructions={"STS": "a"}), revision(step=5), revision(step=6)),
        *(untrained, revision(trained)),
        revision(Encoder.load(tiny_llama, max_length=64, dtype="bfloat16")),
        revision(Encoder.load(tiny_llama, max_length=32)),
        revision(Encoder.load(tiny_llama, max_length=64, attention="causal")),
        revision(Encoder.load(tiny_llama, max_length=64, pooling="last_token")),
    ]
    assert len(set(found)) == len(found)
    assert revision() == revision(Encoder.load(tiny_llama, max_length=64))


def test_a_start_token_that_is_not_pooled_is_another_revision(tiny_llama_bos: Path) -> None:
    pooled, read = (Encoder.load(tiny_llama_bos, pool_start=pool) for pool in (True, False))
    assert model_meta(pooled).revision != model_meta(read).revision


def test_a_kept_sink_is_another_revision(tiny_llama_sink: Path) -> None:
    kept, lost = (Encoder.load(tiny_llama_sink, max_length=64, keep_sink=keep) for keep in (True, False))
    assert model_meta(kept).revision != model_meta(lost).revision


def test_adapters_beside_the_base_are_the_same_model(tiny_llama: Path, tmp_path: Path) -> None:
    trained = Encoder.load(tiny_llama, max_length=64)
    adapters.attach(trained.backbone.lm, Lora(r=4))
    folder = trained.save(tmp_path / "encoder", "mntp")
    merged, beside = (model_meta(Encoder.load(folder, merge=merge)) for merge in (True, False))
    assert (merged.name, merged.revision) == (beside.name, beside.revision)


def test_instructions_of_training_hold_where_none_are_given(tiny_llama: Path) -> None:
    encoder = Encoder.load(tiny_llama, max_length=64)
    encoder.history = (Training("supervised", prompts={"query": "Find: ", "document": "", "faq": "Ask: "}),)
    assert encoder.mteb().instructions == {"query": "Find: "}
    assert encoder.mteb({}).instructions == {}
    assert encoder.mteb({"STS": "a"}).instructions == {"STS": "a"}
    assert encoder.mteb_model_meta.revision == encoder.mteb().mteb_model_meta.revision
    assert encoder.mteb_model_meta.revision != encoder.mteb({}).mteb_model_meta.revision


def test_metadata_are_true(encoder: Encoder, tiny_llama: Path, tmp_path: Path) -> None:
    meta = encoder.mteb_model_meta
    assert meta.n_parameters == sum(p.numel() for p in encoder.backbone.lm.base_model.parameters())
    assert (meta.n_embedding_parameters, meta.embed_dim, meta.max_tokens) == (400 * 64, 64, 64)
    assert meta.license is None and meta.training_datasets is None and not meta.use_instructions
    assert encoder.mteb({"STS": "a"}).mteb_model_meta.use_instructions
    encoder.save(tmp_path / "encoder", "bi")
    (tiny_llama / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    try:
        assert Encoder.load(tmp_path / "encoder").mteb_model_meta.license == "apache-2.0"
    finally:
        (tiny_llama / "README.md").unlink()
    sources = ["sentence-transformers/gooaq", "data/nq.jsonl", "here.txt"]
    expected = "https://huggingface.co/datasets/sentence-transformers/gooaq"
    assert model_meta(encoder, sources=sources).public_training_data == expected


def test_every_run_evaluates_anew_whatever_random_states_are(encoder: Encoder, data: Path, tmp_path: Path) -> None:
    evaluation, asked = Evaluation([NAME], ["eng"], data, results=tmp_path), []

    def encode(texts: list[str], instruction: str) -> np.ndarray:
        asked.append(len(texts))
        return encoder.encode(texts)

    meta = model_meta(encoder)
    first = evaluation.run(encode, meta)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    assert evaluation.run(encode, meta).tasks == first.tasks
    assert asked == [40, 40, 40, 40]
    [file] = tmp_path.rglob(f"{NAME}.json")
    assert json.loads(file.read_text())["scores"]["test"][0]["main_score"] == pytest.approx(first.tasks[NAME], abs=1e-6)
    assert file.parent.name == meta.revision and file.parent.parent.name == meta.model_name_as_path()


def test_what_took_too_long_last_time_is_not_begun(encoder: Encoder, data: Path) -> None:
    evaluation, pause = Evaluation([NAME], ["eng"], data), [0.3]

    def encode(texts: list[str], instruction: str) -> np.ndarray:
        time.sleep(pause[0])
        return encoder.encode(texts)

    meta = model_meta(encoder)
    assert evaluation.run(encode, meta, time_budget=60).left_out == []
    pause[0] = 100
    assert evaluation.run(encode, meta, time_budget=0.5).left_out == [NAME]


def test_what_never_fits_is_begun_once_and_leaves_no_half_result(encoder: Encoder, data: Path, tmp_path: Path) -> None:
    evaluation, begun = Evaluation([NAME], ["eng"], data, results=tmp_path), []

    def encode(texts: list[str], instruction: str) -> np.ndarray:
        begun.append(len(texts))
        time.sleep(0.3)
        raise OutOfTimeError

    for _ in range(2):
        assert evaluation.run(encode, model_meta(encoder), time_budget=0.2).left_out == [NAME]
    assert len(begun) == 1 and not list(tmp_path.rglob("*.json"))


def test_the_mean_is_over_all_tasks_or_there_is_none() -> None:
    assert Scores({"a": 0.2, "b": 0.4}).mean == pytest.approx(0.3)
    assert Scores({"a": 0.2}, left_out=["b"]).mean is None
    assert Scores().mean is None
