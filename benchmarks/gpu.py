"""One command for a CUDA machine: is it right, and how fast is it?

    python benchmarks/gpu.py [--shapes smollm2-135m sheared-llama-1.3b llama-3.1-8b] [--out benchmarks/reports]
    python benchmarks/gpu.py --device cpu --shapes tiny --dtypes float32 --tokens 256 --steps 1      # tries it all

Right: for each kernel the mask self-test, packed texts against single ones and against the same model in float32 on
the CPU, the adapter's gradients, and dropout where chunks are computed again. Fast: real tokens a second, share of the
measured matmul peak and peak memory of MNTP and contrastive steps, chunked or not, with and without activation
checkpointing; sentence-transformers' loss on the same weights and texts in the same run. Weights are random: shapes
need no download. In Lightning's loop: steps of the published recipes, from a folder, as `dry_gpu.py` models them: their
time, memory beside what `lightning size` says, host synchronisations and kernels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import torch
from gpu_steps import Row, free, held, looped, wait
from harness import command, machine
from recipe_steps import SHAPES, STAGES, published
from torch import Tensor
from transformers import AutoConfig, LlamaForCausalLM

from lightning_modules.hardware import peak
from lightning_modules.mntp import MaskedBatch
from lightning_modules.sizing.shape import Shape
from lightning_modules.sizing.speed import of_texts
from otherside import adapters, mntp, pooling
from otherside.adapters import Lora
from otherside.backbone import Backbone
from otherside.batching import Chunks, Packed
from otherside.lineage import Lineage
from otherside.losses import InfoNCE
from otherside.mntp import Masking
from otherside.recompute import recomputed

PARTS = ("right", "fast", "looped")
KERNELS = ("eager", "sdpa", "varlen")
FIRST = 100  # token ids below are left to special tokens


def build(shape: str, dtype: torch.dtype, device: str, dropout: float = 0.0, kernel: Any = "auto") -> Backbone:
    """A Llama with random weights and an adapter that does something."""
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(SHAPES / shape, dtype=dtype)
    with torch.device(device):
        lm = LlamaForCausalLM(config).to(dtype).requires_grad_(False)
    adapters.attach(lm, Lora(dropout=dropout))
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return Backbone(lm.to(device), Lineage("random"), kernel=kernel).train()


def texts_of(lengths: list[int], vocabulary: int, device: str) -> Packed:
    """Texts of random tokens."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(min(FIRST, vocabulary // 2), vocabulary, (sum(lengths),), generator=generator)
    none = torch.zeros(len(lengths), dtype=torch.long)
    return Packed(ids, torch.tensor(lengths), none, none).to(device)


