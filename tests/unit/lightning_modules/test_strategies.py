"""What strategies do to optimizers' states; whole runs are in `tests/distributed`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_modules.strategies import DDP
from lightning_modules.strategies.zero import of_shard


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        ({"fused": True}, "meta"),
        ({"fused": None, "capturable": True}, "meta"),
        ({"fused": None, "capturable": False}, "cpu"),
        ({}, "cpu"),
    ],
)
def test_counters_of_a_checkpoint_are_where_torch_wants_them(settings: dict[str, Any], device: str) -> None:
    """As in a new optimizer; checkpoints are read to the CPU. The meta device stands for a GPU."""
    shard, step = torch.zeros(6, device="meta"), torch.tensor(3.0)
    found = of_shard(step, shard, settings)
    assert found.device.type == device and found.data_ptr() != step.data_ptr()
    state = of_shard(torch.ones(2, 5), shard, settings)
    assert state.device.type == "meta" and state.shape == (6,)
    assert of_shard(None, shard, settings) is None


def test_gradients_under_ddp_are_no_second_copy() -> None:
    """`lightning size` counts them once."""
    assert DDP()._ddp_kwargs["gradient_as_bucket_view"]
    assert not DDP(gradient_as_bucket_view=False)._ddp_kwargs["gradient_as_bucket_view"]
