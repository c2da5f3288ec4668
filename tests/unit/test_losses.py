"""InfoNCE against plain torch, and several real ranks against one process."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from tiny import distance

from otherside.losses import InfoNCE

WIDTH = 16


def vectors(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def batch(queries: int = 8, negatives: int = 9) -> list[torch.Tensor]:
    """Positives lie near their queries, not so near that the loss vanishes."""
    q = vectors(queries, 0)
    return [q, q / 2 + vectors(queries, 1), vectors(negatives, 2)]


def reference(queries, positives, negatives, scale=20.0, margin=-2.0):
    """Pair by pair."""
    total = 0.0
    for i, query in enumerate(queries):
        cosines = torch.stack([F.cosine_similarity(query, other, dim=0) for other in [*positives, *negatives]]).double()
        kept = [cosine for j, cosine in enumerate(cosines) if j == i or cosine <= cosines[i] - margin]
        total += torch.logsumexp(torch.stack(kept) * scale, 0) - cosines[i] * scale
    return total / len(queries)


class TestAgainstPlainTorch:
    @pytest.mark.parametrize("negatives", [0, 9])
    @pytest.mark.parametrize("scale", [1.0, 20.0, 50.0])
    def test_value_and_gradient(self, negatives, scale):
        found, expected = ([x.requires_grad_() for x in batch(negatives=negatives)] for _ in range(2))
        loss, truth = InfoNCE(scale)(*found), reference(*expected, scale=scale)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
        loss.backward()
        truth.backward()
        for f, e in zip(found[: 3 if negatives else 2], expected, strict=False):
            assert distance(f.grad, e.grad) < 1e-4

    def test_symmetric_adds_the_queries_of_each_positive(self):
        q, p, n = batch()
        expected = (reference(q, p, n) + reference(p, q, n[:0])) / 2
        assert InfoNCE(symmetric=True)(q, p, n).item() == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize("sizes", [(4, 8), [4, 8], (4, 8, WIDTH)])
    def test_matryoshka_is_the_mean_over_sizes(self, sizes):
        q, p, n = batch()
        expected = sum(reference(q[:, :k], p[:, :k], n[:, :k]) for k in (4, 8, WIDTH)) / 3
        assert InfoNCE(matryoshka=sizes)(q, p, n).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_half_precision_is_computed_in_float32(self):
        q, p, n = (x.bfloat16() for x in batch())
        expected = InfoNCE()(q.float(), p.float(), n.float())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(InfoNCE()(q, p, n), expected)


class TestFalseNegatives:
    """Query 0 is the first axis; its positive has cosine 0.8 to it."""

    query, positive = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.8, 0.6]])

    def candidates(self, *cosines: float) -> torch.Tensor:
        return torch.tensor([[c, (1 - c * c) ** 0.5] for c in cosines])

    @pytest.mark.parametrize(
        ("margin", "kept"),
        [(0.0, [0.79, 0.5, -0.2]), (0.2, [0.5, -0.2]), (0.5, [-0.2]), (-0.15, [0.9, 0.79, 0.5, -0.2])],
    )
    def test_what_is_closer_than_the_positive_less_the_margin_is_left_out(self, margin, kept):
        everyone = self.candidates(0.99, 0.9, 0.79, 0.5, -0.2)
        found = InfoNCE(false_negative_margin=margin)(self.query, self.positive, everyone)
        expected = InfoNCE()(self.query, self.positive, self.candidates(*kept))
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_what_is_exactly_as_far_stays(self):
        mirrored = torch.tensor([[0.8, -0.6]])
        loss = InfoNCE(false_negative_margin=0.0)(self.query, self.positive, mirrored)
        assert loss.item() == pytest.approx(math.log(2))

    @pytest.mark.parametrize("margin", [0.0, 0.3])
    def test_in_the_other_direction_queries_are_left_out_by_each_positives_own(self, margin):
        q, p, n = batch()
        towards, back = reference(q, p, n, margin=margin), reference(p, q, n[:0], margin=margin)
        assert back < reference(p, q, n[:0]) * 0.99, "one is left out"
        found = InfoNCE(symmetric=True, false_negative_margin=margin)(q, p, n)
        assert found.item() == pytest.approx(((towards + back) / 2).item(), rel=1e-5)

    def test_the_positive_stays_whatever_the_margin(self):
        """Were it masked, the loss would be infinite."""
        loss = InfoNCE(false_negative_margin=2.0)(self.query, self.positive, self.candidates(0.99, -1.0))
        assert loss.item() == pytest.approx(0)  # alone among its candidates

    def test_a_far_positive_stays(self):
        far = torch.tensor([[-1.0, 0.0]])
        assert torch.isfinite(InfoNCE(false_negative_margin=0.1)(self.query, far, self.candidates(0.5)))


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"scale": 0}, "loss.scale must be positive; got 0"),
            ({"scale": -1}, "loss.scale must be positive"),
            ({"matryoshka": (4, 0)}, "loss.matryoshka must hold sizes of at least 1"),
        ],
    )
    def test_bad_settings(self, settings, message):
        with pytest.raises(ValueError, match=message):
            InfoNCE(**settings)

    def test_the_smallest_size(self):
        assert torch.isfinite(InfoNCE(matryoshka=(1,))(*batch()))

    def test_matryoshka_wider_than_the_vectors(self):
        with pytest.raises(ValueError, match=f"must not exceed the hidden size {WIDTH}; got 32"):
            InfoNCE(matryoshka=(4, 32))(*batch())


SETTINGS = {
    "plain": InfoNCE(),
    # a scale of 20 enlarges the rounding of cosines as much: 1.3e-6 with AVX2, where 2 leaves 2e-7
    "all": InfoNCE(scale=2, symmetric=True, matryoshka=(4, 8), false_negative_margin=0.05),
}
SPLITS = [
    ([4, 4], [5, 4]),
    ([5, 3], [7, 2]),
    ([5, 3], [0, 4]),
    ([5, 3], [0, 0]),
    ([3, 1, 2, 2], [1, 0, 6, 2]),
]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(("pairs", "negatives"), SPLITS)
def test_ranks_agree_with_one_process(name, pairs, negatives):
    """The mean over ranks of loss and gradient is that of the whole batch, whatever the split (DDP takes the mean)."""
    inputs = batch(sum(pairs), sum(negatives))
    weight = torch.eye(WIDTH) + vectors(WIDTH, 3) / 4

    def step(inputs):
        w = weight.clone().requires_grad_()
        loss = SETTINGS[name](*(x @ w for x in inputs))
        loss.backward()
        return loss.detach(), w.grad

    def step_of_rank():
        sizes = (pairs, pairs, negatives)
        return step([x.split(s)[dist.get_rank()] for x, s in zip(inputs, sizes, strict=True)])

    losses, gradients = zip(*run_ranks(len(pairs), step_of_rank), strict=True)
    loss, gradient = step(inputs)
    assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-6)
    mean = torch.stack(gradients).mean(0)
    assert ((mean - gradient).norm() / gradient.norm()).item() < 1e-6


def test_ranks_without_queries_of_their_own():
    q, p, n = batch()

    def loss():
        first = dist.get_rank() == 0
        return InfoNCE()(*((q, p, n) if first else (q[:0], p[:0], n[:0]))).item()

    assert sum(run_ranks(2, loss)) / 2 == pytest.approx(InfoNCE()(q, p, n).item(), rel=1e-6)
