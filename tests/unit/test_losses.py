"""InfoNCE against plain torch, and several real ranks against one process."""

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from tiny import distance

from otherside.candidates import Marks
from otherside.losses import Distillation, InfoNCE

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
        [(0.0, [0.79, 0.5, -0.2]), (-0.15, [0.9, 0.79, 0.5, -0.2])],
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

    @pytest.mark.parametrize("margin", [0.0, -0.05])
    def test_in_the_other_direction_queries_are_left_out_by_each_positives_own(self, margin):
        q, p, n = batch()
        towards, back = reference(q, p, n, margin=margin), reference(p, q, n[:0], margin=margin)
        assert back < reference(p, q, n[:0]) * 0.99, "one is left out"
        found = InfoNCE(symmetric=True, false_negative_margin=margin)(q, p, n)
        assert found.item() == pytest.approx(((towards + back) / 2).item(), rel=1e-5)

    def test_a_far_positive_stays(self):
        """Were it masked, the loss would be infinite."""
        far = torch.tensor([[-1.0, 0.0]])
        loss = InfoNCE(false_negative_margin=0.0)(self.query, far, self.candidates(0.5))
        assert loss.item() == pytest.approx(0)  # alone among its candidates

    def test_vectors_that_are_all_the_same_have_a_loss(self):
        same = torch.ones(4, 8)
        assert InfoNCE(false_negative_margin=0.0)(same, same, same[:0]).item() == pytest.approx(math.log(4))
        with pytest.raises(ValueError, match=r"false_negative_margin must be at most 0.*; got 0\.05"):
            InfoNCE(false_negative_margin=0.05)

    def test_known_negatives_stay(self):
        q, p, _ = batch()
        n, known = torch.cat([q, q[:1]]), marks(in_batch=False)  # nearer than any positive
        assert InfoNCE(false_negative_margin=-0.01)(q, p, n, known) == InfoNCE()(q, p, n, known)


def marks(queries="abcdefgh", positives="ABCDEFGH", negatives=("1", "23", "", "4", "5", "6", "78", "9"), **settings):
    """Of texts of one letter."""
    return Marks.of(queries, positives, negatives, **settings)


def row_by_row(queries, positives, negatives, kept, scale=20.0):
    """With the candidates `kept[i]` beside each query's positive; from 8 on they are hard negatives."""
    candidates, total = torch.cat([positives, negatives]), 0.0
    for i, query in enumerate(queries):
        cosines = F.cosine_similarity(query[None], candidates[[i, *kept[i]]]).double()
        total += torch.logsumexp(cosines * scale, 0) - cosines[0] * scale
    return total / len(queries)


OWN = [[8], [9, 10], [], [11], [12], [13], [14, 15], [16]]
ALL = [[j for j in range(17) if j != i] for i in range(8)]


class TestOwnNegativesOnly:
    def test_value_and_gradient(self):
        found, expected = ([x.requires_grad_() for x in batch()] for _ in range(2))
        loss, truth = InfoNCE(2)(*found, marks(in_batch=False)), row_by_row(*expected, OWN, 2)
        assert loss.item() == pytest.approx(truth.item(), rel=1e-5)
        loss.backward()
        truth.backward()
        for f, e in zip(found, expected, strict=True):
            assert distance(f.grad, e.grad) < 1e-4

    @pytest.mark.parametrize(("negatives", "row"), [(("A", *"2345678"), 0), ((*"12345", "f", *"78"), 5)])
    def test_a_negative_that_is_the_positive_or_the_query_is_none(self, negatives, row):
        kept = [[8 + i] if i != row else [] for i in range(8)]
        found = InfoNCE(2)(*batch(negatives=8), marks(negatives=negatives, in_batch=False))
        assert found.item() == pytest.approx(row_by_row(*batch(negatives=8), kept, 2).item(), rel=1e-5)


TWICE = [(0, 2), (2, 0)]


