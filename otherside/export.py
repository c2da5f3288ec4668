"""Encoders for other tools: a folder of merged weights, opened again as its user will and compared before it appears.

Shapes: N texts, D hidden size.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from otherside import pooling
from otherside.backbone import Backbone, DTypes
from otherside.batching import Packed, tokenise
from otherside.encoder import Encoder
from otherside.files import make_folder, replace_folder
from otherside.template import Template, set_template, template_of
from otherside.tokenizer import start_id

Kind = Literal["sentence-transformers", "merged"]
TOLERANCE = 1e-5  # largest relative difference of a vector in float32; padded and packed kernels differ by less

# Mixed lengths, so that batches are padded; scripts, emoji, code, spaces; one longer than max_length. None begins with
# a space: it would join the end of the prompt, and sentence-transformers counts the prompt's tokens without the text.
TEXTS = [
    "a",
    ".",
    "Rain.",
    "42",
    "Snow fell.",
    "The cat sat on the mat.",
    "the cat sat on the mat",
    "Water boils at one hundred degrees Celsius at sea level.",
    "Paris is the capital of France, and Lyon its third-largest city.",
    "Die Würde des Menschen ist unantastbar. Straße, Öl, Äpfel, größer.",
    "Où est passée la naïveté de l'été ? Ça, c'est une question.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "東京は日本の首都であり、世界最大の都市圏を形成している。",
    "القاهرة هي عاصمة جمهورية مصر العربية وأكبر مدنها.",
    "नमस्ते दुनिया, आज मौसम अच्छा है।",
    "안녕하세요, 만나서 반갑습니다.",
    "Emoji: 👩‍🔬🏳️‍🌈 and a combining e\u0301 and a\u00a0no-break space.",
    "two spaces  between, three   and a tab\there",
    "def f(x):\n    return x ** 2  # squares\n",
    "https://example.org/path?query=value&other=1#fragment",
    "She opened the window and looked at the other side of the street, where nobody had lived for years.",
    "A dog barked at the postman all morning long, as dogs do; the postman, for his part, barked back.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "The committee could not agree on a date for the next meeting. " * 6,
    "A text that spells <|endoftext|>, <s>, </s> and <|begin_of_text|> is text all the same.",
    "One long text that every encoder has to cut somewhere, after as many tokens as it may take. " * 400,
]
# Ends in a line break, because a space would join the text's first word
PROMPT = "Find a text that says the same:\n"


class ParityError(RuntimeError):
    """What was exported does not give the encoder's vectors."""


@dataclass(frozen=True)
class Reference:
    """What an export must reproduce.

    Args:
        plain: (N, D) vectors of `TEXTS`.
        prompted: (N, D) vectors of `TEXTS` with `PROMPT` before them.
        pooling: the encoder's.
        max_length: the encoder's.
        pool_start: the encoder's; None where it has no start token.
        template: the encoder's.
    """

    plain: np.ndarray
    prompted: np.ndarray
    pooling: pooling.Pooling
    max_length: int
    pool_start: bool | None
    template: Template | None = None

    @classmethod
    def of(cls, encoder: Encoder) -> Reference:
        """Encode the texts."""
        plain, prompted = encoder.encode(TEXTS), encoder.encode(TEXTS, instruction=PROMPT)
        pool_start = encoder.pool_start if start_id(encoder.tokenizer) is not None else None
        template = template_of(encoder.tokenizer)
        return cls(plain, prompted, encoder.pooling, encoder.max_length, pool_start, template)

    @property
    def unequal_prompts(self) -> str:
        """Why sentence-transformers pools behind a prompt otherwise than the encoder; empty: it does not."""
        if self.pooling == "weighted_mean":
            return "it weights positions from the prompt on, not from the text"
        if self.pooling == "mean" and self.pool_start:
            return "it leaves the start token out of the mean together with the prompt"
        return ""

    @property
    def unit(self) -> bool:
        """Whether the vectors exported have length 1, as leaving out the start token makes necessary."""
        return self.pooling == "mean" and self.pool_start is False


