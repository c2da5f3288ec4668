"""A training step with our adapted linears and with PEFT's, each as it is and with layers compiled by torch.

    python benchmarks/adapted_linear.py [--dtype bfloat16] [--layers 4] [--rounds 5] [--compile]

The first layers of a real Llama on 64 texts of 8 to 64 tokens, forward and backward, in one process on one thread.
Steps take turns; what is compared is this process's CPU time, which a busy machine hardly moves. Also how many
operations a step asks for, and what is kept for backward.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import keep
from peft.tuners import lora
from texts import BASE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from otherside import adapters
from otherside.adapted import AdaptedLinear
from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed

PEFT, OURS, COMPILED = "PEFT's", "ours", ", layers compiled"


class Operations(TorchDispatchMode):
    """Counts operations that compute; views do not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


class Model:
    """The first layers of the base, whose linears can be either."""

    def __init__(self, dtype: str, layers: int) -> None:
        self.backbone = Backbone.load(BackboneConfig(BASE, dtype=dtype), Lora()).train()  # type: ignore[arg-type]
        self.layers: Any = self.backbone.lm.model.layers
        del self.layers[layers:]
        self.backbone.lm.config.num_hidden_layers = layers
        draw = random.Random(0)
        lengths = sorted((draw.randint(8, 64) for _ in range(64)), reverse=True)
        none = torch.zeros(len(lengths), dtype=torch.long)
        self.texts = Packed(torch.randint(100, 5000, (sum(lengths),)), torch.tensor(lengths), none, none)
        self._compiled: dict[tuple[str, int], Callable[..., Any]] = {}

    def become(self, kind: str) -> None:
        """Take these linears."""
        for layer in adapters.adapter_layers(self.backbone.lm):
            layer.__class__ = AdaptedLinear if kind.startswith(OURS) else lora.Linear
        for i, layer in enumerate(self.layers):
            if COMPILED in kind and (kind, i) not in self._compiled:
                self._compiled[kind, i] = torch.compile(layer._call_impl)
            layer._compiled_call_impl = self._compiled.get((kind, i))

    def step(self) -> None:
        """Forward and backward."""
        self.backbone.zero_grad()
        self.backbone(self.texts).float().pow(2).mean().backward()

    def operations(self) -> int:
        """Of a step."""
        with Operations() as found:
            self.step()
        return found.count

    def kept(self) -> int:
        """Bytes between forward and backward, but for the weights."""
        found: Counter[int] = Counter()

        def keep(tensor: Tensor) -> Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = self.backbone(self.texts)
        lasting = {p.untyped_storage().data_ptr() for p in self.backbone.parameters()}
        assert states.requires_grad
        return sum(size for where, size in found.items() if where not in lasting)


def timed(run: Callable[[], None]) -> tuple[float, float]:
    """CPU seconds and seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    run()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="also with layers compiled; takes minutes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/reports"))
    settings = parser.parse_args()
    torch.set_num_threads(1)
    AdaptedLinear.forward = torch.compiler.disable(AdaptedLinear.forward)  # type: ignore[method-assign]
    model = Model(settings.dtype, settings.layers)
    kinds = [PEFT, OURS] + [PEFT + COMPILED, OURS + COMPILED] * settings.compile
    first, counted = {}, {}
    for kind in kinds:
        model.become(kind)
        first[kind] = timed(model.step)[1]
        if COMPILED not in kind:
            counted[kind] = model.operations(), model.kept()
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for i in range(settings.rounds):
        for kind in kinds[:: 1 if i % 2 else -1]:
            model.become(kind)
            found[kind].append(timed(model.step)[0])
    text = [f"{BASE}, {settings.layers} layers, {settings.dtype}, {len(model.texts.input_ids)} tokens, one thread", ""]
    text += ["| linears | CPU s a step, best | PEFT's : this | operations | MB kept | first step, s |"]
    text += ["| --- | ---: | --- | ---: | ---: | ---: |"]
    for kind in kinds:
        ratios = sorted(theirs / mine for theirs, mine in zip(found[PEFT], found[kind], strict=True))
        shown = f"{statistics.median(ratios):.2f} × ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        operations, kept = counted.get(kind, ("", 0))
        text.append(
            f"| {kind} | {min(found[kind]):.2f} | {shown if kind != PEFT else ''} | {operations} | "
            f"{f'{kept / 1e6:.0f}' if kept else ''} | {first[kind]:.0f} |"
        )
    text += ["", "Steps took turns; ratios are those of the same round: median (lowest–highest)."]
    keep(settings.out, "adapted-linear", "Adapted linears", text)


if __name__ == "__main__":
    main()
