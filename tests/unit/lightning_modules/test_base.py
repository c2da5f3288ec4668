"""What every stage shares: chunks and recomputation change nothing, dropout is a function of (seed, step, rank)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import runs
import stages
import torch
from tiny import adapter_gradients, distance
from torch import Tensor

from lightning_modules.base import EncoderModule
from lightning_modules.contrastive import SimCSE, Supervised
from lightning_modules.mntp import MNTP

STAGES = [MNTP, SimCSE, Supervised]


def step(module: EncoderModule, batch: Any, number: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients of one training step."""
    module.seed_step(number)
    loss = module.loss(batch)
    loss.backward()
    return loss.detach(), adapter_gradients(module)


def settings_of(stage: type[EncoderModule], dropout: float) -> dict[str, float]:
    """SimCSE refuses to start without dropout on attention; one that rounds to none is none."""
    return {"dropout": dropout, "attention_dropout": dropout or (1e-9 if stage is SimCSE else 0.0)}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("chunk_tokens", "recompute"), [(1, True), (30, True), (30, False), (10_000, True)])
def test_chunks_change_neither_loss_nor_gradients(
    stage: type[EncoderModule], chunk_tokens: int, recompute: bool, tiny_llama: Path
) -> None:
    whole = stages.build(stage, tiny_llama, **settings_of(stage, 0))
    chunked = stages.build(stage, tiny_llama, chunk_tokens=chunk_tokens, recompute=recompute, **settings_of(stage, 0))
    batch = stages.batch(whole)
    assert len(batch.texts.chunks(30)) > 2
    loss, gradients = step(whole, batch)
    found, found_gradients = step(chunked, batch)
    assert distance(found, loss) < 1e-6
    assert gradients.keys() == found_gradients.keys() and len(gradients) == 28
    for name in gradients:
        assert distance(found_gradients[name], gradients[name]) < 1e-5, name


@pytest.mark.parametrize("stage", STAGES)
def test_recomputing_replays_dropout_bit_for_bit(stage: type[EncoderModule], tiny_llama: Path) -> None:
    found = []
    for recompute in (False, True):
        module = stages.build(stage, tiny_llama, chunk_tokens=30, recompute=recompute, **settings_of(stage, 0.3))
        found.append(step(module, stages.batch(module)))
    (loss, gradients), (again, recomputed) = found
    assert torch.equal(loss, again)
    runs.assert_equal(recomputed, gradients)
    other, _ = step(module, stages.batch(module), number=4)
    assert not torch.equal(loss, other)  # there is dropout to replay


class OnRankOne(MNTP):
    """As on the second of two ranks."""

    global_rank = 1  # type: ignore[assignment]


def test_dropout_is_a_function_of_seed_step_and_rank(tiny_llama: Path) -> None:
    def loss(stage: type[MNTP] = MNTP, number: int = 3, seed: int = 42) -> float:
        module = stages.build(stage, tiny_llama, dropout=0.3)
        module.seed = seed
        torch.rand(7)  # whatever was drawn before
        return step(module, batch, number)[0].item()

    batch = stages.batch(stages.build(MNTP, tiny_llama))
    same = loss()
    assert loss() == same
    others = [loss(number=4), loss(seed=43), loss(OnRankOne)]
    assert len({same, *others}) == 4


def test_vectors_come_back_in_the_order_of_the_texts(tiny_llama: Path) -> None:
    module = stages.build(MNTP, tiny_llama, chunk_tokens=20).eval()
    with torch.no_grad():
        found = module.embed(module.cut(stages.texts(module)).chunks)
    expected = torch.from_numpy(module.encoder.encode(stages.TEXTS))
    assert distance(found, expected) < 1e-5