def mixed(tokens: int, longest: int) -> list[int]:
    """Lengths of a quarter of `longest` to `longest`, about `tokens` together; an even number of texts."""
    draw, lengths = random.Random(0), []
    while sum(lengths) < tokens or len(lengths) % 2:
        lengths.append(draw.randint(longest // 4, longest))
    return lengths


def gradients(backbone: Backbone, texts: Packed) -> tuple[Tensor, Tensor]:
    """Vectors (N, D), and the adapter's gradient of a loss on them as one long vector; float32 on the CPU."""
    backbone.zero_grad()
    vectors = pooling.pool(backbone(texts), texts, "mean")
    weights = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(1)).to(vectors.device)
    (torch.nn.functional.normalize(vectors, dim=1) * weights).sum().backward()
    flat = torch.cat([p.grad.float().flatten() for p in backbone.parameters() if p.grad is not None])
    return vectors.detach().float().cpu(), flat.cpu()


def difference(found: Tensor, expected: Tensor) -> float:
    """Relative, in the 2-norm."""
    return ((found - expected).norm() / expected.norm()).item()


def correctness(shape: str, dtype: torch.dtype, device: str) -> Iterator[Row]:
    """A row for each kernel that runs here."""
    reference = build(shape, dtype, "cpu", kernel="eager").float()
    texts = texts_of([17, 5, 33, 64, 1, 40], reference.lm.config.vocab_size, "cpu")
    expected, gradient = gradients(reference, texts)
    for kernel in KERNELS:
        row: Row = {"kernel": kernel, "dtype": str(dtype).removeprefix("torch.")}
        if kernel == "varlen" and (device == "cpu" or dtype == torch.float32):
            continue
        backbone = deepcopy(reference).to(dtype)
        for name, parameter in backbone.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
        backbone.to(device).kernel = kernel
        backbone.self_test()
        vectors, found = gradients(backbone, texts.to(device))
        with torch.no_grad():
            single = [backbone(texts.select(torch.tensor([i])).to(device)).float().mean(0) for i in range(len(texts))]
        row["packed : single"] = difference(vectors, torch.stack(single).cpu())
        row["vectors : CPU float32"] = difference(vectors, expected)
        row["gradient : CPU float32"] = difference(found, gradient)
        limit = 1e-4 if dtype == torch.float32 else 0.1
        row["right"] = all_below(limit, row)
        yield row


def replayed(shape: str, dtype: torch.dtype, device: str) -> Row:
    """Whether chunks that are computed again draw the dropout that they drew before."""
    backbone = build(shape, dtype, device, dropout=0.3)
    texts = texts_of([17, 5, 33, 64, 1, 40], backbone.lm.config.vocab_size, device)
    found = []
    for again in (False, True):
        torch.manual_seed(0)
        backbone.zero_grad()
        contrastive_step(backbone, texts, 64, again).backward()
        found.append(torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None]).cpu())
    row: Row = {"kernel": "auto, dropout", "dtype": str(dtype).removeprefix("torch.")}
    row["recomputed : kept"] = difference(*found)
    return row | {"right": all_below(1e-3 if dtype == torch.float32 else 0.02, row)}


def all_below(limit: float, row: Row) -> bool:
    """Whether every difference is a number below `limit`; NaN is not."""
    return all(value < limit for value in row.values() if isinstance(value, float))


def mntp_step(backbone: Backbone, texts: Packed, budget: int | None) -> Tensor:
    """As the stage does, in chunks of `budget` tokens that are recomputed."""
    rows, vocabulary, device = torch.arange(len(texts)), backbone.lm.config.vocab_size, texts.input_ids.device
    masked = mntp.mask(texts.to("cpu"), rows, Masking(), FIRST, vocabulary, seed=0)
    batch = MaskedBatch(0, *masked).cut(budget).to(device)

    def states(chunk: tuple[Packed, Tensor]) -> Tensor:
        part, where = chunk
        return backbone(part)[where]

    found = _chunked(backbone, states, list(zip(batch.chunks.parts, batch.predicting, strict=True)), device)
    return mntp.loss(torch.cat(found), batch.targets, backbone.logits)


def contrastive_step(backbone: Backbone, texts: Packed, budget: int | None, again: bool = True) -> Tensor:
    """As the stage does; the first half of the texts are queries."""
    device = texts.input_ids.device
    chunks = Chunks.of(texts.to("cpu"), budget).to(device)
    found = _chunked(backbone, lambda part: pooling.pool(backbone(part), part, "mean"), chunks.parts, device, again)
    queries, positives = torch.cat(found)[chunks.places].chunk(2)
    return InfoNCE()(queries, positives, queries[:0])


def _chunked(
    backbone: Backbone, run: Callable[[Any], Tensor], chunks: list[Any], device: torch.device, again: bool = True
) -> list[Tensor]:
    trained = [p for p in backbone.parameters() if p.requires_grad]
    return [recomputed(run, chunk, device, trained) if again and len(chunks) > 1 else run(chunk) for chunk in chunks]


