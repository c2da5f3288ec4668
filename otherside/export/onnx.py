"""A graph for ONNX Runtime: token ids in, pooled vectors out.

Shapes: N texts, L tokens of the longest, D hidden size.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from otherside.encoder import Encoder
from otherside.export import transformers
from otherside.pooling import Pooling
from otherside.tokenising import tokenise
from otherside.tokenizer import start_id

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUTS, OUTPUTS = ("input_ids", "attention_mask"), ("sentence_embedding", "token_embeddings")
MODEL = "model.onnx"


def check_installed() -> None:
    """Raise unless the packages are there that write and run a graph."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise ModuleNotFoundError(
            f"--kind=onnx needs the packages {', '.join(PACKAGES)}; there is no {missing[0]}. Install them: "
            "pip install 'otherside[onnx]'"
        )


def write(encoder: Encoder, folder: Path) -> None:
    """`model.onnx`, weights beside it where they are large, and `tokenizer.json`, which cuts and pads by itself.

    Args:
        encoder: in float32, without an attached adapter.
        folder: an empty folder.
    """
    from transformers import AutoModel

    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        transformers.write(encoder, Path(temporary), head=False)
        kernel = encoder.backbone.own_kernel
        model = AutoModel.from_pretrained(temporary, dtype=torch.float32, attn_implementation=kernel).eval()
    [empty] = tokenise(encoder.tokenizer, [""], encoder.max_length)
    has_start = start_id(encoder.tokenizer) is not None
    pool_start = encoder.pool_start is not False or not has_start
    graph = Graph(model, encoder.pooling, pool_start, None if has_start else empty.ids[0])
    _write_graph(graph.eval(), folder / MODEL)
    reader: Any = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    reader.enable_truncation(encoder.max_length)
    reader.enable_padding(pad_id=encoder.tokenizer.pad_token_id, pad_token=encoder.tokenizer.pad_token)
    reader.save(str(folder / "tokenizer.json"))


class Graph(nn.Module):
    """Texts padded on the right, to one vector each and one for each token. A text of its start token alone is pooled
    over that, as the encoder does.

    Args:
        model: of transformers, with the attention that its config asks for.
        pooling: see `pooling.Pooling`.
        pool_start: whether the first token is pooled.
        filler: token that an empty text is read as; None: the start token is there.
    """

    def __init__(self, model: nn.Module, pooling: Pooling, pool_start: bool, filler: int | None = None) -> None:
        super().__init__()
        self.model, self.pooling, self.first, self.filler = model, pooling, 0 if pool_start else 1, filler

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L) int64 token ids and their mask, 0 behind a text -> (N, D) and (N, L, D)."""
        tokens = input_ids.shape[1]
        if self.filler is not None:
            input_ids, attention_mask = self._filled(input_ids, attention_mask)
        hidden_NLD = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        left_out_N1 = (attention_mask.sum(1, keepdim=True) > 1) * self.first
        rank_NL = (attention_mask.cumsum(1) - left_out_N1).clamp(min=0) * attention_mask  # from 1; 0: not pooled
        if self.pooling == "mean":
            share_NL = rank_NL > 0
        elif self.pooling == "weighted_mean":
            share_NL = rank_NL
        else:
            share_NL = (rank_NL == rank_NL.amax(1, keepdim=True)) & (rank_NL > 0)
        share_NL = share_NL.float()
        return (share_NL[:, None] @ hidden_NLD)[:, 0] / share_NL.sum(1, keepdim=True), hidden_NLD[:, :tokens]

    def _filled(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Texts without a token get one: (N, L) -> (N, L + 1), as L is 0 where all are empty."""
        assert self.filler is not None
        column_N1 = torch.zeros_like(attention_mask.sum(1, keepdim=True))
        ids, mask = torch.cat([input_ids, column_N1], 1), torch.cat([attention_mask, column_N1], 1)
        is_first_NL = (mask.sum(1, keepdim=True) == 0) & (torch.arange(ids.shape[1], device=ids.device) == 0)
        return ids.masked_fill(is_first_NL, self.filler), mask.masked_fill(is_first_NL, 1)


def quantise(folder: Path, _: str = "int8") -> None:
    """Write the weights of linear layers with 8 bits, and a scale for each 32 of them.

    Not ONNX Runtime's dynamic quantisation, which takes one scale for all activations of a product: a Llama's few huge
    ones leave the others no bits (mean cosine with the float32 vectors .89, here .999; `benchmarks/onnx_graph.py`).
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.WARNING)  # else a line for each product
    model = onnx.load(folder / MODEL)
    quantizer = MatMulNBitsQuantizer(model, bits=8, block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    for path in folder.glob(f"{MODEL}*"):
        path.unlink()
    quantizer.model.save_model_to_file(str(folder / MODEL), use_external_data_format=True)


def _write_graph(graph: Graph, path: Path) -> None:
    ids = torch.ones(2, 7, dtype=torch.long)
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # else it misses torchvision
        program = torch.onnx.export(
            graph,
            (ids, torch.ones_like(ids)),
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes={name: sizes for name in INPUTS},
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(path)
