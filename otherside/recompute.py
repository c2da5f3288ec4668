"""Activations that are not kept, but computed again in backward (GradCache; Gao et al., 2021)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

Item = TypeVar("Item")


def recomputed(
    run: Callable[[Item], Tensor], chunk: Item, device: torch.device, parameters: Sequence[nn.Parameter] | None
) -> Tensor:
    """`run(chunk)`, which runs once more in backward, with the same dropout.

    Args:
        run: the model, on what needs no gradient itself.
        chunk: its argument.
        device: of its result.
        parameters: all that its result may depend on and that are trained. None: they cannot be named, as where
            weights are shared between ranks and gathered for a moment: then by torch's checkpoint, which calls Python
            for each tensor that it would keep. On a GPU that took 1.4 to 1.5 times as long.
    """
    if parameters is None:
        # torch keeps the random state of the devices that it sees among the arguments, and only theirs. Without the
        # empty tensor a GPU would draw another dropout when it computes again: gradients of a loss that nobody saw.
        return checkpoint(lambda chunk, _: run(chunk), chunk, torch.empty(0, device=device), use_reentrant=False)
    return _Recomputed.apply(run, chunk, device, *parameters)


class _Recomputed(torch.autograd.Function):
    """See `recomputed`. Gradients leave as those of inputs: each parameter gets its own once, from all chunks."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Item], Tensor], chunk: Item, device: torch.device, *parameters: Any) -> Tensor:
        kind, here = device.type, torch.empty(0, device=device)
        ctx.run, ctx.chunk, ctx.parameters = run, chunk, parameters
        used = torch.cuda.is_initialized()  # else there is no random state to ask for, as on a CPU
        ctx.random = torch.get_rng_state(), *(get_device_states(here) if used else ([], []))
        enabled = torch.is_autocast_enabled(kind)
        ctx.autocast = torch.autocast(kind, torch.get_autocast_dtype(kind), enabled, cache_enabled=False)
        with ctx.autocast:  # weights cast without a gradient must not serve a later forward that needs one
            return run(chunk)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        state, devices, states = ctx.random
        with torch.random.fork_rng(devices), torch.enable_grad(), ctx.autocast:
            torch.set_rng_state(state)
            set_device_states(devices, states)
            found = ctx.run(ctx.chunk)
        return None, None, None, *torch.autograd.grad(found, ctx.parameters, grads, allow_unused=True)