class TestDuplicates:
    def test_where_all_texts_differ_nothing_changes(self):
        assert torch.equal(InfoNCE()(*batch(), marks()), InfoNCE()(*batch()))

    @pytest.mark.parametrize(
        ("texts", "pairs"),
        [
            ({"positives": "ABADEFGH"}, [(0, 2), (2, 0)]),  # one answer to two queries
            ({"queries": "abadefgh"}, TWICE),  # one query with two answers
            ({"queries": "aBcdefgh", "positives": "BXCDEFGH"}, [(1, 0)]),  # an answer that is another row's query
            ({"negatives": ("1", "23", "", "A", "5", "6", "78", "9")}, [(0, 11)]),  # a negative of d answers a
            ({"negatives": ("1", "23", "", "a", "5", "6", "78", "9")}, [(0, 11)]),  # and is a
            ({"negatives": ("A", "23", "", "4", "5", "6", "78", "9")}, [(0, 8)]),  # its own negative is the answer
            # one query with two answers, one of which is a negative of d, or answers e as well
            (
                {"queries": "abadefgh", "negatives": ("1", "23", "", "C", "5", "6", "78", "9")},
                [*TWICE, (0, 11), (2, 11)],
            ),
            ({"queries": "abadefgh", "positives": "ABCDCFGH"}, [*TWICE, (0, 4), (2, 4), (4, 2)]),
        ],
    )
    def test_the_same_text_is_no_negative(self, texts, pairs):
        kept = [[j for j in row if (i, j) not in pairs] for i, row in enumerate(ALL)]
        expected = row_by_row(*batch(), kept, 2).item()
        assert abs(expected / row_by_row(*batch(), ALL, 2).item() - 1) > 1e-4
        assert InfoNCE(2)(*batch(), marks(**texts)).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("texts", [{"queries": "abadefgh"}, {"positives": "ABADEFGH"}])
    def test_in_the_other_direction(self, texts):
        q, p, n = batch()
        both = [[j for j in range(17) if j != i and {i, j} != {0, 2}] for i in range(8)]
        back = [[j for j in row if j < 8] for row in both]
        expected = (row_by_row(q, p, n, both) + row_by_row(p, q, n[:0], back)) / 2
        found = InfoNCE(symmetric=True)(q, p, n, marks(**texts))
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_the_same_label_is_no_negative(self):
        """In both directions; negatives of the rows are of labels 1, 0 and so on."""
        labels = [0, 1, 0, 0, 1, 1, 0, 1]
        hard = [1 - labels[i] for i, row in enumerate(OWN) for _ in row]
        asked = [[label] + [1 - label] * len(row) for label, row in zip(labels, OWN, strict=True)]
        of_candidates = [*labels, *hard]
        q, p, n = batch()
        kept = [[j for j in row if of_candidates[j] != labels[i]] for i, row in enumerate(ALL)]
        back = [[j for j in row if j < 8] for row in kept]
        expected = (row_by_row(q, p, n, kept) + row_by_row(p, q, n[:0], back)) / 2
        found = InfoNCE(symmetric=True)(q, p, n, marks(labels=asked))
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_all_the_same(self):
        """Nothing is left to tell a positive from: a loss of 0, not of NaN."""
        found = [x.requires_grad_() for x in batch()]
        loss = InfoNCE()(*found, marks(positives="AAAAAAAA", negatives=["A"] * 7 + ["AA"]))
        loss.backward()
        assert loss.item() == 0 and all(torch.isfinite(x.grad).all() for x in found)


def scores(negatives, seed=5):
    """Of each row's positive, then of so many negatives, like cosines."""
    numbers = iter(torch.rand(sum(map(len, negatives)) + len(negatives), generator=torch.Generator().manual_seed(seed)))
    return [[next(numbers).item() for _ in range(1 + len(row))] for row in negatives]


def taught(cosines, row, kind, temperature=0.05, scale=20.0):
    """The plain formula for one query: its positive and negatives, positive first."""
    if kind == "margin":
        errors = [((cosines[0] - c) - (row[0] - s)) ** 2 for c, s in zip(cosines[1:], row[1:], strict=True)]
        return sum(errors) / max(len(errors), 1)
    powers, student = [math.exp(s / temperature) for s in row], torch.log_softmax(cosines * scale, 0)
    teacher = [power / sum(powers) for power in powers]
    return sum(p * (math.log(p) - q) for p, q in zip(teacher, student, strict=True))


def taught_rows(queries, positives, negatives, rows, kept=OWN, **settings):
    """The mean over queries, whose own texts are `kept[i]` beside the positive."""
    candidates = torch.cat([positives, negatives])
    cosines = [F.cosine_similarity(q[None], candidates[[i, *kept[i]]]).double() for i, q in enumerate(queries)]
    return sum(taught(c, row, **settings) for c, row in zip(cosines, rows, strict=True)) / len(queries)


