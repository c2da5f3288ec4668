"""`lightning size`: its arithmetic against real models, and what it says."""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import runs
import torch
from families import FAMILIES, SIZES
from ranks import run_ranks
from tiny import load, random_texts
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lightning_modules import hardware
from lightning_modules.base import EncoderModule
from lightning_modules.cli import main
from lightning_modules.sizing.command import as_trained, table
from lightning_modules.sizing.job import EAGER_UP_TO, Job, Overrides, read_job
from lightning_modules.sizing.memory import (
    SHARE,
    activations,
    base_weights,
    decided,
    gathered_weights,
    held_weights,
    kept_by_token,
    memory,
    vectors,
)
from lightning_modules.sizing.shape import KNOWN, Adapter, Full, Shape, read_shape
from lightning_modules.sizing.speed import Machine, operations, step_time, traffic
from lightning_modules.strategies import ZeRO
from otherside import attention, full
from otherside.adapters import Lora, attach
from otherside.backbone import Backbone, BackboneConfig, fast_dtype
from otherside.lineage import Lineage
from otherside.losses import InfoNCE
from otherside.mntp import Masking
from otherside.quantized import quantize
from otherside.recompute import recomputed

REPOSITORY = Path(__file__).parents[3]
SHAPES = REPOSITORY / "benchmarks" / "shapes"
# Recipes that are not named after their base
BASES = {"quickstart": "smollm2-135m", "evening": "smollm2-135m", "llama-3.1-8b-hub": "llama-3.1-8b"}
STAGES = sorted(file for file in REPOSITORY.glob("configs/*/*.yaml") if "\nmodel:" in file.read_text())
TINY: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
WIDE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
LONGROPE = {"rope_scaling": {"type": "longrope"}}


def built(shape: dict[str, Any], **options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, num_hidden_layers=3, **shape, **options)).requires_grad_(False)


def shape_of(lm: LlamaForCausalLM) -> Shape:
    return Shape.from_config(lm.config.to_dict(), "config.json")


def four_bits(lm: LlamaForCausalLM) -> None:
    for layer in lm.model.layers:
        quantize(layer, lm.dtype)
    lm.is_loaded_in_4bit = True  # PEFT looks for it where an adapter is attached to all layers at once


def a_job(**changes: Any) -> Job:
    """8B on eight GPUs, supervised."""
    llama = read_shape(str(SHAPES / "llama-3.1-8b"))
    settings: dict[str, Any] = {"gpus": 8, "chunk_tokens": 8192, "global_batch": 512, "length": 512, **changes}
    return Job("supervised", llama, settings.pop("adapter", Adapter()), **settings)


class TestParameters:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("biased", [True, False])
    def test_are_those_of_a_built_model(self, tied: bool, biased: bool) -> None:
        lm = built(TINY, tie_word_embeddings=tied, attention_bias=biased, mlp_bias=biased)
        assert shape_of(lm).base == sum(p.numel() for p in lm.parameters())

    def test_of_the_tiny_llama_are_read_from_its_folder(self, tiny_llama: Path) -> None:
        lm = load(tiny_llama).lm
        assert read_shape(str(tiny_llama)).base == sum(p.numel() for p in lm.parameters())

    @pytest.mark.parametrize("settings", [{}, {"r": 3}, {"targets": ["q_proj", "*_proj"]}, {"targets": ["down_proj"]}])
    @pytest.mark.parametrize("dora", [False, True])
    def test_of_the_adapter_are_those_that_train(self, settings: dict[str, Any], dora: bool) -> None:
        lm = built(WIDE)
        shape = shape_of(lm)
        attach(lm, Lora(dora=dora, **settings))
        sized = Adapter(dora=dora, **{k: tuple(v) if k == "targets" else v for k, v in settings.items()})
        assert sized.weights(shape) == sum(p.numel() for p in lm.parameters() if p.requires_grad)

    @pytest.mark.parametrize("frozen", [None, 0, 2])
    @pytest.mark.parametrize("tied", [True, False])
    def test_of_full_fine_tuning_are_those_that_train(self, tied: bool, frozen: int | None) -> None:
        lm = built(WIDE, tie_word_embeddings=tied, attention_bias=True)
        full.train(lm, full.Full(frozen).names(lm))
        sized = Full(frozen_layers=frozen)
        assert sized.weights(shape_of(lm)) == sum(p.numel() for p in lm.parameters() if p.requires_grad)

    @pytest.mark.parametrize(
        ("name", "billions"),
        [("sheared-llama-1.3b", 1.345), ("llama-2-7b", 6.738), ("llama-3.1-8b", 8.030), ("llama-3.1-70b", 70.554)],
    )
    def test_of_the_published_shapes_are_as_published(self, name: str, billions: float) -> None:
        assert read_shape(str(SHAPES / name)).base == pytest.approx(billions * 1e9, rel=1e-3)


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({}, None),
        ({"max_position_embeddings": 256}, 256),
        ({"max_position_embeddings": 256, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, 256),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 4096} | LONGROPE, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3"}}, 131072),
    ],
    ids=str,
)
def test_positions_are_the_most_tokens_of_a_text(config: dict[str, Any], positions: int | None) -> None:
    content = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape = Shape.from_config({**content, "vocab_size": 300, **config}, "it")
    assert shape.positions == positions
    if positions:
        Job("mntp", shape, Adapter(), 4, positions)
        with pytest.raises(ValueError, match=f"texts must have at most {positions} tokens, the positions of the base"):
            Job("mntp", shape, Adapter(), 4, positions + 1)


