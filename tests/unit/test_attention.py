from itertools import pairwise

import pytest
import torch
from tiny import distance, random_texts
from torch.utils._python_dispatch import TorchDispatchMode

from otherside.attention import Borders, Rule, best_kernel, packed_attention

UNEVEN, EVEN = [5, 1, 9, 3], [4, 4, 4]
HEADS, GROUPS, SIZE = 4, 2, 8
SCALE = 0.5  # not the default of SDPA


def draw(total: int) -> list[torch.Tensor]:
    """Query, key and value as transformers hands them over: (1, heads, T, d)."""
    random = torch.Generator().manual_seed(0)
    return [torch.randn(1, heads, total, SIZE, generator=random) for heads in (HEADS, GROUPS, GROUPS)]


def mask_by_hand(length, causal, window):
    """True where a query (row) sees a key."""
    return torch.tensor(
        [
            [
                (i >= j if causal else True) and (i - j < window if causal else abs(i - j) <= window)
                for j in range(length)
            ]
            for i in range(length)
        ]
    )


def attend(q, k, v, lengths, *, causal=False, kernel="auto", dropout=0.0, **asked):
    out, weights = packed_attention(
        torch.nn.Module(), q, k, v, None, borders=Borders.of(random_texts(lengths)), causal=causal, kernel=kernel,
        scaling=SCALE, dropout=dropout, position_ids=None, **asked,
    )  # fmt: skip
    assert weights is None
    return out


def by_hand(q, k, v, lengths, causal, window=100, softcap=None):
    """Text by text and head by head."""
    out = torch.empty(1, sum(lengths), HEADS, SIZE)
    borders = torch.tensor([0, *lengths]).cumsum(0).tolist()
    for start, end in pairwise(borders):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            scores = q[0, head, start:end] @ k[0, group, start:end].T * SCALE
            if softcap:
                scores = torch.tanh(scores / softcap) * softcap
            scores = scores.masked_fill(~mask_by_hand(end - start, causal, window), float("-inf"))
            out[0, start:end, head] = scores.softmax(-1) @ v[0, group, start:end]
    return out


@pytest.mark.parametrize("lengths", [UNEVEN, EVEN, [7], [1, 1]])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kernel", ["auto", "sdpa", "eager"])
def test_equals_a_loop_over_texts_and_heads(lengths, causal, kernel):
    qkv = draw(sum(lengths))
    assert distance(attend(*qkv, lengths, causal=causal, kernel=kernel), by_hand(*qkv, lengths, causal)) < 1e-5


@pytest.mark.parametrize("lengths", [UNEVEN, EVEN])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 2, 5, 50])
@pytest.mark.parametrize(("kernel", "softcap"), [("sdpa", None), ("eager", None), ("eager", 0.7), ("auto", 0.7)])
def test_windows_and_soft_caps_equal_the_loops(lengths, causal, window, kernel, softcap):
    qkv = draw(sum(lengths))
    found = attend(*qkv, lengths, causal=causal, kernel=kernel, sliding_window=window, softcap=softcap)
    assert distance(found, by_hand(*qkv, lengths, causal, window, softcap)) < 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [1, 3, None])
def test_kernels_that_count_windows_in_tokens_see_the_same(causal, window):
    """They run on CUDA only; flash attention: from i - before up to i + behind, -1 without end."""
    before, behind = Rule(causal, SCALE, window=window).reach
    i, j = torch.arange(9)[:, None], torch.arange(9)
    seen = ((j >= i - before) | (before < 0)) & ((j <= i + behind) | (behind < 0))
    assert torch.equal(seen, mask_by_hand(9, causal, window or 100))


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_equal_the_loops(causal, kernel, window):
    """Padding behind a short text is beyond the window of all its tokens."""
    lengths = [9, 1]
    found = [x.requires_grad_() for x in draw(sum(lengths))]
    expected = [x.requires_grad_() for x in draw(sum(lengths))]
    attend(*found, lengths, causal=causal, kernel=kernel, sliding_window=window).square().sum().backward()
    by_hand(*expected, lengths, causal, window or 100).square().sum().backward()
    for f, e in zip(found, expected, strict=True):
        assert distance(f.grad, e.grad) < 1e-5


def test_without_grouped_queries():
    q, k, v = draw(sum(UNEVEN))
    k, v = k.repeat_interleave(2, dim=1), v.repeat_interleave(2, dim=1)
    assert distance(attend(q, k, v, UNEVEN), attend(q, k[:, ::2], v[:, ::2], UNEVEN)) < 1e-6


@pytest.mark.parametrize("kernel", ["auto", "sdpa", "eager"])
def test_dropout_drops_and_keeps_the_expectation(kernel):
    q, k, v = draw(4 * 200)
    out = attend(q * 0, k, torch.ones_like(v), [200] * 4, kernel=kernel, dropout=0.5)
    assert out.std() > 0.01  # each is a mean over 200 values, of which some were dropped
    assert out.mean().item() == pytest.approx(1, abs=0.02)


