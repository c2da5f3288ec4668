"""`lightning new`: a recipe of one's own from a base and data files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def new(
    recipe: Path,
    base: str,
    data: list[str],
    fields: dict[str, str] | None = None,
    hours: float = 1.0,
    nodes: int = 1,
    gpus: int | None = None,
    gpu_memory: float | None = None,
    on_bad_row: Literal["raise", "skip"] = "raise",
) -> None:
    """Write a recipe for your data, and this machine or GPUs elsewhere: a folder with a YAML per stage.

    Of texts it has the stages mntp and simcse, of pairs or labels supervised too. Rows are copied into RECIPE/data,
    each once; some that share no text with others are held out and validated on. Batches, lengths, chunks, steps and
    what GPUs share follow from the data, the base's shape and the machine, by the arithmetic of `lightning size`.

    Args:
        recipe: folder to write; the stages' runs will be there too.
        base: hub id, folder, .gguf file or pkg://PACKAGE/FILE of a Llama, or an encoder folder to go on from.
        data: CSV, TSV, JSONL, Parquet or plain text files, globs or hub datasets. Columns such as question and answer,
            anchor and positive, or text are known.
        fields: columns where they have other names, such as '{query: Frage, positive: Antwort}' or '{text: body}'; with
            '{text: body, label: topic}' texts of one topic are trained to be alike.
        hours: that all stages together shall take at most, as estimated.
        nodes: machines, like this one or with --gpus.
        gpus: of each node, where the recipe is not for this machine; the time is that of H100s.
        gpu_memory: of such a GPU, in GB; 80 if it is not given.
        on_bad_row: raise stops at the first malformed row; skip leaves such rows out and counts them.

    Raises:
        FileExistsError: RECIPE is there.
        FileNotFoundError: the base is nowhere.
        ValueError: data or options are wrong, or the base does not fit the machine.
    """
    from lightning_modules.hardware import hardware
    from lightning_modules.new.run import run_new

    run_new(recipe, base, data, fields, hours, hardware(nodes, gpus, gpu_memory), on_bad_row)
