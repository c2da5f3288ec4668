"""What is left of the generator: how well each variant still predicts the next token of held-out text.

Shapes: N texts, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from otherside.batching import Packed
from otherside.llama import within
from otherside.probing.results import OFF, ON, Row
from otherside.probing.scores import Score, count
from otherside.tokenising import tokenise

if TYPE_CHECKING:
    from otherside.encoder import Encoder

TEXTS = 100  # read of a file: of differences between variants they tell 1 %
TOKENS_AT_ONCE = 1024  # logits are (T, V) float32
LONGEST = 512  # tokens of a text
PROMPT, NEW_TOKENS = 6, 24  # words that a sample begins with, tokens that it goes on


def read_texts(path: Path) -> list[str]:
    """The first lines of a text file that are not empty.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--generation must be a text file with a text in each line; there is none at {path}")
    texts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()][:TEXTS]
    if not texts:
        raise ValueError(f"--generation must have a text in each line; {path} has none")
    return texts


def generation(encoder: Encoder, texts: Sequence[str]) -> list[Row]:
    """Perplexity of a token given those in front of it, in causal attention; intervals resample texts.

    With the adapters off it is the base model's, bit for bit: nothing of the generator is lost. With the adapters on it
    is what the encoder itself would be worth as a generator; that alone is left of full fine-tuning.

    Args:
        encoder: opened with merge=False, where it can be.
        texts: N texts, of which the first 512 tokens are read.

    Raises:
        ValueError: the base has no head, or no text has two tokens.
    """
    backbone, packed = encoder.backbone, _read(encoder, texts)
    backbone.check_head("--generation")
    surprise = {}
    if not backbone.lineage.trained_whole:
        with backbone.as_base():
            surprise[OFF] = surprisals(encoder, packed)
    surprise[ON] = _causal(encoder, packed) if backbone.lineage.adapters else surprise[OFF]
    predicted = (packed.lengths - 1).numpy()
    times = count(len(packed))
    rows = []
    for name, sums in surprise.items():
        score = Score.of(np.exp(sums.sum() / predicted.sum()), np.exp(times @ sums / (times @ predicted)))
        rows.append(Row("generation", name, "", None, "", "context", "perplexity", score))
    return rows


def perplexity(encoder: Encoder, texts: Sequence[str]) -> float:
    """Of a token given those in front of it, in causal attention, with whatever adapters are at work."""
    packed = _read(encoder, texts)
    return float(np.exp(_causal(encoder, packed).sum() / (packed.lengths - 1).sum().item()))


def _read(encoder: Encoder, texts: Sequence[str]) -> Packed:
    """The texts that have a token to predict.

    Raises:
        ValueError: none has.
    """
    longest = within(LONGEST, encoder.backbone.lm.config)
    read = tokenise(encoder.tokenizer, list(texts), longest, in_template=False)
    if not (predicted := [text for text in read if len(text.ids) > 1]):
        raise ValueError("generation needs texts of two tokens or more; none has")
    return Packed.from_tokens(predicted)


def _causal(encoder: Encoder, packed: Packed) -> np.ndarray:
    backbone = encoder.backbone
    attention, backbone.attention = backbone.attention, "causal"
    try:
        return surprisals(encoder, packed)
    finally:
        backbone.attention = attention


@torch.no_grad()
def surprisals(encoder: Encoder, texts: Packed) -> np.ndarray:
    """(N,) float64: of each text the sum over its tokens, the first excepted, of −log p(token | those in front of it).

    Args:
        encoder: with causal attention.
        texts: N texts.
    """
    backbone, found = encoder.backbone, np.zeros(len(texts))
    for chunk in texts.chunks(TOKENS_AT_ONCE):
        part = texts.select(chunk).to(encoder.device)
        logits_TV = backbone.logits(backbone(part))[:-1].float()
        losses = F.cross_entropy(logits_TV, part.input_ids[1:], reduction="none").double().cpu()
        ends = part.lengths.cumsum(0)
        for text, start, end in zip(chunk.tolist(), (ends - part.lengths).tolist(), ends.tolist(), strict=True):
            found[text] = losses[start : end - 1].sum()
    return found


def completion(encoder: Encoder, text: str) -> str:
    """How the generator goes on from the first words of `text`, always taking the likeliest token.

    Args:
        encoder: with causal attention; see `Backbone.generate`.
        text: whose first words it is given.
    """
    prompt = " ".join(text.split()[:PROMPT])
    ids = torch.tensor(encoder.tokenizer(prompt)["input_ids"], device=encoder.device)[None]
    asked = {"attention_mask": torch.ones_like(ids), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    made = encoder.backbone.generate(ids, pad_token_id=0, **asked)
    return str(encoder.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