def test_accumulated_gradients_are_the_mean_over_batches(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    sgd = lambda parameters: torch.optim.SGD(parameters, lr=1.0)  # noqa: E731

    def make() -> MNTP:
        return stages.build(MNTP, tiny_llama, optimizer=sgd)

    module = make()
    before = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    loaded = stages.data(module, tmp_path / "sentences.txt")
    trainer = stages.trainer(tmp_path, max_steps=1, accumulate_grad_batches=2)
    trainer.fit(module, loaded)
    after = dict(module.named_parameters())
    by_hand, losses = make(), []
    for i in range(2):
        read = loaded.train_dataloader().dataset[i]
        read = stages.MaskedBatch(
            i,
            *stages.mntp.mask(
                read.texts, read.rows, by_hand.masking, by_hand.mask_id, by_hand.tokenizer.vocab_size, 42
            ),
        )
        losses.append(by_hand.loss(read))
        (losses[-1] / 2).backward()
    assert abs(losses[0] - losses[1]) > 0.01
    assert trainer.callback_metrics["train/loss"] == pytest.approx(float(sum(losses) / 2), rel=1e-5)
    gradients = adapter_gradients(by_hand)
    for name, gradient in gradients.items():
        assert distance(before[name] - after[name].detach(), gradient) < 1e-4, name


@pytest.mark.parametrize("settings", [{"chunk_tokens": 0}, {"max_length": 1}])
def test_settings_that_cannot_be_are_refused(settings: dict[str, int], tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"must be at least"):
        MNTP(backbone=stages.BackboneConfig(str(tiny_llama)), **settings)


def test_checkpoints_hold_trainable_weights_only(tiny_llama: Path) -> None:
    module = stages.build(MNTP, tiny_llama)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert len(checkpoint["state_dict"]) == 28 and all("lora_" in name for name in checkpoint["state_dict"])
    module.on_load_checkpoint(checkpoint)
    checkpoint["state_dict"].popitem()
    with pytest.raises(ValueError, match=r"28 trainable tensors; 1 differ.*missing instead of"):
        module.on_load_checkpoint(checkpoint)


def test_a_loss_that_is_no_number_ends_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    module = stages.build(MNTP, tiny_llama, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e38))
    trainer = stages.trainer(tmp_path, max_steps=5)
    with pytest.raises(ValueError, match=r"train/loss must be finite; got nan in step \d"):
        trainer.fit(module, stages.data(module, tmp_path / "sentences.txt"))


def test_gradients_that_are_no_numbers_end_the_run(tiny_llama: Path, tmp_path: Path) -> None:
    """Before they reach the weights; the loss of their step is a number."""
    runs.write_data(tmp_path, rows=16)
    module = stages.build(MNTP, tiny_llama)
    weight = next(p for p in module.parameters() if p.requires_grad)
    weight.register_hook(lambda gradient: gradient / 0)
    with pytest.raises(ValueError, match=r"gradients must be finite; got (nan|inf) in step 1\. Lower"):
        stages.trainer(tmp_path, max_steps=2).fit(module, stages.data(module, tmp_path / "sentences.txt"))
    assert weight.isfinite().all()


def test_weights_that_are_no_numbers_are_not_kept(tiny_llama: Path) -> None:
    """They would take the place of good ones."""
    module = stages.build(MNTP, tiny_llama)
    name, weight = next((n, p) for n, p in module.named_parameters() if p.requires_grad)
    with torch.no_grad():
        weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=f"1 of 28 tensors are not, such as {name}"):
        module.on_save_checkpoint({"state_dict": module.state_dict()})


def test_factors_of_a_checkpoint_are_where_the_model_is(tiny_llama: Path) -> None:
    """Sharded strategies restore behind all moves to a device; checkpoints are read to the CPU."""
    module = stages.build(SimCSE, tiny_llama, attention_dropout=0.1)
    module.encoder.factors = torch.ones(64)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    checkpoint["state_dict"] = {name: tensor.to("meta") for name, tensor in checkpoint["state_dict"].items()}
    module.to("meta").on_load_checkpoint(checkpoint)
    assert module.encoder.factors.device.type == "meta"


def test_factors_of_a_checkpoint_are_used(tiny_llama: Path) -> None:
    module = stages.build(SimCSE, tiny_llama, attention_dropout=0.1)
    module.encoder.factors = torch.arange(64.0)
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    module.encoder.factors = torch.ones(64)
    module.on_load_checkpoint(checkpoint)
    assert torch.equal(module.encoder.factors, torch.arange(64.0))


def test_hooks_of_batches_are_no_warning_in_plain_python() -> None:
    """Lightning tells users that the module's are used, which is meant."""
    script = """
from lightning.pytorch.trainer.connectors.data_connector import _DataHookSelector
from lightning.pytorch import LightningDataModule
from lightning_modules import MNTP
hooks = _DataHookSelector(MNTP.__new__(MNTP), LightningDataModule())
for name in ("on_before_batch_transfer", "transfer_batch_to_device"):
    hooks.get_instance(name)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "overridden" not in done.stderr
