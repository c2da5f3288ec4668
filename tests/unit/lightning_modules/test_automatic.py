"""`recompute: auto` and `activation_checkpointing: auto`: decided by free memory, without another result."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import runs
import stages
import torch
from ranks import run_ranks

from datamodules import Sentences, Source
from lightning_modules import MNTP, SimCSE, Supervised, automatic, host
from lightning_modules.base import EncoderModule
from lightning_modules.sizing.job import Job, read_job
from lightning_modules.sizing.memory import kept_by_token
from lightning_modules.sizing.shape import Adapter, read_shape
from lightning_modules.strategies import ZeRO
from otherside import distributed
from otherside.losses import InfoNCE

SHAPES = Path(__file__).parents[3] / "benchmarks" / "shapes"


def losses(folder: Path, llama: Path, **settings: Any) -> tuple[list[float], str]:
    folder.mkdir()
    runs.write_data(folder, rows=30)
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}}
    config = runs.write_stage(
        folder, "SimCSE", llama, steps=2, **{"trainer.logger": logger, "model.init_args.chunk_tokens": 40, **settings}
    )
    output = runs.run("fit", "--config", config, cwd=folder)
    [metrics] = (folder / "logs").rglob("metrics.csv")
    rows = csv.DictReader(metrics.open())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]], output


def test_a_small_run_computes_nothing_twice_and_says_so(tmp_path: Path, tiny_llama: Path) -> None:
    found, output = losses(tmp_path / "auto", tiny_llama)
    assert "computed again in backward: nothing; the longest batch needs 0.0 GB beside the weights" in output
    asked = {"model.init_args.recompute": True, "model.init_args.backbone.activation_checkpointing": True}
    expected, output = losses(tmp_path / "asked", tiny_llama, **asked)
    assert "computed again" not in output
    assert found == expected  # dropout included


def fitted(llama: Path, folder: Path, **options: Any) -> EncoderModule:
    module = stages.build(SimCSE, llama, chunk_tokens=64, dropout=0.1, **options)
    (folder / "texts.txt").write_text(
        "\n".join(f"the cat saw {i} windows on the other side of the street" for i in range(16))
    )
    data = Sentences(module.tokenizer, [Source(str(folder / "texts.txt"))], global_batch_size=16, max_length=32)
    stages.trainer(folder, max_steps=1).fit(module, data)
    return module


@pytest.mark.parametrize(
    ("free", "kept", "layers"), [(1e12, math.inf, False), (2e6, 119, False), (1e3, 64, True)], ids=str
)
def test_memory_decides(
    free: float, kept: float, layers: bool, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(automatic, "free_memory", lambda device, processes: free)  # the machine's is what it is
    module = fitted(tiny_llama, tmp_path)
    assert (module.kept_tokens, module.backbone_config.activation_checkpointing) == (kept, layers)
    assert module.encoder.backbone.lm.is_gradient_checkpointing == layers


def test_where_the_shape_is_not_known_chunks_are_computed_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: Any) -> None:
        raise ValueError("no Llama")

    monkeypatch.setattr(automatic.Shape, "from_config", unknown)
    module = fitted(tiny_llama, tmp_path)
    assert (module.kept_tokens, module.backbone_config.activation_checkpointing) == (0, False)


def test_what_decides_is_what_size_reads_in_a_yaml(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zero = {"stage": 3, "offload_optimizer": True, "offload_parameters": True, "reduce_bucket_size": 1000}
    module = fitted(tiny_llama, tmp_path, loss=InfoNCE(matryoshka=(16, 32)))
    module.backbone_config = replace(module.backbone_config, activation_checkpointing="auto")  # as before the fit
    module.trainer.accumulate_grad_batches = 2
    devices = module.trainer.num_devices
    monkeypatch.setattr(type(module.trainer), "strategy", ZeRO(**zero))  # type: ignore[arg-type]
    monkeypatch.setattr(type(module.trainer), "num_devices", devices)
    settings: dict[str, Any] = {
        "model.init_args.loss": {"matryoshka": [16, 32]},
        "model.init_args.lora": {"r": 4, "dropout": 0.1},
        "model.init_args.chunk_tokens": 64,
        "model.init_args.backbone.attention_dropout": module.backbone_config.attention_dropout,
        "data.init_args.global_batch_size": 16,
        "data.init_args.max_length": 32,
        "trainer.strategy": {"class_path": "lightning_modules.strategies.ZeRO", "init_args": zero},
        "trainer.accumulate_grad_batches": 2,
    }
    read = read_job(runs.write_stage(tmp_path, "SimCSE", tiny_llama, **settings))
    assert replace(automatic.job_of(module), masked=read.masked) == read  # of MNTP alone


def test_free_memory_of_a_cpu_is_shared() -> None:
    alone, of_four = (automatic.free_memory(torch.device("cpu"), processes) for processes in (1, 4))
    assert of_four == pytest.approx(alone / 4, rel=0.1)
    assert alone < host.total()


def test_ranks_agree_on_the_least() -> None:
    def free() -> float:
        return distributed.least(1e9 * (3 - distributed.rank()), torch.device("cpu"))

    assert run_ranks(2, free) == [2e9, 2e9]


@pytest.mark.parametrize("stage", [MNTP, SimCSE, Supervised])
def test_of_a_batch_as_many_chunks_are_kept_as_fit(stage: type[EncoderModule], tiny_llama: Path) -> None:
    """The gradients are the same, bit for bit: a resumed run may have more memory, or less."""
    module = stages.build(stage, tiny_llama, dropout=0.3, chunk_tokens=24)
    batch = stages.batch(module)
    runs = []
    module.encoder.backbone.register_forward_hook(lambda *_: runs.append(1))

    def gradients(kept: float) -> tuple[list[torch.Tensor], int]:
        module.kept_tokens = kept
        runs.clear()
        module.zero_grad()
        torch.manual_seed(0)
        module.loss(batch).backward()
        return [p.grad.clone() for p in module.parameters() if p.grad is not None], len(runs)

    nearly_all = module.views * len(batch.texts.input_ids) - 1
    (all_kept, once), (some, more), (none, most) = map(gradients, (math.inf, nearly_all, 0))
    assert 2 < once < more < most == 2 * once
    assert all_kept and all(map(torch.equal, all_kept, some)) and all(map(torch.equal, all_kept, none))


def test_what_is_kept_and_what_is_at_work_fits_together(tiny_llama: Path) -> None:
    module = stages.build(MNTP, tiny_llama)
    module.kept_tokens = 100
    assert module._again([40, 30, 30]) == [False] * 3
    assert module._again([40, 30, 31]) == [False, True, True]  # 40, and 40 at work; 30 more would be 110
    assert module._again([101]) == [False]
    with torch.no_grad():
        assert module._again([90, 90]) == [False] * 2


def test_shared_weights_all_or_nothing() -> None:
    job = Job("simcse", read_shape(str(SHAPES / "tiny")), Adapter(), 64, 32, "ddp", chunk_tokens=64)
    assert automatic.kept_tokens(job, -1.0) == 64
    assert automatic.kept_tokens(job, 100 * kept_by_token(job)) == 164
    assert automatic.kept_tokens(replace(job, gpus=2, strategy="fsdp2"), 100 * kept_by_token(job)) == 0
    assert automatic.kept_tokens(replace(job, recompute=False), 0.0) == math.inf
