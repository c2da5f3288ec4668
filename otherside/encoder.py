"""The encoder: texts in, vectors out; and the folder it is kept in.

Shapes: N texts, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from otherside import adapters, distributed, full, pooling, rescale, stages, weights
from otherside.attention import Kernel
from otherside.backbone import AnyDType, Attention, Backbone, BackboneConfig, fast_dtype
from otherside.batching import Packed, tokens_at_once
from otherside.evaluation.model import Cosine, MTEBModel, model_meta
from otherside.files import atomic_folder
from otherside.lineage import AUTO, CARD, Card, Lineage, Training, instructions_of
from otherside.llama import check_length, within
from otherside.modes import evaluating
from otherside.pooling import Pooling
from otherside.template import template_of
from otherside.tokenising import tokenise
from otherside.tokenizer import check_fits, load_tokenizer, start_id, start_name
from otherside.weights import card_of
from otherside.words import Span, layer_vectors, span_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 1024  # tokenised, and sorted into chunks


class Encoder(Cosine, nn.Module):
    """A backbone, its tokenizer and a pooling: the one way to turn texts into vectors.

    Training modules, evaluation, probing, prediction and users all call `encode`. `mteb.evaluate` takes an encoder as
    it is; or `encoder.mteb(...)`, with instructions.

    Args:
        backbone: see `Backbone`.
        tokenizer: of the base model, with its start token; see `load_tokenizer`.
        pooling: mean, weighted_mean or last_token.
        max_length: longer texts are cut after so many tokens.
        pool_start: whether the start token is pooled; see `pooling.weights`.
        history: how its stages were trained, for the folder that it is kept in.

    Attributes:
        factors: (D,) float32, of the dimensions of its texts' vectors (`otherside.rescale`); None: 1.
    """

    factors: Tensor | None

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: PreTrainedTokenizerBase,
        pooling: Pooling = "mean",
        max_length: int = 512,
        pool_start: bool | None = True,
        history: tuple[Training, ...] = (),
    ) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling must be one of {', '.join(get_args(Pooling))}; got {pooling!r}")
        if max_length < 2:
            raise ValueError(f"max_length must be at least 2 tokens; got {max_length}")
        check_fits(tokenizer, backbone.lm.config.vocab_size)
        check_length("max_length must be", max_length, backbone.lm.config, "Lower max_length.")
        self.backbone = backbone
        self.tokenizer = tokenizer
        self.pooling: Pooling = pooling
        self.max_length = max_length
        self.pool_start = pool_start
        self.history = history
        self.register_buffer("factors", None, persistent=False)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        revision: str | None = None,
        attention: Attention | None = None,
        pooling: Pooling | None = None,
        max_length: int | None = None,
        start_token: str | None = AUTO,
        pool_start: bool | None = None,
        keep_sink: bool | None = None,
        rescaled: bool | None = None,
        merge: bool = True,
        dtype: AnyDType = "float32",
        kernel: Kernel = "auto",
        device: str | torch.device = "cpu",
    ) -> Encoder:
        """Open an encoder folder, one of LLM2Vec's or of sentence-transformers (hub id or folder), or any base model
        (hub id, folder, .gguf, pkg://) as an untrained encoder.

        `revision` is of a hub id. Settings that are not given come from the folder; for a base model they are
        bidirectional, mean, 512 or the model's own limit, the start token of `BackboneConfig`, pooled, with its sink;
        vectors are not rescaled.

        merge=False leaves the base's weights as they are and the stages' adapters beside them: vectors are the same,
        a little slower, and `encoder.backbone.as_base()` is the base model, which generates. Not where a stage was full
        fine-tuning: there is no base inside.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: a stage's file was changed or does not fit; `max_length` is beyond the model's positions.
            MaskError: the kernel does not compute the attention asked for.
        """
        card = card_of(str(model), revision)
        pool_start = card.pool_start if pool_start is None else pool_start
        tokenizer = load_tokenizer(str(model), revision, start_token)
        read = {"attention": attention, "start_token": start_token, "keep_sink": keep_sink}
        dtype = fast_dtype(device) if dtype == "auto" else dtype
        config = BackboneConfig(str(model), revision, dtype=dtype, kernel=kernel, **read)  # type: ignore[arg-type]
        backbone = Backbone.load(config, start=start_id(tokenizer), merge=merge)
        if max_length is None:
            max_length = within(card.max_length, backbone.lm.config)
        pooling = pooling or card.pooling  # type: ignore[assignment]
        encoder = cls(backbone, tokenizer, pooling, max_length, pool_start, card.history)  # type: ignore[arg-type]
        encoder.to(device).eval()
        encoder.backbone.self_test()
        if card.rescaled if rescaled is None else rescaled:
            encoder.rescale(str(model), card)
        return encoder

    def rescale(self, model: str, card: Card) -> None:
        """From now on let each dimension of a text's vector count alike, by the factors of an encoder folder, else by
        factors that are measured now.

        Args:
            model: folder or address that it comes from.
            card: of `model`.
        """
        if card.rescale is not None:
            factors = rescale.read(Path(weights.locate(model)), card.rescale)
        else:
            factors = rescale.measure(self.backbone, self.tokenizer, start_id(self.tokenizer))
        self.factors = distributed.from_first(factors).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.backbone.device

    def forward(self, texts: Packed) -> Tensor:
        """(N, D) float32 vectors of packed texts, with gradients."""
        vectors_ND = pooling.pool(self.backbone(texts), texts, self.pooling, self.pool_start)
        if self.factors is None or self.backbone.is_base:  # the base never had them
            return vectors_ND
        return vectors_ND * self.factors

    @torch.no_grad()
    def encode(
        self,
        texts: Sequence[str] | DataLoader[Any],
        *,
        instruction: str = "",
        batch_size: int | None = None,
        normalize: bool = False,
        show_progress: bool = False,
        **asked: Any,
    ) -> np.ndarray:
        """Vectors (N, D), float32, in the order of `texts`.

        Args:
            texts: N texts; sorted by length inside, so their order does not matter for speed.
            instruction: put between start token and text, as it is, or as the encoder's template says; takes part in
                attention, not in pooling.
            batch_size: at most so many texts at once; None: as many as make a good number of tokens for the device.
            normalize: scale vectors to length 1.
            show_progress: a progress bar with the time left.
            asked: by `mteb.evaluate`, which passes a `DataLoader` for `texts`.

        Raises:
            TypeError: `texts` is one string, or holds something else than strings; `instruction` is none.
            ValueError: the instruction leaves no room for text, a text is no valid Unicode, or `batch_size` is below 1.
        """
        if isinstance(texts, DataLoader):
            return self.mteb().encode(texts, **asked)
        if asked:
            raise TypeError(
                f"encode takes instruction, batch_size, normalize and show_progress; got {', '.join(asked)}"
            )
        if isinstance(texts, str):
            raise TypeError("encode takes a list of strings; for one text, pass [text]")
        if isinstance(texts, Mapping) or hasattr(texts, "columns"):  # which give their names
            raise TypeError(f"encode takes a list of strings; of a {type(texts).__name__}, pass one column")
        texts = list(texts)  # columns of pandas count by their labels, and a generator gives its texts once
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("encode takes a list of strings; for one text, pass [text]")
        if not isinstance(instruction, str):
            raise TypeError(f"instruction must be a string; got {instruction!r}. Leave it out, or pass '', for none.")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        vectors = torch.empty(len(texts), self.backbone.hidden_size, dtype=torch.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        with evaluating(self), tqdm(total=len(texts), unit="text", disable=not show_progress) as bar:
            at_once = batch_size or TEXTS_AT_ONCE
            for first in range(0, len(texts), at_once):
                chosen = order[first : first + at_once]
                batch = tokenise(self.tokenizer, [texts[i] for i in chosen], self.max_length, instruction)
                packed = Packed.from_tokens(batch)
                for part in packed.chunks(tokens_at_once(self.device)):
                    rows = torch.tensor(chosen)[part]
                    vectors[rows] = self(packed.select(part).to(self.device)).cpu()
                    bar.update(len(part))
        if normalize:
            vectors = nn.functional.normalize(vectors, dim=1)
        return vectors.numpy()

    def word_vectors(
        self,
        texts: Sequence[str],
        words: Sequence[Sequence[str | Span]],
        *,
        layers: Sequence[int] | None = None,
        show_progress: bool = False,
    ) -> list[np.ndarray]:
        """Vectors of words inside texts: the means of their tokens' states, whatever else the text says around them.

        Args:
            texts: N texts.
            words: per text the W words asked for: a word that stands in it once, or its first and its last + 1
                character.
            layers: numbers from 0, the embeddings; None: the last one alone.
            show_progress: a progress bar with the time left.

        Returns:
            Per text (W, D) float32, or with `layers` (W, L, D).

        Raises:
            TypeError: `texts` is one string.
            ValueError: a word does not stand in its text once; there is no such layer; a text is too long.
        """
        if isinstance(texts, str):
            raise TypeError(
                "word_vectors takes a list of texts and a list of words for each; for one text, pass [text]"
            )
        if any(isinstance(asked, str) for asked in words):
            raise TypeError("word_vectors takes a list of words for each text; got a text's words as one string")
        spans = [
            [span_of(text, word) if isinstance(word, str) else word for word in asked]
            for text, asked in zip(texts, words, strict=True)
        ]
        wanted = [self.backbone.layers] if layers is None else list(layers)
        found: list[np.ndarray] = [np.empty(0)] * len(texts)
        with tqdm(total=len(texts), unit="text", disable=not show_progress) as bar:
            for text, vectors_WLD in layer_vectors(self, texts, spans, wanted, progress=bar):
                found[text] = vectors_WLD[:, 0] if layers is None else vectors_WLD
        return found

    def mteb(self, instructions: Mapping[str, str] | None = None) -> MTEBModel:
        """This encoder as a model of mteb.

        Args:
            instructions: see `MTEBModel`. None: those for queries and documents that its last stage was trained with,
                as far as it is known; {}: none.
        """
        if instructions is None:
            instructions = {} if self.backbone.is_base else instructions_of(self.history)

        def encode(texts: list[str], instruction: str) -> np.ndarray:
            return self.encode(texts, instruction=instruction)

        return MTEBModel(encode, model_meta(self, instructions), instructions)

    @property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside results."""
        return self.mteb().mteb_model_meta

    def save(
        self,
        folder: str | Path,
        stage: str,
        steps: int = 0,
        weights: Mapping[str, Tensor] | None = None,
        training: Training | None = None,
    ) -> Path:
        """Write an encoder folder: lineage, its files, tokenizer, settings. Appears whole or not at all.

        An attached adapter, or the base's own weights that are trained, become the last of the lineage, named `stage`.
        An older folder of this name is replaced.

        Args:
            folder: to write.
            stage: the variant's name.
            steps: optimizer steps of the stage.
            weights: that are trained, by their names in `backbone.lm`, where it does not hold them itself (shards).
            training: how they were trained, for the encoder's users.

        Raises:
            FileExistsError: the folder holds something else than an encoder.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / CARD).is_file():
            raise FileExistsError(f"folder must be new, empty or an encoder's, which is replaced; {folder} is none")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder) as work:
            self.tokenizer.save_pretrained(work)
            lineage = self._save_stages(work, stage, weights)
            sink = self.backbone.sink.write(work) if self.backbone.sink else None
            read = (self.backbone.attention, self.pooling, self.max_length, start_name(self.tokenizer), self.pool_start)
            new = lineage.adapters[len(self.backbone.lineage.adapters) :]
            history = (*self.history, *((training or Training(stage, steps),) if new else ()))
            factors = None if self.factors is None else rescale.write(self.factors, work)
            Card(lineage, stage, steps, *read, sink, template_of(self.tokenizer), factors, history).write(work)
        return folder

    def _save_stages(self, work: Path, stage: str, weights: Mapping[str, Tensor] | None) -> Lineage:
        lm, lineage = self.backbone.lm, self.backbone.lineage
        new = partial(stages.folder_in, work, len(lineage.adapters), stage)
        if self.backbone.trains_whole:
            trained = weights or {name: p for name, p in lm.named_parameters() if p.requires_grad}
            lineage = stages.copy(lineage, work, trained.keys())
            full.write(trained, new("weights"))
            return lineage.extended(stage, new("weights"), "weights")
        lineage = stages.copy(lineage, work)
        if adapters.is_attached(lm):
            adapters.save(lm, new(), lineage.base, weights)
            lineage = lineage.extended(stage, new())
        return lineage
