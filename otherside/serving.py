"""All ranks encode for rank 0, which alone knows the texts: evaluation in the middle of a run of many processes.

Shapes: N texts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from otherside import distributed
from otherside.batching import Packed, Tokens
from otherside.distributed import rank, world_size

BLOCK = 2048  # texts of a rank between two requests
PATIENCE = timedelta(hours=6)  # rank 0 computes scores between requests, while the others wait
FILLER = Packed.from_tokens([Tokens([0])])

Result = TypeVar("Result")


class Serving:
    """Rank 0 leads and calls `encode`; the other ranks answer until it has ended. To be made by all ranks together.

    Requests have a process group of their own, on CPUs, that may wait for hours; forwards use the training's.

    Args:
        prepare: texts, instruction -> this rank's texts, packed. Never a collective.
        forward: packed texts -> vectors (N, D). All ranks call it together; one without texts passes a filler.
    """

    def __init__(self, prepare: Callable[[list[str], str], Packed], forward: Callable[[Packed], Tensor]) -> None:
        self._prepare, self._forward = prepare, forward
        self._group: Any = dist.new_group(backend="gloo", timeout=PATIENCE) if world_size() > 1 else None

    def run(self, lead: Callable[[], Result]) -> Result:
        """`lead()` of rank 0, inside which `encode` may be called; its result, on all ranks.

        Raises:
            RuntimeError: it failed, on the other ranks; rank 0 raises its own error.
        """
        if self._group is not None:  # strategies shorten what all groups wait
            distributed.wait_at_most(PATIENCE, [self._group])
        if rank() > 0:
            return self._serve()
        try:
            result = lead()
        except BaseException as error:
            with suppress(RuntimeError):  # a rank is gone: the error that matters is ours
                self._send([("failed", f"{type(error).__name__}: {error}")] * world_size())
            raise
        self._send([("ended", result)] * world_size())
        return result

    def encode(self, texts: list[str], instruction: str = "", check: Callable[[], None] = lambda: None) -> np.ndarray:
        """Vectors (N, D), float32, in the order of `texts`; on rank 0, inside `run`.

        Args:
            texts: N texts.
            instruction: put before each.
            check: called now and then; it may raise to end the work.

        Raises:
            RuntimeError: a rank could not prepare its texts.
        """
        blocks = []
        for first in range(0, max(len(texts), 1), size := BLOCK * world_size()):  # without texts one, which knows D
            check()
            blocks.append(self._encode_block(texts[first : first + size], instruction))
        return torch.cat(blocks).numpy()

    def _encode_block(self, texts: list[str], instruction: str) -> Tensor:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        shares = [order[r :: world_size()] for r in range(world_size())]
        mine = self._send([("encode", ([texts[i] for i in share], instruction)) for share in shares])
        answers = self._answer(*mine[1])
        for r, answer in enumerate(answers):
            if isinstance(answer, str):
                raise RuntimeError(f"rank {r} could not encode its texts: {answer}")
        vectors = torch.empty(len(texts), answers[0].shape[1])
        for share, answer in zip(shares, answers, strict=True):
            vectors[share] = answer[: len(share)]
        return vectors

    def _serve(self) -> Any:
        while True:
            kind, content = self._send(None)
            if kind == "ended":
                return content
            if kind == "failed":
                raise RuntimeError(f"rank 0 failed: {content}")
            self._answer(*content)

    def _send(self, requests: list[Any] | None) -> Any:
        """Rank 0 passes one for every rank; each gets its own."""
        if self._group is None:
            return requests and requests[0]
        mine = [None]
        dist.scatter_object_list(mine, requests, src=0, group=self._group)
        return mine[0]

    def _answer(self, texts: list[str], instruction: str) -> list[Any]:
        """This rank's part of a request; on rank 0 every rank's vectors, or what kept it from them."""
        failure, packed = None, FILLER
        try:
            packed = self._prepare(texts, instruction) if texts else FILLER
        except Exception as error:  # take part all the same, or the others would wait in `forward` for ever
            failure = str(error)
        with torch.no_grad():
            vectors = self._forward(packed).float().cpu()
        answer = failure or vectors
        if self._group is None:
            return [answer]
        answers = [None] * world_size() if rank() == 0 else None
        dist.gather_object(answer, answers, dst=0, group=self._group)
        return answers or []