@pytest.mark.parametrize("kind", ["kl", "margin"])
class TestTeacher:
    """Of rows with no, one and three negatives; `OWN` says which candidates are theirs."""

    negatives = ("1", "", "234", "", "5", "6", "78", "9")
    own = ([8], [], [9, 10, 11], [], [12], [13], [14, 15], [16])
    rows = scores(negatives)

    @pytest.mark.parametrize("in_batch", [True, False])
    def test_value_and_gradient(self, kind, in_batch):
        """Both sides of a pair, and the negatives, have a gradient of it, which InfoNCE alone does not give."""
        found, expected = ([x.requires_grad_() for x in batch()] for _ in range(2))
        known = marks(negatives=self.negatives, in_batch=in_batch, scores=self.rows)
        loss = InfoNCE(teacher=Distillation(0.7, kind))(*found, known) - InfoNCE()(*found, known)
        truth = 0.7 * taught_rows(*expected, self.rows, self.own, kind=kind)
        assert truth > 0.01 and loss.item() == pytest.approx(truth.item(), rel=1e-4)
        loss.backward()
        truth.backward()
        for f, e in zip(found, expected, strict=True):
            assert e.grad.norm() > 1e-3 and distance(f.grad, e.grad) < 1e-4

    def test_rows_without_negatives_teach_nothing(self, kind):
        q, p, _ = batch(negatives=0)
        nothing = InfoNCE(2, teacher=Distillation(kind=kind))(
            q, p, q[:0], marks(negatives=[""] * 8, scores=[[0.5]] * 8)
        )
        assert nothing.item() == InfoNCE(2)(q, p, q[:0]).item()

    def test_a_teacher_who_scores_the_same_cosines_teaches_nothing(self, kind):
        q, p, n = (F.normalize(x, dim=1) for x in batch())
        cosines = q @ torch.cat([p, n]).T
        rows = [cosines[i, [i, *own]].tolist() for i, own in enumerate(self.own)]
        known = marks(negatives=self.negatives, scores=rows)
        loss = InfoNCE(teacher=Distillation(kind=kind))(q, p, n, known) - InfoNCE()(q, p, n, known)
        assert loss.item() == pytest.approx(0, abs=1e-6)

    def test_negatives_that_are_none_are_left_out_with_their_scores(self, kind):
        """Row 2 has its own positive among its negatives, and row 7 its own query."""
        known = marks(negatives=("1", "", "2C4", "", "5", "6", "78", "h"), scores=self.rows)
        kept, rows = [*self.own], [*self.rows]
        kept[2], kept[7] = [9, 11], []
        rows[2], rows[7] = [rows[2][i] for i in (0, 1, 3)], rows[7][:1]
        loss = InfoNCE(teacher=Distillation(kind=kind))(*batch(), known) - InfoNCE()(*batch(), known)
        assert loss.item() == pytest.approx(taught_rows(*batch(), rows, kept, kind=kind).item(), rel=1e-4)

    def test_matryoshka_is_the_mean_over_sizes(self, kind):
        known = marks(negatives=self.negatives, scores=self.rows)
        parts = [[x[:, :k] for x in batch()] for k in (4, WIDTH)]
        expected = sum(taught_rows(*part, self.rows, self.own, kind=kind) for part in parts) / 2
        sizes = {"matryoshka": (4,)}
        loss = InfoNCE(teacher=Distillation(kind=kind), **sizes)(*batch(), known) - InfoNCE(**sizes)(*batch(), known)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)

    def test_logits_of_a_cross_encoder(self, kind):
        """Large, and far apart; padding would count as a score of 0."""
        rows = [[-8.0 - score * 4 for score in row] for row in self.rows]
        settings = {"kind": kind, "temperature": 1.0}
        found = [x.requires_grad_() for x in batch()]
        known = marks(negatives=self.negatives, scores=rows)
        loss = InfoNCE(teacher=Distillation(**settings))(*found, known) - InfoNCE()(*found, known)
        loss.backward()
        assert loss.item() == pytest.approx(taught_rows(*batch(), rows, self.own, **settings).item(), rel=1e-4)
        assert all(torch.isfinite(x.grad).all() for x in found)

    def test_without_scores_it_is_the_loss_without_a_teacher(self, kind):
        for known in (None, marks(), marks(in_batch=False)):
            assert torch.equal(InfoNCE(teacher=Distillation(kind=kind))(*batch(), known), InfoNCE()(*batch(), known))
        known = marks(negatives=self.negatives, scores=self.rows)
        assert torch.equal(InfoNCE()(*batch(), known), InfoNCE()(*batch(), replace(known, scores=None)))


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

    @pytest.mark.parametrize("name", ["weight", "temperature"])
    def test_bad_settings_of_a_teacher(self, name):
        with pytest.raises(ValueError, match=rf"loss\.teacher\.{name} must be positive; got 0"):
            Distillation(**{name: 0})

    def test_the_smallest_size(self):
        assert torch.isfinite(InfoNCE(matryoshka=(1,))(*batch()))

    def test_matryoshka_wider_than_the_vectors(self):
        with pytest.raises(ValueError, match=f"must not exceed the hidden size {WIDTH}; got 32"):
            InfoNCE(matryoshka=(4, 32))(*batch())