def measure(step: Callable[[], Tensor], device: str, steps: int, before: float) -> Row:
    """Seconds of a step (median; the first two do not count) and peak GB on the device above those held `before`."""
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(steps + 2):
        wait(device)
        begun = time.perf_counter()
        step().backward()
        wait(device)
        seconds.append(time.perf_counter() - begun)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return {"seconds": statistics.median(seconds[2:]), "GB": memory - before}


def speed(shape: str, dtype: torch.dtype, settings: argparse.Namespace) -> Iterator[Row]:
    """A row for each way to run a step."""
    device = settings.device
    top = peak(torch.device(device), dtype)
    free()
    before = held(device)
    backbone = build(shape, dtype, device, settings.dropout)
    sizes = Shape.from_config(backbone.lm.config.to_dict(), shape)
    trained = sum(p.numel() for p in backbone.parameters() if p.requires_grad)
    tasks = [("mntp", [512] * max(1, settings.tokens // 512), mntp_step)]
    tasks += [(f"contrastive, up to {n}", mixed(settings.tokens, n), contrastive_step) for n in (128, 512)]
    for name, lengths, step in tasks:
        texts = texts_of(lengths, backbone.lm.config.vocab_size, device)
        for checkpointing in (False, True):
            for budget in (None, settings.tokens // 4):
                if checkpointing and budget:
                    continue  # a chunk is a checkpoint already
                switch = backbone.lm.gradient_checkpointing_enable if checkpointing else None
                (switch({"use_reentrant": False}) if switch else backbone.lm.gradient_checkpointing_disable())
                row: Row = {"shape": shape, "task": name, "dtype": str(dtype).removeprefix("torch.")}
                row["memory"] = (
                    "layers recomputed" if checkpointing else f"chunks of {budget}" if budget else "all kept"
                )
                try:
                    row |= measure(lambda s=step, t=texts, b=budget: s(backbone, t, b), device, settings.steps, before)
                except torch.OutOfMemoryError:
                    yield row | {"GB": "out of memory"}
                    free()
                    continue
                squares = sum(length**2 for length in lengths)
                needed = of_texts(sizes, trained, sum(lengths), squares, 0.2 if name == "mntp" else 0.0)
                row["tokens / s"] = sum(lengths) / row["seconds"]
                row["utilisation"] = needed / row["seconds"] / top
                yield row
        if name != "mntp" and sizes.base * 2 < settings.peer_up_to * 1e9:
            backbone.lm.gradient_checkpointing_disable()
            yield from peer(backbone, shape, name, texts, dtype, settings)
            free()


def peer(
    backbone: Backbone, shape: str, name: str, texts: Packed, dtype: torch.dtype, settings: argparse.Namespace
) -> Iterator[Row]:
    """sentence-transformers' loss and model on the same weights and texts."""
    row: Row = {"shape": shape, "task": name, "dtype": str(dtype).removeprefix("torch.")}
    if importlib.util.find_spec("sentence_transformers") is None:
        yield row | {"memory": "sentence-transformers is not installed"}
        return
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    row["memory"] = "sentence-transformers, all kept"
    columns = [padded(texts.select(part)) for part in torch.arange(len(texts)).chunk(2)]
    before = held(settings.device)  # our model among it
    with suppress(torch.OutOfMemoryError):
        with tempfile.TemporaryDirectory() as folder:
            loss = MultipleNegativesRankingLoss(sentence_transformer(backbone, Path(folder), dtype, settings))
        row |= measure(lambda: loss([dict(c) for c in columns], None), settings.device, settings.steps, before)
    tokens = int(texts.lengths.sum())
    yield row | ({"tokens / s": tokens / row["seconds"]} if "seconds" in row else {"GB": "out of memory"})


def sentence_transformer(backbone: Backbone, folder: Path, dtype: torch.dtype, settings: argparse.Namespace) -> Any:
    """The same base, bidirectional, with a new adapter of the same settings."""
    from peft import LoraConfig
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    config = deepcopy(backbone.lm.config)
    config.is_causal = False
    with torch.device(settings.device):
        LlamaForCausalLM(config).to(dtype).base_model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))).save_pretrained(
        folder
    )
    transformer = Transformer(str(folder), model_kwargs={"dtype": dtype})
    model = SentenceTransformer(modules=[transformer, Pooling(config.hidden_size)], device=settings.device)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=settings.dropout, target_modules=list(adapters.PROJECTIONS))
    model.add_adapter(lora)
    return model.train()


