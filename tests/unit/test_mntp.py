"""Masks as a function of (seed, row), and the loss against full logits."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from ranks import run_ranks
from tiny import VOCABULARY, adapter_gradients, distance, load, random_texts, singles, train_a_little
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoTokenizer

from otherside import mntp
from otherside.adapters import Lora
from otherside.batching import Packed
from otherside.mntp import Masking

MASK_ID = 400  # outside the vocabulary of the random texts, so that it can be told from them
LENGTHS = [1, 9, 3, 17, 9, 2]


def hide(texts: Packed, rows=None, masking=None, seed=0, vocabulary=VOCABULARY):
    rows = torch.arange(len(texts)) if rows is None else torch.tensor(rows)
    return mntp.mask(texts, rows, masking or Masking(), MASK_ID, vocabulary, seed)


def by_row(texts: Packed, rows: list[int], **options) -> dict[int, list]:
    """What each row looks like, hidden: (ids, labels)."""
    hidden, labels = hide(texts, rows, **options)
    lengths = texts.lengths.tolist()
    parts = zip(hidden.input_ids.split(lengths), labels.split(lengths), strict=True)
    return {row: [ids.tolist(), found.tolist()] for row, (ids, found) in zip(rows, parts, strict=True)}


class TestMask:
    rows = (50, 3, 2**40, 0, 8, 9)

    def test_depends_only_on_seed_and_row(self):
        texts, rows = random_texts(LENGTHS), list(self.rows)
        together = by_row(texts, rows)
        order = [4, 0, 5, 2, 3, 1]
        assert by_row(texts.select(torch.tensor(order)), [rows[i] for i in order]) == together  # another order
        alone = [by_row(text, [row]) for text, row in zip(singles(texts), rows, strict=True)]
        assert {row: found for part in alone for row, found in part.items()} == together  # other company
        halves = [by_row(texts.select(torch.arange(i, i + 3)), rows[i : i + 3]) for i in (0, 3)]
        assert halves[0] | halves[1] == together  # split over ranks

    def test_does_not_read_or_move_torchs_random_state(self):
        texts = random_texts(LENGTHS)
        torch.manual_seed(1)
        first, state = hide(texts), torch.get_rng_state()
        torch.manual_seed(2)
        assert torch.equal(hide(texts)[0].input_ids, first[0].input_ids)
        torch.manual_seed(1)
        assert torch.equal(torch.get_rng_state(), state)

    def test_other_seeds_and_rows_draw_other_masks(self):
        (text,) = singles(random_texts([200]))
        labels = [hide(text, [row], seed=seed)[1] for seed, row in ((0, 0), (0, 1), (1, 0), (1, 1))]
        for i, first in enumerate(labels):
            assert not any(torch.equal(first, other) for other in labels[:i])

    def test_the_first_token_is_never_hidden(self):
        texts = random_texts([2, 5, 9] * 200)
        hidden, labels = hide(texts, masking=Masking(probability=0.9))
        firsts = texts.borders[:-1]
        assert (labels[firsts] == -100).all()
        assert torch.equal(hidden.input_ids[firsts], texts.input_ids[firsts])

    def test_at_least_one_is_hidden_where_there_are_two(self):
        texts = random_texts([2, 3] * 200 + [1])
        _, labels = hide(texts, masking=Masking(probability=0.01))
        counts = [int((part != -100).sum()) for part in labels.split(texts.lengths.tolist())]
        assert min(counts[:-1]) == 1
        assert counts[-1] == 0

    def test_labels_are_the_hidden_tokens(self):
        texts = random_texts(LENGTHS)
        hidden, labels = hide(texts)
        chosen = labels != -100
        assert torch.equal(labels[chosen], texts.input_ids[chosen])
        assert torch.equal(hidden.input_ids[~chosen], texts.input_ids[~chosen])
        assert torch.equal(hidden.lengths, texts.lengths)

    def test_the_texts_given_stay_as_they_are(self):
        texts = random_texts(LENGTHS)
        before = texts.input_ids.clone()
        hide(texts)
        assert torch.equal(texts.input_ids, before)

    def test_shares(self):
        """20 % hidden; of these 80 % the mask token, 10 % a random token, 10 % kept. Bounds of four standard errors."""
        texts = random_texts([501] * 80)
        hidden, labels = hide(texts)
        chosen = labels != -100
        drawn, picked = 500 * 80, int(chosen.sum())

        def expect(count, total, share):
            assert count / total == pytest.approx(share, abs=4 * (share * (1 - share) / total) ** 0.5)

        now, then = hidden.input_ids[chosen], texts.input_ids[chosen]
        expect(picked, drawn, 0.2)
        expect(int((now == MASK_ID).sum()), picked, 0.8)
        same = 1 / VOCABULARY  # a random token can be the hidden one
        expect(int((now == then).sum()), picked, 0.1 + 0.1 * same)
        others = now[(now != MASK_ID) & (now != then)]
        expect(len(others), picked, 0.1 * (1 - same))
        assert 0 <= others.min() < 10
        assert VOCABULARY - 10 < others.max() < VOCABULARY

    def test_scheme_all(self):
        hidden, labels = hide(random_texts([300]), masking=Masking(scheme="all"))
        assert (hidden.input_ids[labels != -100] == MASK_ID).all()

    def test_a_row_number_too_few_is_an_error(self):
        with pytest.raises(ValueError, match="zip"):
            hide(random_texts([3, 4]), rows=[0])


class TestSettings:
    @pytest.mark.parametrize("probability", [0, 1, -0.1, 15])
    def test_probability(self, probability):
        with pytest.raises(ValueError, match=r"masking.probability must lie between 0 and 1"):
            Masking(probability=probability)

    def test_scheme(self):
        with pytest.raises(ValueError, match=r"masking.scheme must be standard or all; got 'bert'"):
            Masking(scheme="bert")  # type: ignore[arg-type]

    @pytest.mark.parametrize("fixture", ["tiny_llama", "tiny_llama_bos"])
    def test_mask_token(self, request, fixture):
        tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue(fixture))
        assert tokenizer.convert_ids_to_tokens(Masking().token_id(tokenizer)) == "_"
        assert Masking(token="</s>").token_id(tokenizer) == tokenizer.eos_token_id
        assert tokenizer.convert_ids_to_tokens(Masking(token=" ").token_id(tokenizer)) == "Ġ"  # spelled otherwise

    def test_a_mask_token_of_several_tokens_is_refused(self, tiny_llama):
        tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
        with pytest.raises(
            ValueError, match=r"must be one token of the vocabulary; '<mask>' is 6 tokens here.*such as '_'"
        ):
            Masking(token="<mask>").token_id(tokenizer)

    def test_an_unknown_mask_token_is_refused(self):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        words = Tokenizer(models.WordLevel({"<unk>": 0, "rain": 1}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
        with pytest.raises(ValueError, match="'_' is unknown here"):
            Masking().token_id(tokenizer)


class TestLoss:
    @pytest.fixture
    def backbone(self, tiny_llama):
        backbone = load(tiny_llama, Lora(r=4, dropout=0))
        train_a_little(backbone.lm)
        return backbone

    def masked(self, backbone, lengths=LENGTHS):
        texts = random_texts(lengths)
        return mntp.mask(texts, torch.arange(len(texts)), Masking(), mask_id=60, vocabulary=VOCABULARY, seed=0)

    def full_logits(self, backbone, texts, labels):
        """Text by text: all logits, shifted by one."""
        losses = []
        for text, wanted in zip(singles(texts), labels.split(texts.lengths.tolist()), strict=True):
            logits = backbone.logits(backbone(text))
            for i in range(1, len(wanted)):
                if wanted[i] != -100:
                    losses.append(F.cross_entropy(logits[i - 1], wanted[i]))
        return torch.stack(losses).mean()

    def loss(self, backbone, texts, labels, **options):
        states = backbone(texts)[mntp.predicting(labels)]
        return mntp.loss(states, labels[labels != -100], backbone.logits, **options)

    @pytest.mark.parametrize("chunk", [1, 2, 7, 1024])
    def test_equals_the_loss_of_full_logits(self, backbone, chunk):
        texts, labels = self.masked(backbone)
        assert (labels != -100).sum() > 7
        expected = self.full_logits(backbone, texts, labels)
        expected.backward()
        gradients = adapter_gradients(backbone.lm)
        found = self.loss(backbone, texts, labels, chunk=chunk)
        found.backward()
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        for name, gradient in adapter_gradients(backbone.lm).items():
            assert distance(gradient, gradients[name]) < 1e-5, name

    def test_a_hidden_second_token_is_predicted_from_the_first_of_its_own_text(self):
        labels = torch.tensor([-100, -100, 7, -100, 8, 9])
        assert mntp.predicting(labels).tolist() == [1, 3, 4]

    def test_bfloat16(self, tiny_llama):
        def value(dtype):
            backbone = load(tiny_llama, dtype=dtype)
            return self.loss(backbone, *self.masked(backbone))

        half = value("bfloat16")
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(value("float32").item(), rel=0.02)

    def test_no_hidden_token(self, backbone):
        texts = random_texts([1, 1])
        loss = self.loss(backbone, texts, torch.full((2,), -100))
        loss.backward()
        assert loss.item() == 0
        assert not any(g.any() for g in adapter_gradients(backbone.lm).values())

    def test_one_hidden_token(self):
        states, targets = torch.randn(1, 20), torch.tensor([3])
        assert torch.equal(mntp.loss(states, targets, lambda s: s), F.cross_entropy(states, targets))

    @pytest.mark.parametrize("chunk", [16, 1024])
    def test_never_all_logits(self, backbone, chunk):
        """No tensor of forward or backward is larger than (chunk, V), or than what the backbone itself needs."""
        texts, labels = self.masked(backbone, [50] * 8)
        hidden, vocabulary = int((labels != -100).sum()), backbone.lm.config.vocab_size
        states = backbone(texts)[mntp.predicting(labels)].detach().requires_grad_()
        with Largest() as largest:
            mntp.loss(states, labels[labels != -100], backbone.logits, chunk=chunk).backward()
        assert hidden > 60
        allowed = max(min(chunk, hidden) * vocabulary, backbone.lm.lm_head.weight.numel())
        assert min(chunk, hidden) * vocabulary <= largest.numel <= allowed < len(labels) * vocabulary / 4

    @pytest.mark.parametrize("sizes", [[6, 6], [10, 2], [12, 0], [5, 1, 2, 4]])
    def test_ranks_agree_with_one_process(self, sizes):
        random = torch.Generator().manual_seed(0)
        states, weight = torch.randn(12, 8, generator=random), torch.randn(8, 8, generator=random)
        targets, head = torch.arange(12), torch.randn(20, 8, generator=random)
        chunks = (3, 1024)

        def steps(states, targets):
            for chunk in chunks:
                w = weight.clone().requires_grad_()
                loss = mntp.loss(states @ w, targets, lambda s: s @ head.T, chunk)
                loss.backward()
                yield loss.detach(), w.grad

        def steps_of_rank():
            rank = dist.get_rank()
            return list(steps(states.split(sizes)[rank], targets.split(sizes)[rank]))

        of_ranks = zip(*run_ranks(len(sizes), steps_of_rank), strict=True)
        for chunk, parts, (loss, gradient) in zip(chunks, of_ranks, steps(states, targets), strict=True):
            losses, gradients = zip(*parts, strict=True)
            assert torch.stack(losses).mean().item() == pytest.approx(loss.item(), rel=1e-6), chunk
            assert distance(torch.stack(gradients).mean(0), gradient) < 1e-6, chunk

    def test_a_head_that_is_trained_alone(self):
        states, weights = torch.randn(5, 8), [torch.randn(20, 8).requires_grad_()]
        weights.append(weights[0].detach().clone().requires_grad_())
        mntp.loss(states, torch.arange(5), lambda s: s @ weights[0].T, chunk=2).backward()
        F.cross_entropy(states @ weights[1].T, torch.arange(5)).backward()
        assert distance(weights[0].grad, weights[1].grad) < 1e-6

    @pytest.mark.parametrize(("sizes", "chunk"), [([9, 1], 2), ([0, 5], 2), ([4, 4], 2), ([4, 3], 4)])
    def test_ranks_call_the_head_equally_often(self, sizes, chunk):
        """Its weights may be sharded, and gathering them is a collective."""
        head = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))

        def calls_of_rank():
            seen = []

            def logits(states):
                seen.append(len(states))
                return states @ head.T

            size = sizes[dist.get_rank()]
            mntp.loss(torch.ones(size, 8, requires_grad=True), torch.arange(size), logits, chunk).backward()
            return seen

        calls, chunks = run_ranks(2, calls_of_rank), math.ceil(max(sizes) / chunk)
        wanted = 2 * chunks if chunks > 1 else 1  # again in backward
        assert [len(seen) for seen in calls] == [wanted, wanted]
        assert max(max(seen) for seen in calls) == chunk


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *(tensor.numel() for tensor in tensors)])
        return out