SETTINGS = {
    "plain": InfoNCE(),
    # a scale of 20 enlarges the rounding of cosines as much: 1.3e-6 with AVX2, where 2 leaves 2e-7
    "all": InfoNCE(scale=2, symmetric=True, matryoshka=(4, 8), false_negative_margin=-0.05),
    "kl": InfoNCE(scale=2, teacher=Distillation(temperature=0.5), matryoshka=(4,)),
    "margin": InfoNCE(scale=2, teacher=Distillation(2.0, "margin")),
}
SPLITS = [
    ([4, 4], [5, 4]),
    ([5, 3], [7, 2]),
    ([5, 3], [0, 4]),
    ([5, 3], [0, 0]),
    ([3, 1, 2, 2], [1, 0, 6, 2]),
]


KNOWN = {
    "nothing": None,
    "duplicates": {"queries": "aacdefgh", "positives": "ABCDEFGA"},
    "own": {"positives": "ABCDEFGA", "in_batch": False},
    "labels": {"labels": [0, 1, 0, 0, 2, 1, 0, 2]},
}


def shares(known, pairs, negatives):
    """Marks of the whole batch, and of each rank's part: its rows with its hard negatives."""
    if known is None:
        return None, [None] * len(pairs)
    hard = iter(str(i % 3) + "ab"[i % 2] for i in range(sum(negatives)))
    texts = {"queries": "abcdefgh", "positives": "ABCDEFGH", **known}
    counts = [[k // n + (i < k % n) for i in range(n)] for n, k in zip(pairs, negatives, strict=True)]
    rows = [[[next(hard) for _ in range(count)] for count in of_rank] for of_rank in counts]
    first, parts = 0, []
    for mine in rows:
        part = slice(first, first + len(mine))
        of_rank = {**texts, "queries": texts["queries"][part], "positives": texts["positives"][part]}
        if "labels" in texts:
            of_rank["labels"] = labelled(mine, texts["labels"][part])
        parts.append(Marks.of(negatives=mine, scores=graded(mine, first), **of_rank))
        first += len(mine)
    everyone = [row for mine in rows for row in mine]
    if "labels" in texts:
        texts["labels"] = labelled(everyone, texts["labels"])
    return Marks.of(negatives=everyone, scores=graded(everyone), **texts), parts


def labelled(rows, own):
    """Each row's label, then another one for each of its negatives."""
    return [[label, *[(label + 1) % 3] * len(row)] for label, row in zip(own, rows, strict=True)]


def graded(rows, first=0):
    """Scores that do not depend on who has a row."""
    return [[((first + i) * 7 + j * 3) % 10 / 10 for j in range(1 + len(row))] for i, row in enumerate(rows)]


@pytest.mark.parametrize(("pairs", "negatives"), SPLITS)
def test_ranks_agree_with_one_process(pairs, negatives):
    """The mean over ranks of loss and gradient is that of the whole batch, whatever the split (DDP takes the mean)."""
    inputs = batch(sum(pairs), sum(negatives))
    weight = torch.eye(WIDTH) + vectors(WIDTH, 3) / 4
    marks = {known: shares(KNOWN[known], pairs, negatives) for known in KNOWN}

    def step(name, known, inputs, marks):
        info_nce = replace(SETTINGS[name], scale=2) if known == "own" else SETTINGS[name]  # no loss near 0
        w = weight.clone().requires_grad_()
        loss = info_nce(*(x @ w for x in inputs), marks)
        loss.backward()
        return loss.detach(), w.grad

    def steps_of_rank():
        sizes, rank = (pairs, pairs, negatives), dist.get_rank()
        mine = [x.split(s)[rank] for x, s in zip(inputs, sizes, strict=True)]
        return {case: step(*case, mine, marks[case[1]][1][rank]) for case in product(SETTINGS, KNOWN)}

    of_ranks = run_ranks(len(pairs), steps_of_rank)
    for case in product(SETTINGS, KNOWN):
        losses, gradients = zip(*(found[case] for found in of_ranks), strict=True)
        loss, gradient = step(*case, inputs, marks[case[1]][0])
        assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-6), case
        mean = torch.stack(gradients).mean(0)
        assert (mean - gradient).norm().item() <= 1e-6 * gradient.norm().item(), case


def test_ranks_without_queries_of_their_own():
    q, p, n = batch()

    def loss():
        first = dist.get_rank() == 0
        return InfoNCE()(*((q, p, n) if first else (q[:0], p[:0], n[:0]))).item()

    assert sum(run_ranks(2, loss)) / 2 == pytest.approx(InfoNCE()(q, p, n).item(), rel=1e-6)
