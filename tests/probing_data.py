"""Small data sets in the published layout, and vectors of words in the order of their texts."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from otherside.encoder import Encoder
from otherside.probing.published import NORMS
from otherside.words import Span, layer_vectors

NOUNS = ["cat", "dog", "sea", "teacher", "window", "letter", "street", "mat"]
VERBS = ["watched", "opened", "painted", "sold"]


def write_published(folder: Path) -> Path:
    """All files, a few dozen rows each."""
    for task in ("subject_animacy", "verb_causative", "verb_dynamic", "object_animacy"):
        for part, nouns in (("train", NOUNS[:5]), ("test", NOUNS[5:])):
            rows = [f"the {a} {v} the {b},{i % 2}" for i, a in enumerate(nouns) for v in VERBS for b in nouns if a != b]
            put(folder / f"Task1_Context-probes/{task}/{part}.txt", *rows)
    for task in ("telicity", "duration"):
        rows = [f"{i}\tWe {VERBS[i % 4]} the {NOUNS[i % 8]} , day {i} .\t{VERBS[i % 4]}\t1\t{i % 2}" for i in range(40)]
        put(folder / f"Task2_Lexical aspect binary classification/{task}_train.txt", *rows)
    rows = [f"{i}\t{NOUNS[i % 8]}\tN\t1\tA {NOUNS[i % 8]} of day {i} .\t{1 + i % 7}.5" for i in range(30)]
    rows = [row.replace("\t7.5", "\t7") for row in rows]
    put(folder / "Task3_CONcreTEXT/CONcreTEXT_test_EN.txt", "testset_idx\tTARGET\tPOS\tINDEX\tTEXT\tAVG", *rows)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["", "word", "sentence", *(f"{norm}.M" for norm in NORMS)])
    for i in range(30):
        ratings = [(i * (j + 1)) % 6 for j in range(len(NORMS))]
        table.writerow([i, NOUNS[i % 8], f"It was a {NOUNS[i % 8]}, on day {i}.", *ratings])
    put(
        folder / "Task4_Sensorimotor norms/contextualized_sensorimotor_norms_with_ls.txt",
        text.getvalue().removesuffix("\n"),
    )
    rows = [f"{n}\tN\t1-2\tThe {n} , day {i} .\tSee the {n} {i} ." for i in range(5) for n in NOUNS]
    put(folder / "Task5_Word-in-context/test.data.txt", *rows)
    put(folder / "Task5_Word-in-context/test.gold.txt", *("TF"[i % 2] for i in range(len(rows))))
    return folder


def word_vectors(
    encoder: Encoder, texts: Sequence[str], words: Sequence[Sequence[Span]], layer: int | None = None
) -> list[np.ndarray]:
    """Per text (W, D): each word's vector at one layer, None being the last."""
    found = dict(layer_vectors(encoder, texts, words, [encoder.backbone.layers if layer is None else layer]))
    return [found[i][:, 0] for i in range(len(texts))]


def put(path: Path, *lines: str) -> None:
    """Write lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