def kept(backbone: Backbone, lengths: list[int], by_python: bool) -> int:
    """Bytes that live on between forward and backward, but for parameters, buffers, input and output."""
    texts, found = random_texts(lengths), {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage  # held, so that no other tensor gets its address
        return tensor

    before = {id(thing) for thing in gc.get_objects()} if by_python else set()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = backbone(texts)
    if by_python:  # a checkpoint keeps its inputs in a closure
        for thing in gc.get_objects():
            if id(thing) not in before and isinstance(thing, Tensor):
                keep(thing)
    lasting = [*backbone.parameters(), *backbone.buffers(), texts.input_ids, out]
    for tensor in lasting:
        found.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storage.nbytes() for storage in found.values())


def highest(work: Callable[[], Any]) -> int:
    """Most bytes that `work` holds at a time beside those there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler and profiler.profiler.kineto_results
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    taken = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(taken))


def reductions(again: bool) -> list[int]:
    """Of how many tensors, when each of three chunks had gone backward; to be run on all ranks."""
    net = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.GELU()) for _ in range(3)))
    for module in (*net, net):
        fully_shard(module)
    shards, found, done, device = list(net.parameters()), [], [], torch.device("cpu")
    for chunk in torch.randn(3, 4, 8):
        chunk.requires_grad_(True).register_hook(lambda _: found.append(sum(p.grad is not None for p in shards)))
        done.append(recomputed(net, chunk, device, None) if again else net(chunk))
    torch.cat(done).sum().backward()
    return found


class TestActivations:
    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize(("shape", "length"), [(TINY, 64), (WIDE, 200)], ids=["grouped, short", "wide, long"])
    @pytest.mark.parametrize(
        "settings",
        [
            {"dropout": 0.0},
            {"dropout": 0.05},
            {"dropout": 0.05, "share_dropout": False},
            {"dropout": 0.05, "attention_dropout": 0.3},
            {"dropout": 0.0, "activation_checkpointing": True},
            {"dropout": 0.0, "targets": ["q_proj", "v_proj"]},
            {"dropout": 0.0, "even": True},
        ],
        ids=lambda settings: "-".join(f"{k}={v}" for k, v in settings.items()),
    )
    def test_are_what_autograd_keeps(
        self, dtype: str, shape: dict[str, Any], length: int, settings: dict[str, Any]
    ) -> None:
        attention_dropout, even = settings.get("attention_dropout", 0.0), settings.get("even", False)
        checkpointing = settings.get("activation_checkpointing", False)
        lm = built(shape, attention_dropout=attention_dropout).to(getattr(torch, dtype))
        sized = shape_of(lm)
        lora = {k: settings[k] for k in ("dropout", "share_dropout", "targets") if k in settings}
        attach(lm, Lora(r=8, **lora))
        backbone = Backbone(lm, Lineage("a test's")).train()
        if checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        lengths = [length] * 4 if even else [length, length - 1, length - 1, length - 2]
        adapter = Adapter(r=8, **{k: tuple(v) if k == "targets" else v for k, v in lora.items()})
        job = Job(
            *("mntp", sized, adapter),
            **{"global_batch": 4, "length": length, "dtype": dtype, "cuda": False, "even": even},
            **{"attention_dropout": attention_dropout, "activation_checkpointing": checkpointing},
        )
        assert kept(backbone, lengths, by_python=checkpointing) == pytest.approx(activations(job), rel=0.15)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("frozen", [None, 2])
    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_of_full_fine_tuning_are_what_autograd_keeps(
        self, dtype: str, frozen: int | None, checkpointing: bool
    ) -> None:
        lm, computes = built(WIDE), getattr(torch, dtype)
        sized, trained = shape_of(lm), full.Full(frozen).names(lm)
        full.set_types(lm, trained, computes)
        full.train(lm, trained)
        if dtype == "bfloat16":
            full.compute_in(lm, computes)
        backbone = Backbone(lm, Lineage("a test's"), dtype=computes).train()
        if checkpointing:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        settings = {"global_batch": 4, "length": 200, "dtype": dtype, "cuda": False}
        job = Job("mntp", sized, Full(frozen_layers=frozen), activation_checkpointing=checkpointing, **settings)
        found = kept(backbone, [200, 199, 199, 198], by_python=checkpointing)
        assert found == pytest.approx(activations(job), rel=0.15)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("settings", [{"dropout": 0.0}, {"dropout": 0.05}], ids=str)
    def test_of_qlora_are_what_autograd_keeps(self, dtype: str, settings: dict[str, Any]) -> None:
        lm = built(WIDE).to(getattr(torch, dtype))
        sized = shape_of(lm)
        four_bits(lm)
        attach(lm, Lora(r=128, **settings))  # so large that its rounded copies count
        job = Job(
            *("mntp", sized, Adapter(r=128, **settings)),
            **{"global_batch": 4, "length": 40, "dtype": dtype, "quantized": "nf4", "cuda": False},
        )
        found = kept(Backbone(lm, Lineage("a test's")).train(), [40, 39, 39, 38], by_python=False)
        assert found == pytest.approx(activations(job), rel=0.15)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.kind in KNOWN])
def test_relatives_keep_what_a_llama_does(family: str, dtype: str) -> None:
    config = AutoConfig.for_model(FAMILIES[family].kind, **{**SIZES, **FAMILIES[family].settings})
    lm = AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    job = Job(
        *("mntp", Shape.from_config(config.to_dict(), "it"), Adapter(r=8)),
        **{"global_batch": 4, "length": 64, "dtype": dtype, "cuda": False},
    )
    attach(lm, Lora(r=8))
    backbone = Backbone(lm, Lineage("a test's")).train()
    assert kept(backbone, [64, 63, 63, 62], by_python=False) == pytest.approx(activations(job), rel=0.15)


class TestMemory:
    def test_a_larger_chunk_keeps_more_and_never_more_than_the_batch(self) -> None:
        peaks = [activations(a_job(chunk_tokens=tokens)) for tokens in (512, 4096, 16384)]
        assert peaks == sorted(peaks) and peaks[0] < peaks[1] < peaks[2]
        assert activations(a_job(chunk_tokens=10**9)) == activations(a_job(chunk_tokens=None))

    def test_chunks_save_nothing_without_recomputing(self) -> None:
        whole, chunked = a_job(chunk_tokens=None), a_job(chunk_tokens=512, recompute=False)
        assert activations(chunked) >= activations(whole)

    def test_activation_checkpointing_takes_less(self) -> None:
        assert kept_by_token(a_job(activation_checkpointing=True)) < kept_by_token(a_job()) / 10

    def test_auto_is_the_cheapest_that_fits(self) -> None:
        ways = [(False, False), (False, True), (True, False), (True, True)]  # layers, chunks: cheapest first
        open_ = a_job(chunk_tokens=2048, recompute="auto", activation_checkpointing="auto")
        needs = [
            sum(memory(replace(open_, activation_checkpointing=layers, recompute=chunks)).values())
            for layers, chunks in ways
        ]
        for i, need in enumerate(needs):
            found = decided(open_, (need + 1 - held_weights(open_)) / SHARE)
            assert (found.activation_checkpointing, found.recompute) == ways[
                min(k for k in range(4) if needs[k] <= need)
            ]
            assert i or found.activation_checkpointing is found.recompute is False
        nothing_fits = decided(open_, 0)
        assert sum(memory(nothing_fits).values()) == min(needs)

    def test_size_leaves_as_much_free_as_training_does(self) -> None:
        open_ = a_job(chunk_tokens=2048)
        for share, recompute in ((0.89, False), (0.91, True)):
            beside = sum(memory(replace(open_, recompute=False)).values()) - held_weights(open_)
            machine = Machine(memory=(held_weights(open_) + beside / share) / 1e9, reserve=1e-9)
            assert as_trained(open_, machine).recompute is recompute

    def test_what_is_asked_for_is_not_changed(self) -> None:
        for layers, chunks in itertools.product((False, True), repeat=2):
            asked = a_job(chunk_tokens=2048, recompute=chunks, activation_checkpointing=layers)
            assert decided(asked, 0) == decided(asked, 1e15) == asked

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_four_bits_are_what_a_model_holds(self, dtype: str) -> None:
        lm = built(WIDE).to(getattr(torch, dtype))
        job = replace(a_job(gpus=1, dtype=dtype, quantized="nf4"), shape=shape_of(lm))
        four_bits(lm)
        states = [p.quant_state for p in lm.parameters() if hasattr(p, "quant_state")]
        constants = [tensor for state in states for tensor in (state.absmax, state.state2.absmax)]
        held = sum(tensor.nbytes for tensor in (*lm.parameters(), *constants))
        assert base_weights(job) == pytest.approx(held)

    def test_four_bits_leave_an_8b_base_a_third_of_its_size(self) -> None:
        half, four = (memory(a_job(quantized=how))["base weights"] for how in (None, "nf4"))
        assert half == 2 * a_job().shape.base
        assert four == pytest.approx(5.70e9, rel=0.01)

    @pytest.mark.parametrize("changes", [{"strategy": "zero3"}, {"adapter": Full()}])
    def test_four_bits_are_refused_where_training_refuses_them(self, changes: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"backbone.quantized needs an adapter, and ranks that hold"):
            a_job(quantized="nf4", **changes)

    @pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
    def test_shards_of_the_base_divide_by_the_ranks(self, strategy: str) -> None:
        eight, sixteen = (memory(a_job(strategy=strategy, nodes=nodes))["base weights"] for nodes in (1, 2))
        assert eight == 2 * sixteen == 2 * a_job().shape.base / 8

    def test_optimizer_divides_under_every_strategy_but_ddp(self) -> None:
        whole = memory(a_job())["optimizer"]
        for strategy in ("zero1", "zero2", "zero3", "fsdp2"):
            assert memory(a_job(strategy=strategy))["optimizer"] == whole / 8
        assert memory(a_job(strategy="zero2", offload_optimizer=True))["optimizer"] == 0

    def test_one_rank_gathers_nothing(self) -> None:
        assert gathered_weights(a_job(gpus=1, strategy="fsdp2")) == 0 < gathered_weights(a_job(strategy="fsdp2"))

    def test_vectors_grow_with_the_global_batch_not_with_the_ranks(self) -> None:
        small, large = vectors(a_job(nodes=8)), vectors(a_job(global_batch=65536, nodes=128))
        assert large == pytest.approx(128 * small, rel=0.1)

    def test_rows_add_up_to_the_larger_of_loss_and_chunk(self) -> None:
        rows = memory(a_job(global_batch=65536, nodes=128))
        loss = rows["vectors of all ranks"] + rows["logits of the loss"]
        chunk = rows["activations kept"] + rows["activations at work"] + rows["gradients of one chunk"]
        fixed = sum(rows[name] for name in ("base weights", "trained weights", "gradients", "optimizer"))
        assert sum(rows.values()) == pytest.approx(fixed + max(loss, chunk))

    def test_full_fine_tuning_needs_sixteen_bytes_a_weight(self) -> None:
        """The weight, its gradient and Adam's two moments, in float32; ranks share them under fsdp2."""
        whole = memory(a_job(adapter=Full(), strategy="fsdp2", chunk_tokens=None))
        trained = Full().weights(a_job().shape)
        shared = sum(whole[name] for name in ("trained weights", "gradients", "optimizer"))
        assert shared == pytest.approx(16 * trained / 8, rel=0.01)
        assert whole["base weights"] == 2 * (a_job().shape.base - trained) / 8
        frozen = memory(a_job(adapter=Full(frozen_layers=16), strategy="fsdp2"))
        assert frozen["optimizer"] < 0.51 * whole["optimizer"]

    @pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp2"])
    def test_gradients_of_several_chunks_are_whole_on_every_rank(self, strategy: str) -> None:
        chunks, one = (
            memory(a_job(adapter=Full(), strategy=strategy, chunk_tokens=tokens))["gradients"]
            for tokens in (8192, None)
        )
        assert chunks - one == 4 * Full().weights(a_job().shape)

    @pytest.mark.parametrize("again", [False, True])
    def test_sharded_gradients_are_reduced_once_behind_the_last_chunk(self, again: bool) -> None:
        """What the arithmetic rests on."""
        assert run_ranks(2, reductions, again)[0] == [0, 0, 6]

    @pytest.mark.parametrize("changes", [{}, {"chunk_tokens": 4}, {"chunk_tokens": 4, "recompute": False}], ids=str)
    def test_gradients_are_those_that_backward_holds(self, changes: dict[str, Any]) -> None:
        lm = built(WIDE).requires_grad_(True)
        trained = [p for p in lm.model.parameters() if p.requires_grad]
        job = Job("mntp", shape_of(lm), Full(), 4, 4, dtype="float32", cuda=False, **{"recompute": True, **changes})
        ids = torch.arange(16).reshape(job.chunks, -1, 4)

        def run(chunk: Tensor) -> Tensor:
            return lm.model(chunk).last_hidden_state

        def backward() -> None:
            done = [recomputed(run, part, part.device, trained) if job.recomputes else run(part) for part in ids]
            torch.cat(done).sum().backward()

        found = memory(job)
        expected = found["gradients"] + found["gradients of one chunk"]
        assert highest(backward) == pytest.approx(expected, rel=0.3)

    def test_adam_on_gpus_takes_a_copy_of_all_weights(self) -> None:
        trained = 4 * Full().weights(a_job().shape)
        full = a_job(adapter=Full(), gpus=1)
        assert memory(full)["optimizer at work"] == trained
        assert memory(replace(full, cuda=False))["optimizer at work"] == 0
        assert memory(replace(full, gpus=8, strategy="zero2"))["optimizer at work"] == trained / 8
        assert memory(replace(full, gpus=8, strategy="fsdp2"))["optimizer at work"] == 0

    def test_adams_copy_is_what_torch_takes(self) -> None:
        weights = [torch.zeros(64, 1024, requires_grad=True) for _ in range(8)]
        for weight in weights:
            weight.grad = torch.ones_like(weight)
        optimizer = torch.optim.AdamW(weights, weight_decay=0.0, foreach=True)
        optimizer.step()
        assert highest(optimizer.step) / (8 * 64 * 1024) == pytest.approx(4, abs=0.01)