def padded(texts: Packed) -> dict[str, Tensor]:
    """What a collator would give."""
    parts = texts.input_ids.split(texts.lengths.tolist())
    ids = torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    mask = torch.arange(ids.shape[1])[None] < texts.lengths[:, None]
    return {"input_ids": ids, "attention_mask": mask.long().to(ids.device)}


def table(rows: list[Row]) -> list[str]:
    """Markdown."""
    if not rows:
        return []
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "longest"]
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    for row in rows:
        cells = (row.get(name, "") for name in names)
        lines.append("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    return lines


def longest(rows: list[Row]) -> list[str]:
    """Markdown: of each step the kernels that took longest."""
    found = []
    for row in rows:
        for name, seconds in row["longest"]:
            share = seconds / row["seconds of kernels"]
            found.append({"task": row["task"], "kernel": f"`{name[:90]}`", "ms": 1000 * seconds, "share": share})
    return table(found)


def rows(settings: argparse.Namespace) -> Iterator[tuple[str, Row]]:
    """Everything, as it is found: the part of the report and a row of it."""
    for dtype in settings.dtypes if "right" in settings.parts else ():
        for row in correctness(settings.shapes[0], getattr(torch, dtype), settings.device):
            yield "right", row
        yield "right", replayed(settings.shapes[0], getattr(torch, dtype), settings.device)
    for shape in settings.shapes:
        for row in speed(shape, getattr(torch, settings.dtypes[-1]), settings) if "fast" in settings.parts else ():
            yield "fast", row
        free()
        for stage in STAGES if "looped" in settings.parts else ():
            yield "looped", looped(published(stage, shape), getattr(torch, settings.dtypes[-1]), settings)
            free()


def write(stem: Path, device: str, shape: str, found: dict[str, list[Row]]) -> None:
    """The report, as far as it goes."""
    text = [f"# {device}", "", machine(), "", f"## Right ({shape})", "", *table(found["right"]), ""]
    text += ["## Fast", "", *table(found["fast"]), "", "## In Lightning's loop", "", *table(found["looped"]), ""]
    text += [*longest(found["looped"]), ""]
    text += ["GB: peak of a step above what the device held before the model was built.", ""]
    text += [f"Command: `{command()}`", ""]
    stem.with_suffix(".md").write_text("\n".join(text))
    stem.with_suffix(".json").write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["smollm2-135m", "sheared-llama-1.3b", "llama-3.1-8b"])
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS, help="of the report")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of correctness; speed: the last")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tokens", type=int, default=16384, help="of a step")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--dropout", type=float, default=0.0, help="of LoRA")
    parser.add_argument("--peer-up-to", type=float, default=8, help="GB of weights beside sentence-transformers")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("error: --device cuda needs a GPU that torch sees; got none. --device cpu tries the script.")
    settings.out.mkdir(parents=True, exist_ok=True)
    stem = settings.out / f"{date.today()}-{settings.device}"
    device = torch.cuda.get_device_name() if settings.device == "cuda" else "CPU"
    found: dict[str, list[Row]] = {"right": [], "fast": [], "looped": []}
    for part, row in rows(settings):
        found[part].append(row)
        print(row, flush=True)
        write(stem, device, settings.shapes[0], found)  # row by row: what follows may fail
    print(stem.with_suffix(".md").read_text())
    if not all(row["right"] for row in found["right"]):
        raise SystemExit("error: a kernel is not right here; see the table")


if __name__ == "__main__":
    main()
