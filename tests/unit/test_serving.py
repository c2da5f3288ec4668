"""Rank 0 leads, the others serve; with real ranks."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import pytest
import torch
from ranks import RankError, run_ranks
from torch import Tensor

from otherside import distributed, serving
from otherside.batching import Packed, Tokens
from otherside.distributed import rank
from otherside.serving import Serving

TEXTS = ["x" * (i * 7 % 11 + 1) + str(i) for i in range(23)]


def prepare(texts: list[str], instruction: str) -> Packed:
    if "bad" in texts:
        raise ValueError("bad text")
    return Packed.from_tokens([Tokens([len(instruction), *map(ord, text)]) for text in texts])


def forward(texts: Packed) -> Tensor:
    sums = [texts.select(torch.tensor([i])).input_ids.sum() for i in range(len(texts))]
    return torch.stack([torch.stack(sums).float(), texts.lengths.float()], dim=1)


def expected(texts: list[str], instruction: str = "") -> np.ndarray:
    return np.array([[len(instruction) + sum(map(ord, text)), len(text) + 1] for text in texts], dtype=np.float32)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_vectors_come_in_the_order_of_the_texts(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "BLOCK", 5)
    answered = []

    def count(texts: Packed) -> Tensor:
        answered.append(len(texts))
        return forward(texts)

    def on_rank() -> tuple[bool, int]:
        service = Serving(prepare, count)

        def lead() -> bool:
            requests = [(TEXTS, ""), (TEXTS[:1], "Say: "), (TEXTS[5:9], "")]
            return all(np.array_equal(service.encode(*request), expected(*request)) for request in requests)

        return service.run(lead), len(answered)

    right, forwards = zip(*run_ranks(ranks, on_rank), strict=True)
    assert all(right) and len(set(forwards)) == 1  # also a rank without texts takes part


@pytest.mark.parametrize("ranks", [1, 2])
def test_no_texts_are_no_vectors(ranks: int) -> None:
    def on_rank() -> tuple[int, ...]:
        service = Serving(prepare, forward)
        return service.run(lambda: service.encode([]).shape)

    assert run_ranks(ranks, on_rank) == [(0, 2)] * ranks


def test_what_rank_0_raises_ends_all() -> None:
    def on_rank() -> None:
        service = Serving(prepare, forward)

        def lead() -> None:
            service.encode(TEXTS)
            raise KeyError("no more")

        with pytest.raises(KeyError if rank() == 0 else RuntimeError, match="no more"):
            service.run(lead)

    run_ranks(2, on_rank)


def test_a_text_that_one_rank_cannot_prepare_ends_all() -> None:
    def on_rank() -> None:
        service = Serving(prepare, forward)
        with pytest.raises(RuntimeError, match="rank 1 could not encode its texts: bad text"):
            service.run(lambda: service.encode(["a long one", "bad"]))

    run_ranks(2, on_rank)


def test_a_rank_that_dies_ends_all() -> None:
    def on_rank() -> None:
        service = Serving(prepare, (lambda texts: exit(3)) if rank() == 1 else forward)
        service.run(lambda: service.encode(TEXTS))

    with pytest.raises(RankError, match=r"rank \d failed"):
        run_ranks(2, on_rank, timeout=20)


def test_the_others_wait_for_scores_longer_than_for_a_step() -> None:
    def on_rank() -> bool:
        service = Serving(prepare, forward)
        distributed.wait_at_most(timedelta(seconds=1))  # as strategies do when all are ready

        def lead() -> bool:
            time.sleep(3)
            return np.array_equal(service.encode(TEXTS), expected(TEXTS))

        return service.run(lead)

    assert all(run_ranks(2, on_rank))


def test_a_check_may_end_the_work() -> None:
    service = Serving(prepare, forward)

    def stop() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        service.encode(TEXTS, "", stop)
