"""What each training stage does to meaning: probes of word vectors, retrieval with text vectors, tables, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def probe(
    encoders: list[str],
    *,
    out: Path,
    baselines: bool = True,
    retrieval: Path | None = None,
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16",
    device: str = "auto",
) -> None:
    """Compare encoders: which words' vectors know what, and how well text vectors find their pair.

    Words: linear probes on 1,000 sentences "the NOUN VERBed the NOUN" ask each of the five words whether the subject,
    or the object, is animate. A causal model's first "the" cannot know; a bidirectional one's can. Texts: retrieval
    among held-out pairs. Writes results.json, results.csv, table.md, probing.png and probing.svg. What is measured is
    kept in OUT/variants: run again to go on after a break, or to add an encoder.

    Args:
        encoders: encoder folders, as training stages leave them behind.
        out: folder for the results.
        baselines: also the base model untrained, causal (uni) and bidirectional (bi).
        retrieval: JSONL file with `query` and `positive` in each line; none measures words only.
        dtype: of the weights. bfloat16 takes half the time of float32 where the processor knows it, and its
            scores lie well within the intervals.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, …
    """
    from otherside.probing.run import run_probe

    run_probe(encoders, out, baselines=baselines, retrieval=retrieval, dtype=dtype, device=device)