class Operations(TorchDispatchMode):
    """Names of all that is called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_kernel_is_what_its_name_says(kernel):
    with Operations() as called:
        attend(*draw(sum(EVEN)), EVEN, kernel=kernel)
    assert any("scaled_dot_product" in name for name in called.names) == (kernel == "sdpa")


@pytest.mark.parametrize(
    ("dtype", "longest", "training", "kernel"),
    [
        (torch.float32, 9, True, "sdpa"),
        (torch.bfloat16, 128, True, "eager"),
        (torch.float16, 9, True, "eager"),
        (torch.bfloat16, 129, True, "sdpa"),
        (torch.bfloat16, 9, False, "sdpa"),
    ],
)
def test_auto_on_a_cpu(dtype, longest, training, kernel):
    assert best_kernel(torch.device("cpu"), dtype, longest, 0.1, training) == kernel


class TestAskedFor:
    @pytest.mark.parametrize(
        ("asked", "message"),
        [
            ({"s_aux": torch.ones(4)}, r"Module asks for s_aux\. Use another backbone\.model\.$"),
            ({"softcap": 50.0, "kernel": "sdpa"}, r"auto or eager for a Module.*50\); got sdpa\. Use"),
            ({"new": False}, "asks for new=False"),
        ],
    )
    def test_what_is_not_computed_is_refused(self, asked, message):
        with pytest.raises(ValueError, match=message):
            attend(*draw(4), [4], **asked)

    def test_what_changes_no_attention_is_taken(self):
        qkv, ignored = draw(4), {"softcap": None, "sliding_window": None, "use_cache": False, "cache_position": 1}
        assert torch.equal(attend(*qkv, [4], **ignored), attend(*qkv, [4]))


class TestBorders:
    @pytest.mark.parametrize("lengths", [UNEVEN, EVEN])
    def test_pad_and_unpad(self, lengths):
        borders = Borders.of(random_texts(lengths))
        x = torch.randn(sum(lengths), 3, 2)
        padded = borders.pad(x)
        assert padded.shape == (len(lengths), 3, max(lengths), 2)
        for row, text in zip(padded, x.split(lengths), strict=True):
            assert torch.equal(row[:, : len(text)], text.transpose(0, 1))
            assert not row[:, len(text) :].any()
        assert torch.equal(borders.unpad(padded), x)

    @pytest.mark.parametrize("lengths", [UNEVEN, EVEN])
    @pytest.mark.parametrize("longest", [None, 12])
    def test_what_is_behind_the_last_text_takes_no_part(self, lengths, longest):
        filled, plain = (Borders.of(random_texts(lengths), longest, filler) for filler in (3, 0))
        x = torch.randn(sum(lengths) + 3, 3, 2, requires_grad=True)
        padded = filled.pad(x)
        assert torch.equal(padded, plain.pad(x[:-3])) and padded.shape[2] == (longest or max(lengths))
        back = filled.unpad(padded)
        assert torch.equal(back, torch.cat([x[:-3], torch.zeros(3, 3, 2)]))
        (back * torch.arange(1.0, 1 + x.numel()).view_as(x)).sum().backward()
        assert torch.equal(x.grad[:-3].flatten(), torch.arange(1.0, 1 + x[:-3].numel()))
        assert not x.grad[-3:].any()

    def test_texts_of_one_length_are_not_copied(self):
        borders, x = Borders.of(random_texts(EVEN)), torch.randn(sum(EVEN), 3, 2)
        assert borders.unpad(borders.pad(x)).data_ptr() == borders.pad(x).data_ptr() == x.data_ptr()

    def test_key_mask_marks_tokens(self):
        mask = Borders.of(random_texts(UNEVEN)).key_mask
        expected = torch.tensor([[i < length for i in range(max(UNEVEN))] for length in UNEVEN])
        assert torch.equal(mask[:, 0, 0], expected)

    @pytest.mark.parametrize("causal", [False, True])
    def test_the_mask_of_a_window_is_made_once_for_all_layers(self, causal):
        borders = Borders.of(random_texts(UNEVEN))
        assert borders.mask(causal, 2) is borders.mask(causal, 2)
        assert borders.mask(causal, None) is (None if causal else borders.key_mask)

    def test_no_key_mask_without_holes(self):
        """An all-ones mask can send SDPA down another path."""
        assert Borders.of(random_texts(EVEN)).key_mask is None

    def test_starts_are_cumulative_int32(self):
        starts = Borders.of(random_texts(UNEVEN)).starts
        assert starts.dtype == torch.int32
        assert starts.tolist() == [0, 5, 6, 15, 18]
