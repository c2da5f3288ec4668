"""`lightning mine`: encode documents, search for each query, choose negatives; part by part, so that it can go on.

Vectors of `DOCUMENTS` texts, and negatives of `ROWS` pairs, are a part: a file of its own, made by one rank. What is in
it does not depend on how others were made, so neither a break nor the number of ranks changes the result.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from datamodules.mining.documents import Documents
from datamodules.mining.quality import Quality, told
from datamodules.mining.table import COLUMNS, SCHEMA, Writer
from datamodules.sources import Source, open_table
from otherside import distributed
from otherside.backbone import AnyDType, fast_dtype
from otherside.encoder import Encoder
from otherside.files import atomic, keep_parts, make_folder
from otherside.search import nearest
from otherside.waits import quiet_libraries, saying
from otherside.weights import card_of

DOCUMENTS, ROWS = 1024, 1024
PATIENCE = 7 * 24 * 3600.0  # seconds that a rank waits for others, which have as many parts


@dataclass(frozen=True)
class Asked:
    """Which documents are negatives; see `datamodules.mining.mine`."""

    negatives: int
    ceiling: float
    first_rank: int
    last_rank: int

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"--negatives must be at least 1; got {self.negatives}")
        if not 0 < self.ceiling <= 1:
            raise ValueError(
                f"--ceiling must be a share of the positive's score, above 0 and at most 1; got {self.ceiling}"
            )
        if not 1 <= self.first_rank <= self.last_rank:
            raise ValueError(
                f"--first_rank must be between 1 and --last_rank; got {self.first_rank} and {self.last_rank}"
            )
        if self.last_rank - self.first_rank + 1 < self.negatives:
            raise ValueError(
                f"--negatives must be at most the ranks from --first_rank to --last_rank; got {self.negatives} of "
                f"{self.first_rank} to {self.last_rank}. Raise --last_rank."
            )

    def choose(self, scores: np.ndarray, positive: float) -> tuple[np.ndarray, int]:
        """Which of a row's ranked documents are its negatives, and how many are too near.

        Args:
            scores: (K,) of the nearest documents, best first; -inf for what is none.
            positive: the score of its positive.
        """
        ranks = np.arange(1, len(scores) + 1)
        asked = (ranks >= self.first_rank) & (ranks <= self.last_rank) & np.isfinite(scores)
        far = scores <= min(self.ceiling * positive, positive)
        return np.flatnonzero(asked & far)[: self.negatives], int((asked & ~far).sum())


class Mining:
    """The parts of one run, in a folder of its own beside the file that they become.

    Args:
        encoder: for texts.
        documents: to search.
        asked: which are negatives.
        work: folder for parts.
    """

    def __init__(self, encoder: Encoder, documents: Documents, asked: Asked, work: Path) -> None:
        self.encoder, self.documents, self.asked, self.work = encoder, documents, asked, work
        self.source, self.pairs = documents.pairs.source, documents.pairs.rows

    def run(self) -> None:
        """This rank's parts; all ranks' are there at the end."""
        for name, count, size, make in (
            ("documents", len(self.documents), DOCUMENTS, self._encode),
            ("pairs", len(self.pairs), ROWS, self._search),
        ):
            self._parts(name, count, size, make)
            distributed.meet(PATIENCE)

    def _parts(self, name: str, count: int, size: int, make: Callable[[int, int, Path], None]) -> None:
        mine = range(distributed.rank() * size, count, distributed.world_size() * size)
        texts = sum(min(size, count - start) for start in mine)
        with tqdm(total=texts, desc=name, unit=name[:-1], smoothing=0, disable=distributed.rank() > 0) as bar:
            for start in mine:
                stop, path = min(start + size, count), self.part(name, start)
                if path.is_file():
                    bar.initial += stop - start  # or the time left would be that of less work
                else:
                    with atomic(path) as temporary:
                        make(start, stop, temporary)
                bar.update(stop - start)

    def part(self, name: str, start: int) -> Path:
        """The file of the part that begins at this document or pair."""
        return self.work / f"{name}-{start:010}.{'npy' if name == 'documents' else 'parquet'}"

    def _encode(self, start: int, stop: int, path: Path) -> None:
        texts = self.documents.rows[start:stop]["text"]
        vectors = self.encoder.encode(texts, instruction=self.source.document_instruction, normalize=True)
        with path.open("wb") as file:
            np.save(file, vectors)

    def vectors(self) -> Iterator[Tensor]:
        """Of all documents, part by part."""
        for start in range(0, len(self.documents), DOCUMENTS):
            yield torch.from_numpy(np.load(self.part("documents", start)))

    def _search(self, start: int, stop: int, path: Path) -> None:
        rows, own = self.pairs[start:stop], self.documents.positives[start:stop]
        first, query = self.documents.queries(start, stop)
        texts = [rows["query"][i] for i in first]
        vectors = self.encoder.encode(texts, instruction=self.source.instruction, normalize=True)
        queries = torch.from_numpy(vectors).to(self.encoder.device)
        found = nearest(queries, self.vectors(), self.asked.last_rank, self.documents.left_out(start + first))
        scores, places = (tensor.cpu().numpy()[query] for tensor in found)
        positive = (vectors[query] * self._of(own)).sum(1)
        chosen = [self.asked.choose(*row) for row in zip(scores, positive.tolist(), strict=True)]
        table = {
            "query": rows["query"],
            "positive": rows["positive"],
            "negatives": self._texts([places[i, which].tolist() for i, (which, _) in enumerate(chosen)]),
            "scores": [scores[i, which].round(4).tolist() for i, (which, _) in enumerate(chosen)],
            "positive_score": positive.round(4).tolist(),
            "suspects": [suspects for _, suspects in chosen],
            "nearest": scores[:, 0].tolist(),
        }
        pq.write_table(pa.table(table, schema=SCHEMA), path)

    def _of(self, documents: np.ndarray) -> np.ndarray:
        """(N, D) vectors of single documents."""
        found = np.empty((len(documents), self.encoder.backbone.hidden_size), np.float32)
        for start in np.unique(documents // DOCUMENTS) * DOCUMENTS:
            here = (documents >= start) & (documents < start + DOCUMENTS)
            found[here] = np.load(self.part("documents", int(start)), mmap_mode="r")[documents[here] - start]
        return found

    def _texts(self, numbers: list[list[int]]) -> list[list[str]]:
        texts = iter(self.documents.rows[[number for row in numbers for number in row]]["text"])
        return [[next(texts) for _ in row] for row in numbers]

    def join(self, out: Path, report: Path, notes: dict[str, Any]) -> dict[str, Any]:
        """Make `out` of all parts, and before it is there the report, by which it is known; its numbers.

        Args:
            out: the file.
            report: beside it.
            notes: for the report, beside the numbers.
        """
        quality = Quality(self.asked.negatives)
        with atomic(out) as temporary:
            with Writer(temporary, out.suffix) as write:
                for start in range(0, len(self.pairs), ROWS):
                    table = pq.read_table(self.part("pairs", start))
                    quality.add(table.drop(["query", "positive", "negatives"]).to_pydict())
                    write(table.select(list(COLUMNS)))
            numbers = quality.numbers()
            with atomic(report) as file:
                file.write_text(json.dumps({**notes, **numbers}, indent=1) + "\n")
        return numbers


def check_out(out: Path) -> None:
    """Raise a ValueError for a file that cannot be written."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"--out must be a file that ends in .jsonl or .parquet; got {out}")