def export(
    encoder: str,
    out: Path,
    kind: Kind = "sentence-transformers",
    dtype: DTypes = "float32",
    force: bool = False,
) -> None:
    """Write a folder that other tools open, without code of ours.

    The adapters are merged in float32. The folder is opened again and its vectors, in float32, are compared with the
    encoder's; it appears under its name only if they agree.

    Args:
        encoder: an encoder folder, or a base model.
        out: folder to write.
        kind: sentence-transformers, for `SentenceTransformer(OUT)`; or merged, the causal language model with its
            head, for transformers and what builds on it.
        dtype: of the weights written.
        force: replace OUT if it is there and not empty.

    Raises:
        FileNotFoundError: no such encoder.
        FileExistsError: OUT is not empty and `force` is not set.
        ValueError: OUT contains the encoder; sentence-transformers cannot read texts as the encoder does.
        ParityError: the vectors differ; nothing is written.
    """
    _check_target(Path(encoder), out, force)
    make_folder(out.parent, "the folder of OUT")
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent)).resolve()
    try:
        loaded = Encoder.load(encoder)
        _check_template(loaded, kind)
        write(loaded, work, kind, dtype)
        reference = Reference.of(loaded)
        del loaded  # one copy in memory at a time
        difference = check_parity(work, reference, kind)
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{out}: vectors equal the encoder's, largest relative difference {difference:.0e}")
    if kind == "sentence-transformers" and (why := reference.unequal_prompts):
        print(f"With a prompt sentence-transformers gives other vectors: {why}.")
    if kind == "sentence-transformers" and reference.unit:
        print("sentence-transformers gives them with length 1.")
    if (template := reference.template) is not None:
        print(f"They are of texts in this template, pooled from the text on: {template.form!r}.")


def _check_template(encoder: Encoder, kind: Kind) -> None:
    template = template_of(encoder.tokenizer)
    if kind == "sentence-transformers" and template is not None:
        raise ValueError(
            "sentence-transformers must read texts as the encoder does, and cannot put them into its template, "
            f"{template.form!r}. Use --kind=merged, and put the template around texts yourself."
        )


def _check_target(encoder: Path, out: Path, force: bool) -> None:
    if encoder.exists() and encoder.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"OUT must not contain the encoder, whose place it would take; got {out} for {encoder}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"OUT must be a folder; {out} is a file")
    if out.exists() and any(out.iterdir()) and not force:
        raise FileExistsError(f"OUT must be new or empty; {out} is not. Name another, or replace it by --force=true.")


def write(encoder: Encoder, folder: Path, kind: Kind, dtype: DTypes = "float32") -> None:
    """Merged weights, config, tokenizer and, for sentence-transformers, its module files.

    The encoder's own weights are rounded to `dtype` too, so that it stays comparable with what was written.

    Args:
        encoder: in float32, without an attached adapter.
        folder: an empty folder.
        kind: see `export`.
        dtype: see `export`.
    """
    lm = encoder.backbone.lm
    _embed_sink(encoder.backbone)
    model: Any = lm if kind == "merged" else lm.base_model
    for parameter in lm.parameters():  # not buffers: rotary frequencies stay float32
        parameter.data = parameter.data.to(getattr(torch, dtype))
    model.save_pretrained(folder)
    for parameter in lm.parameters():
        parameter.data = parameter.data.float()
    _complete_config(folder / "config.json", encoder.backbone.attention == "causal")
    tokenizer = encoder.tokenizer
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # never seen by attention; which token it is does not matter
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token or tokenizer.convert_ids_to_tokens(0)
    tokenizer.save_pretrained(folder)
    if kind == "sentence-transformers":
        _write_modules(folder, encoder)


@torch.no_grad()
def _embed_sink(backbone: Backbone) -> None:
    """What the start token enters with becomes its embedding; a head that shares its weights keeps the old ones."""
    sink, lm = backbone.sink, backbone.lm
    if sink is None or backbone.attention == "causal":
        return
    embeddings: Any
    head: Any
    embeddings, head = lm.get_input_embeddings(), lm.get_output_embeddings()
    if head.weight is embeddings.weight:
        head.weight = torch.nn.Parameter(head.weight.clone(), requires_grad=False)
        lm.config.tie_word_embeddings = False
    embeddings.weight[sink.token] = sink.state
    backbone.sink = None


def _complete_config(path: Path, causal: bool) -> None:
    """What tells other tools which attention the weights were trained for."""
    config = json.loads(path.read_text())
    config["is_causal"] = causal  # transformers, sentence-transformers, vLLM
    if not causal:
        config["use_bidirectional_attention"] = True  # text-embeddings-inference
    if theta := (config.get("rope_parameters") or {}).get("rope_theta"):
        config["rope_theta"] = theta  # where tools written for transformers 4 look for it
    _dump(path, config)


