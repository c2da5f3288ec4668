"""What each training stage does to meaning: probes of word vectors, retrieval with text vectors, tables, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from otherside.waits import LIBRARIES, saying


def probe(
    encoders: list[str],
    *,
    out: Path,
    data: str = "builtin",
    tasks: list[str] | None = None,
    split: Literal["published", "random"] = "published",
    layers: Literal["last", "all"] | list[int] = "last",
    repeats: int = 5,
    mlp: bool = True,
    controls: bool = True,
    baselines: bool = True,
    retrieval: Path | None = None,
    similarity: Path | None = None,
    generation: Path | None = None,
    words: Literal["published"] | Path | None = None,
    contexts: Path | None = None,
    seeds: bool = False,
    dtype: Literal["auto", "bfloat16", "float32", "float16"] = "auto",
    device: str = "auto",
) -> None:
    """Compare encoders: which words' vectors know what, and how well text vectors find their pair.

    Five probing tasks of "Learning to Look at the Other Side" (ACL 2025) with its protocol: context probes, lexical
    aspect, concreteness, sensorimotor norms, word in context; linear probes and multilayer perceptrons; shuffled labels
    and words without context as controls; anisotropy of every layer. Without the published data: linear probes on 1,000
    built-in sentences. Writes results.json, results.csv, differences.csv, table.md and figures. What is measured is
    kept in OUT: run again to go on after a break, or to add an encoder.

    Args:
        encoders: encoder folders, as training stages leave them behind; a base model stands for itself untrained,
            causal (uni) and bidirectional (bi); a BERT (hub id or folder, safetensors) for itself.
        out: folder for the results.
        data: builtin; published, which fetches the paper's data sets (2 MB, checked by SHA-256) into the user's
            cache; a folder that has them in the published layout; or a table of your own, .tsv, .csv or .jsonl, with
            the columns sentence, word (or start and end, in characters), label or rating, and, if you like, split.
        tasks: some of subject_animacy, verb_causative, verb_dynamic, object_animacy, telicity, duration, concreteness,
            sensorimotor, wic, such as telicity,wic; none means all.
        split: of the context probes. published keeps the words asked about apart; random does not, so that probes may
            know a test word from training, as the paper's evidently did. Other tasks have a random split only.
        layers: whose vectors are probed: last, all, or numbers from 0, the embeddings, such as 8,16.
        repeats: how often, with seeds from 42 on: other starting weights and, where the data come without a test set,
            other splits. Intervals resample words and repeats.
        mlp: multilayer perceptrons with the paper's settings, too. The built-in sentences have linear probes only.
        controls: shuffled labels, and words without context, too.
        baselines: also the encoders' base model untrained, causal (uni) and bidirectional (bi).
        retrieval: JSONL file with `query` and `positive` in each line; none leaves it out.
        similarity: JSONL file with `sentence1`, `sentence2` and `score` in each line; none leaves it out.
        generation: text file, a text in each line, of which 100 are read: perplexity of the next token, adapters
            off (where it must be the base's) and on, and a sample; none leaves it out.
        words: folder with lists of word pairs, NAME.txt with `word word rating` in each line; or published, which
            fetches 13 lists such as SimLex-999 and WordSim-353 (230 kB, checked by SHA-256) into the user's cache.
            Cosines of single words against people's ratings, at every layer; none leaves it out.
        contexts: text file, a sentence in each line, to take these words' vectors from, too: means over the first five
            sentences that have a word; none takes them without context only.
        seeds: encoders whose runs' folders have one name, such as a/mntp and b/mntp, are one stage's trainings with
            several seeds: one variant, the mean, whose intervals resample the trainings, too.
        dtype: of the weights. auto: bfloat16 where this machine multiplies in it fast, else float32. Scores of both lie
            well within the intervals.
        device: auto (a GPU if there is one), cpu, cuda, cuda:1, …
    """
    with saying(LIBRARIES):
        from otherside.probing.measure import Protocol
        from otherside.probing.run import run_probe

    run_probe(
        encoders,
        out,
        data=data,
        tasks=tasks,
        split=split,
        layers=layers,
        protocol=Protocol(repeats, mlp, controls),
        baselines=baselines,
        retrieval=retrieval,
        similarity=similarity,
        generation=generation,
        words=words,
        contexts=contexts,
        seeds=seeds,
        dtype=dtype,
        device=device,
    )
