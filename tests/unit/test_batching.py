from itertools import pairwise

import pytest
import torch
from tiny import random_texts

from otherside.batching import Chunks, Packed, PairBatch, TextBatch, Tokens, rounded
from otherside.candidates import Marks

LENGTHS = [4, 1, 7, 7, 2, 12, 3]


def as_lists(texts: Packed) -> list[list[int]]:
    """The texts as lists of ids, by a loop over the borders."""
    return [texts.input_ids[start:end].tolist() for start, end in pairwise(texts.borders.tolist())]


def test_rounded_makes_few_sizes_of_many():
    sizes = range(1, 5000)
    assert all(n <= rounded(n) <= max(n + 7, n * 17 / 16) and rounded(rounded(n)) == rounded(n) for n in sizes)
    assert len({rounded(n) for n in sizes}) < 110
    assert rounded(512) == 512 and rounded(2048) == 2048


class TestPacked:
    def test_pack_and_unpack(self):
        ids = [[3, 4, 5], [6], [7, 8, 9, 10]]
        texts = Packed.from_tokens([Tokens(ids[0]), Tokens(ids[1]), Tokens(ids[2], skip=2)])
        assert as_lists(texts) == ids
        assert len(texts) == 3
        assert texts.borders.tolist() == [0, 3, 4, 8]
        assert texts.positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3]
        assert texts.skip.tolist() == [0, 0, 2]

    @pytest.mark.parametrize("texts", [[], [Tokens([1]), Tokens([])]])
    def test_a_text_without_tokens_is_refused(self, texts):
        with pytest.raises(ValueError, match="at least one token"):
            Packed.from_tokens(texts)

    @pytest.mark.parametrize("chosen", [[0], [6, 0, 3], [2, 2, 1], list(range(7))])
    def test_select(self, chosen):
        texts = random_texts(LENGTHS, skip=[1, 0, 3, 0, 1, 5, 2])
        found = texts.select(torch.tensor(chosen))
        assert as_lists(found) == [as_lists(texts)[i] for i in chosen]
        assert found.skip.tolist() == [texts.skip.tolist()[i] for i in chosen]
        assert found.lengths.tolist() == [LENGTHS[i] for i in chosen]

    def test_cat(self):
        first, second = random_texts([2, 5], skip=[0, 1]), random_texts([3], skip=[2], seed=1)
        both = Packed.cat(iter([first, second]))
        assert as_lists(both) == as_lists(first) + as_lists(second)
        assert both.skip.tolist() == [0, 1, 2]

    @pytest.mark.parametrize("budget", [1, 5, 12, 14, 20, 36, 1000])
    def test_chunks_hold_every_text_once_within_the_budget(self, budget):
        chunks = random_texts(LENGTHS).chunks(budget)
        assert sorted(torch.cat(chunks).tolist()) == list(range(len(LENGTHS)))
        assert all(len(c) == 1 or len(c) * max(LENGTHS[i] for i in c) <= budget for c in chunks)
        in_order = [LENGTHS[i] for i in torch.cat(chunks)]
        assert in_order == sorted(LENGTHS, reverse=True)

    @pytest.mark.parametrize("budget", [1, 5, 12, 20, 36, 1000])
    def test_without_padding_only_the_tokens_themselves_count(self, budget):
        chunks = random_texts(LENGTHS).chunks(budget, padded=False)
        assert torch.cat(chunks).tolist() == torch.cat(random_texts(LENGTHS).chunks(None)).tolist()
        sizes = [[LENGTHS[i] for i in chunk] for chunk in chunks]
        assert all(len(size) == 1 or sum(size) <= budget for size in sizes)
        assert all(sum(size) + following[0] > budget for size, following in pairwise(sizes))

    def test_chunks_are_filled(self):
        assert [len(chunk) for chunk in random_texts([3] * 10).chunks(12)] == [4, 4, 2]

    def test_no_budget_is_one_chunk(self):
        (chunk,) = random_texts(LENGTHS).chunks(None)
        assert sorted(chunk.tolist()) == list(range(len(LENGTHS)))

    def test_equal_lengths_stay_in_order(self):
        assert torch.cat(random_texts([3] * 20).chunks(6)).tolist() == list(range(20))


@pytest.mark.parametrize(
    "batch",
    [
        TextBatch(7, random_texts([2, 3]), torch.tensor([4, 9])),
        PairBatch(7, random_texts([2, 3]), 1, Marks.of(["q"], ["p"], [[]], in_batch=False)),
        PairBatch(7, random_texts([2, 3]), 1, Marks.of(["q"], ["p"], [[]], in_batch=False, scores=[[0.5]])),
    ],
)
def test_moving_a_batch_keeps_the_rest(batch):
    moved = batch.cut(None).to("meta")
    [part] = moved.chunks.parts
    assert {x.device.type for x in (part.input_ids, part.sizes, part.positions, moved.chunks.places)} == {"meta"}
    assert part.lengths.device.type == "cpu"
    others = {"chunks": 0, "marks": 0}
    assert {**vars(moved), **others} == {**vars(batch), **others}
    assert moved.cut(1) is moved
    if isinstance(batch, PairBatch):
        assert moved.marks.keys.device.type == "meta" and not moved.marks.in_batch
        assert (moved.marks.scores is None) == (batch.marks.scores is None)
        assert moved.marks.scores is None or moved.marks.scores.device.type == "meta"


def test_chunks_find_their_way_back():
    texts = random_texts(LENGTHS)
    chunks = Chunks.of(texts, 12)
    assert len(chunks.parts) > 2
    firsts = torch.cat([part.input_ids[part.borders[:-1]] for part in chunks.parts])
    assert torch.equal(firsts[chunks.places], texts.input_ids[texts.borders[:-1]])