def run_mine(
    encoder: str,
    source: Source,
    out: Path,
    asked: Asked,
    given: dict[str, Any] | None = None,
    *,
    corpus: str | None = None,
    dtype: AnyDType = "auto",
    device: str = "auto",
    on_bad_row: str = "raise",
) -> None:
    """Mine negatives and write them; what `datamodules.mining.mine` does, see there.

    `given` is noted in the report: what was asked for, by the names of its arguments.

    Raises:
        FileNotFoundError: no such encoder.
        ValueError: a setting is wrong; `out` is there already, with other settings.
        BadRow: a row is malformed.
    """
    check_out(out)
    _meet_ranks()
    card = card_of(encoder)
    for name, used in (("query", source.instruction), ("document", source.document_instruction)):
        if card.history and not card.history[-1].had(name, used):
            option = "--instruction" if name == "query" else "--document_instruction"
            known = card.history[-1].prompts.get(name)
            known = card.history[-1].instructions if known is None else repr(known)
            distributed.say(f"note: {encoder} was trained with {known} before each {name}; {option} is {used!r}")
    dtype = fast_dtype() if dtype == "auto" else dtype
    quiet_libraries()
    with saying(f"opening {encoder}"):
        loaded = Encoder.load(encoder, dtype=dtype, device=_device(device))
    documents = _open(source, corpus, on_bad_row)
    settings = {
        "encoder": asdict(replace(card, lineage=loaded.backbone.lineage)),  # which knows what the base's weights are
        "pairs": documents.pairs.content,
        "documents": documents.content,
        "instructions": [source.instruction, source.document_instruction],
        **asdict(asked),
        "dtype": dtype,
    }
    settings = json.loads(json.dumps(settings, default=str))
    report, work = out.with_name(f"{out.name}.report.json"), out.with_name(f".{out.name}.parts")
    if out.exists():
        distributed.say(_finished(out, report, settings))
        shutil.rmtree(work, ignore_errors=True)  # where it was cut at its very end
        return
    make_folder(out.parent, "--out")
    if distributed.rank() == 0 and keep_parts(work, settings):
        distributed.say("goes on with the parts of a run that was cut")
    distributed.meet(PATIENCE)
    tables = [documents.pairs, *([documents.corpus] if documents.corpus else [])]
    for table in tables:
        if table.skipped:
            distributed.say(
                f"malformed rows of {table.source} left out: {table.skipped:,}; the first: {table.faults[0]}"
            )
    distributed.say(f"{len(documents.pairs):,} pairs, {len(documents):,} documents")
    mining = Mining(loaded, documents, asked, work)
    mining.run()
    if distributed.rank() == 0:
        numbers = mining.join(out, report, {"given": given, "settings": settings})
        shutil.rmtree(work)
        print(f"\n{told(numbers)}\n{numbers['rows']:,} rows are in {out}, these numbers in {report.name}")
    distributed.meet(PATIENCE)


