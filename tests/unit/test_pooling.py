import pytest
import torch
from tiny import distance, random_texts

from otherside.batching import Packed, Tokens
from otherside.pooling import pool, weights

LENGTHS, SKIP = [5, 1, 8, 3, 3], [0, 0, 3, 2, 1]
POOLINGS = ["mean", "weighted_mean", "last_token"]


def by_hand(hidden: torch.Tensor, texts: Packed, pooling: str) -> torch.Tensor:
    vectors, start = [], 0
    for length, skip in zip(texts.lengths.tolist(), texts.skip.tolist(), strict=True):
        states = hidden[start + skip : start + length].double()
        start += length
        if pooling == "mean":
            vectors.append(sum(states) / len(states))
        elif pooling == "weighted_mean":
            total = sum(range(1, len(states) + 1))
            vectors.append(sum(state * (i + 1) / total for i, state in enumerate(states)))
        else:
            vectors.append(states[-1])
    return torch.stack(vectors).float()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("skip", [SKIP, [0] * 5])
def test_equals_a_loop(pooling, skip):
    texts, hidden = random_texts(LENGTHS, skip), torch.randn(sum(LENGTHS), 6)
    found = pool(hidden, texts, pooling)
    assert found.dtype == torch.float32
    assert distance(found, by_hand(hidden, texts, pooling)) < 1e-6


@pytest.mark.parametrize("pooling", POOLINGS)
def test_shares_sum_to_one_and_skipped_tokens_have_none(pooling):
    texts = random_texts(LENGTHS, SKIP)
    for share, skip in zip(weights(texts, pooling).split(LENGTHS), SKIP, strict=True):
        assert share.sum().item() == pytest.approx(1)
        assert not share[:skip].any()


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("pool_start", [True, False, None])
def test_start_token(pooling, pool_start):
    """Pooled, it is as if the instruction between it and the text were not there."""
    plain = Packed.from_tokens([Tokens([7, 1, 2, 3], 1, 1)])
    asked = Packed.from_tokens([Tokens([7, 9, 9, 9, 1, 2, 3], 4, 1)])
    bare = Packed.from_tokens([Tokens([1, 2, 3])])
    alone, with_start = weights(bare, pooling), weights(Packed.from_tokens([Tokens([7, 1, 2, 3])]), pooling)
    share = weights(plain, pooling, pool_start)
    assert torch.equal(share, torch.cat([torch.zeros(1), alone]) if pool_start is False else with_start)
    share = weights(asked, pooling, pool_start)
    assert torch.equal(share[[0, 4, 5, 6]], with_start if pool_start else torch.cat([torch.zeros(1), alone]))
    assert not share[1:4].any()


def test_a_start_token_alone_is_the_vector():
    for pool_start in (True, False, None):
        assert weights(Packed.from_tokens([Tokens([7], 0, 1)]), "mean", pool_start).tolist() == [1.0]


def test_gradient_reaches_only_pooled_tokens():
    texts, hidden = random_texts([4], [2]), torch.randn(4, 3, requires_grad=True)
    pool(hidden, texts, "mean").sum().backward()
    assert hidden.grad.tolist() == [[0.0] * 3] * 2 + [[0.5] * 3] * 2


def test_float32_in_half_precision_training():
    """Lightning's `bf16-true` makes bfloat16 the default type, `bf16-mixed` an autocast."""
    texts, hidden = random_texts(LENGTHS, SKIP), torch.randn(sum(LENGTHS), 6).bfloat16()
    expected = pool(hidden.float(), texts, "weighted_mean")
    torch.set_default_dtype(torch.bfloat16)
    try:
        true = pool(hidden, texts, "weighted_mean")
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = pool(hidden, texts, "weighted_mean")
    assert torch.equal(true, expected)
    assert torch.equal(mixed, expected)


def test_nothing_left_to_pool_is_an_error():
    with pytest.raises(ValueError, match="at least one token outside its instruction"):
        weights(random_texts([3, 2], [0, 2]), "mean")


def test_unknown_pooling():
    with pytest.raises(ValueError, match=r"pooling must be mean.*got 'max'"):
        weights(random_texts([3]), "max")  # type: ignore[arg-type]
