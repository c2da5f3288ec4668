"""Hard negatives for pairs: `lightning mine`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal


def mine(
    encoder: str,
    pairs: str,
    *,
    out: Path,
    corpus: str | None = None,
    fields: dict[str, str] | None = None,
    instruction: str = "",
    document_instruction: str = "",
    negatives: int = 4,
    ceiling: float = 0.95,
    first_rank: int = 1,
    last_rank: int = 100,
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto",
    device: str = "auto",
    on_bad_row: Literal["raise", "skip"] = "raise",
) -> None:
    """Find hard negatives for pairs: documents near the query that are no positives of it.

    Documents are the positives and negatives of all pairs, each text once, and those of CORPUS. Of each query's nearest
    documents by cosine (exact search), its positives and itself left out, the first are kept that are not so near that
    they are probably unlabelled positives: of a score of at most CEILING times that of the row's positive
    (NV-Retriever; Moreira et al., 2024). OUT has a row for each pair, in order: query, positive, negatives (hardest
    first), scores, positive_score; as `datamodules.Pairs` reads it. Cut, it goes on when the same command is run again.
    Under torchrun, and in a job of SLURM, all ranks share the work; the file is the same. `--config FILE` reads the
    arguments from a YAML, under `mine:`, which may be a step of a recipe.

    Args:
        encoder: an encoder folder, a run's folder, one of LLM2Vec's, or a base model.
        pairs: file, glob or hub dataset of rows with a query and a positive, under names that `lightning new` knows.
        out: file to write, .jsonl or .parquet. What was found is summed up beside it, in OUT.report.json.
        corpus: more documents: file, glob or hub dataset of rows with `text`; none adds nothing.
        fields: columns of query, positive and negatives where they have other names, such as '{query: question}'.
        instruction: put before queries; what training puts there, or nothing.
        document_instruction: put before documents.
        negatives: of each pair, at most.
        ceiling: a negative's score is at most this share of its positive's.
        first_rank: of the nearest documents the first that may be a negative, from 1; higher skips the nearest ones.
        last_rank: the last that may be one. Lower: harder negatives only, and more rows without enough.
        dtype: of the weights. auto: bfloat16 where this machine multiplies in it fast, else float32.
        device: auto (a GPU if there is one, of several ranks each its own), cpu, cuda, cuda:1, …
        on_bad_row: raise stops at the first malformed row; skip leaves such rows out and counts them.
    """
    given = {name: value for name, value in locals().items() if name not in ("out", "device")}
    from datamodules.mining.run import Asked, run_mine
    from datamodules.recognise import pairs_of

    source = replace(pairs_of(pairs, fields), instruction=instruction, document_instruction=document_instruction)
    asked = Asked(negatives, ceiling, first_rank, last_rank)
    run_mine(encoder, source, out, asked, given, corpus=corpus, dtype=dtype, device=device, on_bad_row=on_bad_row)