def _open(source: Source, corpus: str | None, on_bad_row: str) -> Documents:
    """Pairs and corpus; one rank of a node builds the cache, and the others find it."""

    def documents() -> Documents:
        texts = open_table(Source(corpus), "blank_ok", on_bad_row) if corpus else None
        return Documents(open_table(source, "pair", on_bad_row), texts)

    found = documents() if os.environ.get("LOCAL_RANK", "0") == "0" else None
    distributed.meet(PATIENCE)
    return documents() if found is None else found


def _finished(out: Path, report: Path, settings: dict[str, Any]) -> str:
    """What to say of an `out` that is there.

    Raises:
        ValueError: it is of something else.
    """
    known = _noted(report).get("settings", {})
    if changed := [name for name in settings if known.get(name) != settings[name]]:
        raise ValueError(
            f"--out must be a new file, or the same command's; {out} was made with other settings "
            f"({', '.join(changed) if known else 'unknown'}). Move it away, or choose another --out."
        )
    return f"{out} is finished. Nothing to do."


def _noted(file: Path) -> dict[str, Any]:
    """What it says; nothing if it is not there, or torn."""
    try:
        noted = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}


def _meet_ranks() -> None:
    """Join the other ranks where torchrun or SLURM's srun has started several."""
    if "RANK" not in os.environ and "SLURM_STEP_NUM_TASKS" in os.environ:  # a job's script has none of a step's
        named = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS"}
        os.environ.update({name: os.environ[theirs] for name, theirs in named.items()})
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and not dist.is_initialized():
        if lost := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(
                f"{ranks} processes that mine together must know where the first is; {' and '.join(lost)} not set. Use "
                "slurm/stage.sbatch or torchrun, or start one process."
            )
        dist.init_process_group("gloo")


def _device(device: str) -> str:
    if device != "auto":
        return device
    if not torch.cuda.is_available():
        return "cpu"
    # a launcher may show each rank its own GPU alone
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