def _write_modules(folder: Path, encoder: Encoder) -> None:
    """The files that say: Llama, then pooling. Under names that sentence-transformers 2 to 6 know.

    A start token that is not pooled has the weight 0. With a prompt, the other weights then no longer sum to the number
    of tokens pooled, so vectors are scaled to length 1.
    """
    names = {"Transformer": "", "Pooling": "1_Pooling"}
    start = start_id(encoder.tokenizer)
    if start is not None and encoder.pool_start is False and encoder.pooling != "last_token":
        if encoder.pooling == "weighted_mean":
            raise ValueError(
                "sentence-transformers cannot leave a start token out of weighted_mean; this encoder does (pool_start: "
                "false). Train it with pool_start: true, or export --kind=merged."
            )
        names = {"Transformer": "", "WordWeights": "1_WordWeights", "Pooling": "2_Pooling", "Normalize": "3_Normalize"}
        _write_weights(folder / "1_WordWeights", start, encoder)
        (folder / "3_Normalize").mkdir()
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(names.items())
    ]
    _dump(folder / "modules.json", modules)
    _dump(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    modes = {
        "cls_token": False,
        "mean_tokens": encoder.pooling == "mean",
        "max_tokens": False,
        "mean_sqrt_len_tokens": False,
        "weightedmean_tokens": encoder.pooling == "weighted_mean",
        "lasttoken": encoder.pooling == "last_token",
    }
    config = {"word_embedding_dimension": encoder.backbone.hidden_size, "include_prompt": False}
    (folder / names["Pooling"]).mkdir()
    modes = {f"pooling_mode_{mode}": on for mode, on in modes.items()}
    _dump(folder / names["Pooling"] / "config.json", {**config, **modes})


def _write_weights(folder: Path, start: int, encoder: Encoder) -> None:
    """Weight 0 for the start token, 1 for every other; tokens are told apart by their place in `vocab` alone."""
    weights = torch.ones(encoder.backbone.lm.config.vocab_size, 1)
    weights[start] = 0
    vocab = ["" if weight else "start" for weight in weights]
    folder.mkdir()
    _dump(folder / "config.json", {"vocab": vocab, "word_weights": {"start": 0.0}, "unknown_word_weight": 1.0})
    save_file({"emb_layer.weight": weights}, folder / "model.safetensors")


def _dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def check_parity(folder: Path, reference: Reference, kind: Kind) -> float:
    """Open an exported folder as its user will and compare vectors, in float32, with and without a prompt.

    Where sentence-transformers cannot give equal vectors behind a prompt (`Reference.unequal_prompts`), those are not
    compared.

    Returns:
        The largest relative difference of a vector.

    Raises:
        ParityError: it exceeds `TOLERANCE`.
    """
    as_user = kind == "sentence-transformers" and importlib.util.find_spec("sentence_transformers") is not None
    vectors = _by_sentence_transformers if as_user else _by_transformers
    prompts = {"": reference.plain, PROMPT: reference.prompted}
    if as_user and reference.unequal_prompts:
        del prompts[PROMPT]
    worst = 0.0
    for prompt, found in zip(prompts, vectors(folder, list(prompts), reference), strict=True):
        expected = prompts[prompt]
        if as_user and reference.unit:
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        if found.shape != expected.shape:
            raise ParityError(f"exported vectors must have shape {expected.shape}; got {found.shape}")
        differences = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
        i = int(np.nan_to_num(differences, nan=np.inf).argmax())
        worst = max(worst, float(np.nan_to_num(differences[i], nan=np.inf)))
        if worst > TOLERANCE:
            raise ParityError(
                f"exported vectors must equal the encoder's to {TOLERANCE:.0e}; with prompt {prompt!r} that of "
                f"{TEXTS[i][:40]!r} differs by {worst:.1e} (relative). Nothing was exported. Use the tested versions "
                "of transformers and sentence-transformers (constraints.txt); if they are in use, please report it."
            )
    return worst


def _by_sentence_transformers(folder: Path, prompts: Sequence[str], _: Reference) -> list[np.ndarray]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return [model.encode(TEXTS, prompt=prompt or None, batch_size=8, show_progress_bar=False) for prompt in prompts]


@torch.no_grad()
def _by_transformers(folder: Path, prompts: Sequence[str], reference: Reference) -> list[np.ndarray]:
    """Padded, with the attention that config.json asks for."""
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_template(tokenizer, reference.template)
    found = []
    for prompt in prompts:
        rows = []
        for first in range(0, len(TEXTS), 8):
            texts = tokenise(tokenizer, TEXTS[first : first + 8], reference.max_length, prompt)
            padded = tokenizer.pad({"input_ids": [text.ids for text in texts]}, return_tensors="pt")
            hidden_NLD = model(**padded, use_cache=False).last_hidden_state
            packed = Packed.from_tokens(texts)
            rows.append(
                pooling.pool(
                    hidden_NLD[padded["attention_mask"].bool()], packed, reference.pooling, reference.pool_start
                )
            )
        found.append(torch.cat(rows).numpy())
    return found