class TestSpeed:
    def test_weights_that_are_trained_have_a_gradient(self) -> None:
        plain = a_job(chunk_tokens=None, gpus=64, adapter=Full())
        half = a_job(chunk_tokens=None, gpus=64, adapter=Full(frozen_layers=16))
        once = 2 * plain.shape.matrices * plain.tokens
        assert operations(plain) == pytest.approx(3 * once, rel=0.1)
        assert operations(half) == pytest.approx(2 * once, rel=0.1)

    def test_frozen_weights_have_no_gradient(self) -> None:
        """Forward and backward cost 2 + 2 operations a weight and token, not 2 + 4; a recomputed chunk 2 more."""
        plain, again = a_job(chunk_tokens=None, gpus=64), a_job(gpus=64)
        once = 2 * plain.shape.matrices * plain.tokens
        assert operations(plain) == pytest.approx(2 * once, rel=0.1)
        assert operations(again) == pytest.approx(3 * once, rel=0.1)

    def test_one_rank_sends_nothing(self) -> None:
        assert traffic(a_job(gpus=1)) == []

    def test_only_sharded_strategies_send_the_base_once_a_pass_and_chunk(self) -> None:
        sent = {part.what: part.size for part in traffic(a_job(strategy="fsdp2", chunk_tokens=16384))}
        job = a_job(chunk_tokens=16384)
        assert job.chunks == 6
        assert sent["weights, gathered"] == pytest.approx(18 * 2 * job.shape.base * 7 / 8, rel=0.1)
        assert "weights, gathered" not in {part.what for part in traffic(job)}

    def test_zero2_reduces_the_gradients_of_each_accumulated_batch(self) -> None:
        for strategy, times in (("ddp", 1), ("zero1", 1), ("zero2", 2.5), ("zero3", 4)):
            once, four = (traffic(a_job(strategy=strategy, accumulate=n)) for n in (1, 4))
            sizes = [part.size for parts in (once, four) for part in parts if part.what == "gradients"]
            assert sizes[1] == pytest.approx(times * sizes[0])

    def test_more_bandwidth_and_more_operations_a_second_are_faster(self) -> None:
        job, slow = a_job(strategy="fsdp2", nodes=2), Machine(flops=1e14, bandwidth=5)
        assert step_time(job, Machine()).total < step_time(job, slow).total


