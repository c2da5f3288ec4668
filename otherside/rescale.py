"""Each dimension of a text's vector is divided by its spread, so that all count alike.

A few dimensions of a Llama's last states spread ten times as far as the others ("rogue dimensions"; Timkey and van
Schijndel, 2021); cosines are about them, and contrastive learning spends its steps on them. The spread is the model's,
not that of some texts: it is measured on random tokens, before a stage trains, and stays what it is.

Shapes: T tokens, S of them behind start tokens, D hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from otherside.batching import Packed, Tokens
from otherside.lineage import RESCALE, checked, sha256
from otherside.modes import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from otherside.backbone import Backbone

TEXTS, LENGTH = 64, 16  # random ones; four times as many measure the same
LEAST = 1e-3  # of the median spread


@torch.no_grad()
def measure(backbone: Backbone, tokenizer: PreTrainedTokenizerBase, start: int | None) -> Tensor:
    """(D,) float32, on the CPU: one over each dimension's spread, with a geometric mean of 1.

    Where weights are shared between ranks, all must call it.

    Args:
        backbone: in the attention that it is used in, and with the adapters.
        tokenizer: of the texts.
        start: id of the start token, or None.
    """
    ordinary = torch.tensor(sorted(set(range(len(tokenizer))) - set(tokenizer.all_special_ids)))
    drawn = ordinary[torch.randint(len(ordinary), (TEXTS, LENGTH), generator=torch.Generator().manual_seed(0))]
    head = [] if start is None else [start]
    texts = Packed.from_tokens([Tokens([*head, *row.tolist()], len(head), len(head)) for row in drawn])
    embeddings: Any = backbone.lm.get_input_embeddings()
    with evaluating(backbone):
        states_TD = backbone(texts.to(embeddings.weight.device))
    states_SD = states_TD.view(TEXTS, -1, states_TD.shape[1])[:, len(head) :].flatten(0, 1)
    spread_D = states_SD.double().std(0)
    factors_D = 1 / spread_D.clamp(min=LEAST * spread_D.median())
    return (factors_D / factors_D.log().mean().exp()).float().cpu()


def write(factors_D: Tensor, folder: Path) -> str:
    """Write its file into an encoder folder; the SHA-256 of it, for the card."""
    save_file({"factors": factors_D.float().cpu().contiguous()}, folder / RESCALE)
    return sha256(folder / RESCALE)


def read(folder: Path, digest: str) -> Tensor:
    """Of an encoder folder; raises as `lineage.checked`."""
    return load_file(checked(folder / RESCALE, digest, "factors"))["factors"]
