"""Encoders for other tools: a folder of merged weights, opened as its user will and compared before it appears."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from otherside.backbone import DTypes
from otherside.encoder import Encoder
from otherside.export import gguf, onnx, readme, sentence_transformers, transformers
from otherside.export.parity import FULL, OWN_READERS, TEXTS, Kind, ParityError, Reference, check_parity
from otherside.files import atomic_folder, check_out, make_folder
from otherside.template import template_of
from otherside.waits import quiet_libraries, saying
from otherside.weights import card_of

__all__ = ["TEXTS", "DTypes", "Kind", "ParityError", "Reference", "check_parity", "export", "write"]

Precision = Literal[DTypes, "int8", "q8_0"]
CLOSE = 0.99  # least mean cosine of 8-bit vectors with the encoder's
TOOLS: dict[str, tuple[Any, tuple[str, ...]]] = {"onnx": (onnx, ("int8",)), "gguf": (gguf, gguf.SMALL)}


def export(
    encoder: str,
    out: Path,
    kind: Kind = "sentence-transformers",
    dtype: Precision = "float32",
    prompts: dict[str, str] | None = None,
    force: bool = False,
) -> None:
    """Write a folder that other tools open, without code of ours.

    The adapters are merged in float32. The folder is opened again and its vectors, in float32, are compared with the
    encoder's; it appears under its name only if they agree. Its README.md says how to open it.

    Args:
        encoder: an encoder folder, or a base model.
        out: folder to write.
        kind: sentence-transformers, for `SentenceTransformer(OUT)`; merged, the causal language model with its head,
            for transformers and what builds on it; onnx, a graph with pooling in it, for ONNX Runtime alone; or gguf,
            a file for llama.cpp.
        dtype: of the weights written. onnx takes float32, and int8: 8 bits in linear layers, less than half of the
            memory, vectors that are close but not equal; gguf float32, float16 and q8_0, 8 bits alike.
        prompts: instructions that sentence-transformers offers by name, such as '{"query": "Find: ", "document": ""}';
            by default those that the encoder's last stage was trained with.
        force: replace OUT if it is there and not empty.

    Raises:
        FileNotFoundError: no such encoder.
        FileExistsError: OUT is not empty and `force` is not set.
        ModuleNotFoundError: onnx or gguf needs a package that is not installed.
        ValueError: OUT contains the encoder; its users cannot read texts as the encoder does.
        ParityError: the vectors differ; nothing is written.
        RuntimeError: llama.cpp cannot run what was written; nothing is.
    """
    check_out(out, encoder, force)
    _check_dtype(kind, dtype)
    if kind in TOOLS:
        TOOLS[kind][0].check_installed()
    make_folder(out.parent, "the folder of OUT")
    quiet_libraries()
    with atomic_folder(out) as work:
        with saying(f"opening {encoder}"):
            loaded = Encoder.load(encoder)
        _check_reading(loaded, kind)
        card = card_of(encoder)
        prompts = card.prompts if prompts is None else prompts
        tool, small = TOOLS.get(kind, (None, ()))
        rounds = dtype not in ("float32", *small)
        with saying("encoding texts to compare"):
            exact = reference = Reference.of(loaded, prompts)  # before the writer makes weights of what is none
        with saying(f"writing for {kind}"):
            write(loaded, work, kind, "float32" if dtype in small else dtype, prompts)  # type: ignore[arg-type]
            reference = Reference.of(loaded, prompts) if rounds else reference
            readme.write(loaded, encoder, card, work, kind, reference, out.name, dtype)
        del loaded
        gc.collect()  # modules hold each other; one copy in memory at a time
        with saying("comparing its vectors with the encoder's"):
            median, largest = check_parity(work, reference, kind)
        said = (
            f"vectors equal the encoder's; they differ by {median:.0e} in the median, {largest:.0e} at most (relative)"
        )
        if rounds:
            near = mean_cosine(reference.plain, exact.plain)
            said = f"{said}, with weights in {dtype}; those have a mean cosine of {near:.4f} with the encoder's own"
        if tool and dtype in small:
            tool.quantise(work, dtype)
            said = f"vectors have a mean cosine of {closeness(work, reference, kind, dtype):.4f} with the encoder's"
    print(f"{out}: {said}")
    print("\n".join([*readme.differences(kind, reference), f"How to open it: {out / readme.FILE}"]))


def write(
    encoder: Encoder, folder: Path, kind: Kind, dtype: DTypes = "float32", prompts: Mapping[str, str] = {}
) -> None:
    """What users of this kind open.

    Args:
        encoder: in float32, without an attached adapter; its weights are rounded to `dtype` too.
        folder: an empty folder.
        kind: see `export`.
        dtype: see `export`.
        prompts: see `export`.
    """
    if kind in TOOLS:
        TOOLS[kind][0].write(encoder, folder)
        return
    transformers.write(encoder, folder, kind == "merged", dtype)
    if kind == "sentence-transformers":
        sentence_transformers.write(encoder, folder, prompts)


def closeness(folder: Path, reference: Reference, kind: Kind, dtype: Precision) -> float:
    """Mean cosine of vectors of `TEXTS` in few bits with the encoder's.

    Raises:
        ParityError: it is below `CLOSE`.
    """
    [found] = OWN_READERS[kind](folder, [""], reference)
    near = mean_cosine(found, reference.plain)
    if not near >= CLOSE:
        raise ParityError(
            f"vectors with --dtype={dtype} must have a mean cosine of {CLOSE} or more with the encoder's; got "
            f"{near:.4f}. Nothing was exported. Use --dtype=float32."
        )
    return near


def mean_cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Of vectors (N, D) of `TEXTS`, without the empty one's, which not every tool has."""
    found, expected = found[FULL], expected[FULL]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    return float(cosines.mean())


def _check_dtype(kind: Kind, dtype: Precision) -> None:
    allowed = ("float32", *TOOLS[kind][1]) if kind in TOOLS else get_args(DTypes)
    if dtype not in allowed:
        raise ValueError(f"--dtype must be one of {', '.join(allowed)} with --kind={kind}; got {dtype}")


def _check_reading(encoder: Encoder, kind: Kind) -> None:
    template = template_of(encoder.tokenizer)
    if kind != "merged" and template is not None:
        raise ValueError(
            f"{kind} must read texts as the encoder does, and cannot put them into its template, "
            f"{template.form!r}. Use --kind=merged, and put the template around texts yourself."
        )
    if kind in TOOLS and not encoder.tokenizer.split_special_tokens:
        raise ValueError(
            f"{kind} must read texts as the encoder does, to which what spells a special token is that token: it was "
            "made for sentence-transformers. Use --kind=sentence-transformers."
        )