class TestSettings:
    def test_defaults_are_those_of_the_stages(self, tmp_path: Path, tiny_llama: Path) -> None:
        """The command repeats them, so that it need not import torch."""
        lora, masking = Lora(), Masking()
        assert Adapter() == Adapter(lora.r, lora.dropout, tuple(lora.targets), lora.dora, lora.share_dropout)
        stage = inspect.signature(EncoderModule.__init__).parameters
        job = a_job()
        assert (stage["chunk_tokens"].default, stage["recompute"].default) == (Job.chunk_tokens, Job.recompute)
        assert (Job.masked, Job.symmetric) == (masking.probability, InfoNCE().symmetric)
        config = BackboneConfig("any")
        assert (job.kernel, job.attention_dropout) == (config.kernel, config.attention_dropout)
        assert BackboneConfig.dtype == "auto" and job.dtype == "bfloat16", "auto is what GPUs in question make of it"
        assert EAGER_UP_TO == attention.EAGER_UP_TO

    def test_buckets_are_those_of_our_zero(self) -> None:
        pytest.importorskip("deepspeed")
        config = ZeRO().config
        assert isinstance(config, dict)
        assert config["zero_optimization"]["reduce_bucket_size"] == a_job().bucket

    def test_options_replace_the_yaml_and_reach_what_it_includes(self, tmp_path: Path, tiny_llama: Path) -> None:
        (tmp_path / "nodes.yaml").write_text("trainer: {num_nodes: 2, accumulate_grad_batches: 3}")
        stage = runs.write_stage(tmp_path, "Supervised", tiny_llama, **{"trainer.devices": 2, "include": "nodes.yaml"})
        job = read_job(stage)
        assert (job.stage, job.ranks, job.length, job.global_batch, job.accumulate) == ("supervised", 4, 32, 8, 3)
        assert (job.adapter.r, job.dtype, job.cuda) == (4, "float32", False)
        options = Overrides(gpus=4, strategy="fsdp2", global_batch=64, length=16, chunk_tokens=48, lora_r=8)
        job = read_job(stage, options)
        assert (job.ranks, job.strategy, job.global_batch, job.length) == (8, "fsdp2", 64, 16)
        assert (job.chunk, job.chunks, job.adapter.r) == (48, 8, 8)

    def test_four_bits_are_read(self, tmp_path: Path, tiny_llama: Path) -> None:
        stage = runs.write_stage(tmp_path, "MNTP", tiny_llama, **{"model.init_args.backbone.quantized": "nf4"})
        assert read_job(stage).quantized == "nf4"
        assert "base in nf4" in table(read_job(stage), Machine())[0]

    def test_all_negatives_are_counted_in_the_data(self, tmp_path: Path, tiny_llama: Path) -> None:
        rows = [{"query": "a", "positive": "b", "negatives": ["c"] * n} for n in (0, 3, 1)]
        (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {"query": "bad"}]))
        sources = [{"path": str(tmp_path / "rows.jsonl")}]
        settings: dict[str, Any] = {"data.init_args.sources": sources, "data.init_args.negatives": None}
        job = read_job(runs.write_stage(tmp_path, "Supervised", tiny_llama, **settings))
        assert (job.negatives, job.recompute, job.activation_checkpointing) == (3, True, False), "as training decides"
        assert "note: data.negatives: null takes all hard negatives of a row; 3 is assumed" in "\n".join(
            table(job, Machine())
        )
        settings["data.init_args.sources"] = [{"path": "elsewhere/*.jsonl"}]
        job = read_job(runs.write_stage(tmp_path, "Supervised", tiny_llama, **settings))
        assert job.negatives == 1 and "so 1 is assumed. Set data.negatives." in job.notes[0]
        settings["data.init_args.negatives"] = 2
        assert not read_job(runs.write_stage(tmp_path, "Supervised", tiny_llama, **settings)).notes

    @pytest.mark.parametrize("devices", ["auto", -1])
    def test_all_gpus_of_a_node_are_said_to_be_one(self, devices: Any, tmp_path: Path, tiny_llama: Path) -> None:
        settings = {"trainer.devices": devices, "trainer.accelerator": "gpu"}
        stage = runs.write_stage(tmp_path, "MNTP", tiny_llama, **settings)
        [note] = read_job(stage).notes
        assert (
            note
            == f"trainer.devices: {devices} takes all GPUs of a node; 1 is assumed. Pass --gpus for another number."
        )
        assert not read_job(stage, Overrides(gpus=1)).notes
        assert not read_job(runs.write_stage(tmp_path, "MNTP", tiny_llama)).notes

    def test_lora_null_is_full_fine_tuning(self, tmp_path: Path, tiny_llama: Path) -> None:
        settings = {"model.init_args.lora": None, "model.init_args.frozen_layers": 1}
        stage = runs.write_stage(tmp_path, "Supervised", tiny_llama, **settings)
        assert read_job(stage).adapter == Full(frozen_layers=1)
        assert read_job(stage, Overrides(lora_r=8)).adapter == Adapter(r=8)

    @pytest.mark.parametrize("file", STAGES, ids=lambda f: f"{f.parent.name}/{f.stem}")
    def test_every_recipe_can_be_sized(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        main(["size", str(file), "--model", str(SHAPES / "sheared-llama-1.3b"), "--gpus", "8"])
        assert "fit in 80 GB" in capsys.readouterr().out.replace("fits", "fit")

    def test_a_recipe_for_cpus_is_sized_for_this_machine(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Of which processes have a part each; --gpus is for others."""
        told = []
        for more in ([], ["--nodes", "2"], ["--gpus", "1"]):
            main(["size", str(REPOSITORY / "configs" / "quickstart" / "mntp.yaml"), "--json", *more])
            told.append(json.loads(capsys.readouterr().out))
        here, nodes, gpu = told
        machine, memory = here["machine"], psutil.virtual_memory().total / 1e9
        assert machine["memory"] <= memory and machine["flops"] < 1e14 and here["job"]["dtype"] == fast_dtype()
        assert nodes["machine"]["memory"] == machine["memory"]
        assert gpu["machine"]["memory"] == 80 and gpu["job"]["cuda"] and gpu["job"]["dtype"] == "bfloat16"

    @pytest.mark.parametrize("file", STAGES, ids=lambda f: f"{f.parent.name}/{f.stem}")
    def test_every_recipe_fits_where_its_header_says(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shape = BASES.get(file.parent.name, file.parent.name)
        [header] = re.findall("^# Hardware: .*", file.read_text(), re.MULTILINE)
        gpus, memory_of_each = re.findall(r"(\d+) (?:GPUs|GB)", f"1 GPUs {header}")[-2:]
        devices = [] if "CPU cores" in header else ["--gpus", gpus]
        main(["size", str(file), "--model", str(SHAPES / shape), *devices, "--gpu_memory", memory_of_each])
        assert capsys.readouterr().out.splitlines()[-1].startswith(f"fits in {memory_of_each} GB")

    @pytest.mark.parametrize(
        "encoder", ["runs/first/encoder", "./runs/first/encoder", f"{Path.cwd()}/runs/first/encoder"]
    )
    def test_a_stage_not_trained_yet_has_its_recipes_base(self, encoder: str, tmp_path: Path, tiny_llama: Path) -> None:
        """However its path is written."""
        runs.write_stage(tmp_path, "MNTP", tiny_llama, root="runs/first")
        stage = runs.write_stage(tmp_path, "Supervised", encoder)
        assert read_job(stage).shape == read_shape(str(tiny_llama))


class TestCommand:
    def size(self, *options: str | Path) -> list[str]:
        config = REPOSITORY / "configs/llama-3.1-8b/supervised.yaml"
        return ["size", str(config), "--model", str(SHAPES / "llama-3.1-8b"), *map(str, options)]

    def test_says_that_it_fits(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(self.size("--nodes", 1, "--gpus", 8))
        out = capsys.readouterr().out
        assert "8.03B base" in out and "base weights" in out and out.splitlines()[-1].startswith("fits in 80 GB: ")

    def test_says_what_to_change_first_and_that_helps(self, capsys: pytest.CaptureFixture[str]) -> None:
        tight = ["--gpus", 8, "--gpu_memory", 24]
        main(self.size(*tight))
        assert "does not fit in 24 GB" in (out := capsys.readouterr().out)
        assert "It fits with chunk_tokens 4096: " in out
        main(self.size(*tight, "--chunk_tokens", 4096))
        assert "\nfits in 24 GB" in capsys.readouterr().out

    def test_says_that_a_gpu_gets_too_few_tokens(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(self.size("--gpus", 8, "--global_batch", 32, "--length", 128))
        out = capsys.readouterr().out
        assert "each gets 1,536. Take as few as 1 of the 8 GPUs (the same training), or 6 times the data.glo" in out
        main(self.size("--gpus", 8, "--global_batch", 32 * 6, "--length", 128))
        assert "note:" not in capsys.readouterr().out
        main(self.size("--gpus", 8, "--global_batch", 32, "--length", 128, "--json"))
        assert "each gets 1,536" in json.loads(capsys.readouterr().out)["advice"]

    @pytest.mark.parametrize("file", STAGES, ids=lambda f: f"{f.parent.name}/{f.stem}")
    def test_every_recipe_keeps_its_gpus_busy(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """On as many as its header names."""
        shape = BASES.get(file.parent.name, file.parent.name)
        [header] = re.findall("^# Hardware: .*", file.read_text(), re.MULTILINE)
        gpus = re.findall(r"(\d+) GPUs", f"1 GPUs {header}")[-1]
        devices = [] if "CPU cores" in header else ["--gpus", gpus]
        main(["size", str(file), "--model", str(SHAPES / shape), *devices])
        assert "note:" not in capsys.readouterr().out

    def test_float32_has_its_own_peak(
        self,
        tmp_path: Path,
        tiny_llama: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """On GPUs torch's products of float32 are no TF32; on CPUs the type is the one that is measured."""
        assert torch.get_float32_matmul_precision() == "highest"
        stage, measured = runs.write_stage(tmp_path, "MNTP", tiny_llama), []
        monkeypatch.setattr(hardware, "peak", lambda device, dtype: measured.append(dtype) or 1e11)
        monkeypatch.setattr(hardware, "fast_dtype", lambda: "bfloat16")
        for gpus, flops in ((["--gpus", "1"], 67e12), ([], 1e11)):
            main(["size", str(stage), "--json", *gpus])
            found = json.loads(capsys.readouterr().out)
            assert found["job"]["dtype"] == "float32" and found["machine"]["flops"] == flops
        assert measured == [torch.float32]

    def test_says_when_nothing_helps(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(self.size("--gpu_memory", 6))
        assert "Most is for base weights: take more GPUs" in capsys.readouterr().out

    def test_json_holds_the_same(self, capsys: pytest.CaptureFixture[str]) -> None:
        main(self.size("--gpus", 8, "--json", "true"))
        found = json.loads(capsys.readouterr().out)
        assert found["fits"] and found["parameters"]["base"] == 8_030_261_248
        assert found["needed_gb"] == pytest.approx(sum(found["memory_bytes"].values()) / 1e9 + 4)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--nodes", "0"], "--nodes must be a whole number of at least 1; got 0"),
            (["--gpus", "0"], "--gpus must be a whole number of at least 1; got 0"),
            (["--chunk_tokens", "0"], "--chunk_tokens must be a whole number of at least 1; got 0"),
            (["--lora_r", "0"], "--lora_r must be a whole number of at least 1; got 0"),
            (["--gpus", "many"], "gpus: must be int"),
            (["--strategy", "zero9"], "--strategy must be one of ddp, zero1, zero2, zero3, fsdp2; got 'zero9'"),
            (
                ["--nodes", "1024", "--gpus", "8"],
                "each of the 8192 ranks; got 512 rows. Pass --global_batch 8192 or more",
            ),
            (["--model", "nowhere/at-all"], "could not be read from the hub. Name a folder"),
            (["--model", "./nowhere"], "nothing is at nowhere"),
            (["--utilisation", "40"], "--utilisation must be a share of at most 1; got 40"),
            (["--gpu_memory", "0"], "--gpu_memory must be positive; got 0"),
            (["--speed", "9"], "there is no option --speed"),
        ],
    )
    def test_bad_input_is_one_line(self, options: list[str], said: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(self.size("--gpus", 8, *options))
        assert "\n" not in str(stopped.value) and said in str(stopped.value)

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            ("model: {class_path: a.Stage}", "model.class_path must be a stage (MNTP, SimCSE, Supervised); got Stage"),
            ("model: 3", "model must hold settings by name"),
            ("model: {class_path: x.MNTP}", "backbone.model must be set"),
        ],
    )
    def test_a_bad_yaml_is_one_line(self, tmp_path: Path, content: str, said: str) -> None:
        (tmp_path / "stage.yaml").write_text(content)
        with pytest.raises(SystemExit, match=said.replace("(", r"\(").replace(")", r"\)")):
            main(["size", str(tmp_path / "stage.yaml")])

    def test_a_model_that_is_no_llama_is_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"d_model": 768}')
        with pytest.raises(SystemExit, match="must describe a Llama; it has no hidden_size, intermediate_size"):
            main(self.size("--model", tmp_path))
