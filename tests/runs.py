"""Real runs of the command `lightning` on tiny Llamas, forked from a process that has imported everything."""

from __future__ import annotations

import csv
import faulthandler
import functools
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attr  # noqa: F401  # what runs need is imported once, for all forks
import deepspeed  # noqa: F401
import peft.tuners.lora.bnb  # noqa: F401
import scipy.io  # noqa: F401
import torch
import torch.utils.tensorboard
import yaml
from lightning_utilities.core.rank_zero import rank_zero_only
from pytest import MonkeyPatch
from ranks import free_port

from lightning_modules import hardware, training
from lightning_modules.callbacks import throughput
from lightning_modules.cli import TRAINING, main
from otherside.lineage import Card

FSYNC = os.fsync
PEAK = functools.cache(hardware.peak)
for dtype in (torch.float32, torch.bfloat16):  # measured once, for all forks, as the imports are
    PEAK(torch.device("cpu"), dtype)
OUTPUTS = tempfile.TemporaryDirectory(prefix="otherside-outputs-")  # goes with this process; forks end without it

SUBJECTS = ["the cat", "a dog", "my neighbour", "the old teacher", "a committee", "the sea", "rain", "her brother"]
VERBS = ["watched", "opened", "could not find", "slowly painted", "forgot", "wrote about", "sold", "carried"]
OBJECTS = ["a window", "the other side of the street", "three letters", "water", "the mat", "an answer", "Paris"]


@dataclass
class Run:
    """One running command."""

    pid: int
    output: Path
    status: int | None = None

    def is_running(self) -> bool:
        """Whether it has not ended yet; sets `status`."""
        if self.status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if ended else None
        return self.status is None

    def wait(self, timeout: float = 240) -> tuple[int, str]:
        """Exit status (negative: the signal) and everything it printed."""
        deadline = time.monotonic() + timeout
        while True:
            if not self.is_running():
                return self.status, self.output.read_text(errors="replace")  # type: ignore[return-value]
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGUSR2)  # where it hangs
                time.sleep(0.5)
                self.kill()
                raise AssertionError(f"the command did not end in {timeout} s:\n{self.output.read_text()[-20000:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9, with everything it started."""
        os.killpg(self.pid, signal.SIGKILL)


def start(
    *arguments: str | Path,
    cwd: Path,
    environment: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> Run:
    """Start `lightning ARGUMENTS` in `cwd`; `before` is called in its process first."""
    handle, name = tempfile.mkstemp(suffix=".out", dir=OUTPUTS.name)
    if arguments[0] in TRAINING:
        parser(str(arguments[0]))
    pid = os.fork()
    if pid:
        os.close(handle)
        with suppress(OSError):  # the child may have done so, or ended
            os.setpgid(pid, pid)
        return Run(pid, Path(name))
    status = 1
    try:
        os.setpgid(0, 0)
        for stream in (1, 2):
            os.dup2(handle, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))  # not pytest's
        logging.getLogger().handlers.clear()
        faulthandler.register(signal.SIGUSR2, file=sys.stderr)
        os.chdir(cwd)
        torch.set_num_threads(1)
        os.environ.update(environment or {})
        rank_zero_only.rank = int(os.environ.get("RANK", 0))  # Lightning looks once, when it is imported
        throughput.peak = hardware.peak = PEAK
        os.fsync = lambda handle: None  # no machine loses its power here
        training.TrainingCLI.setup_parser = lambda cli, *_: vars(cli).update(parser(cli.command))  # type: ignore[method-assign, attr-defined]
        if before:
            before()
        gc.freeze()  # or DeepSpeed's collections go through all that was imported
        status = _status(lambda: main([str(argument) for argument in arguments]))
    finally:
        os._exit(status)


def wait_for_the_disk() -> None:
    """For runs that are killed: as long as they would save."""
    os.fsync = FSYNC


class Parsers(training.TrainingCLI):
    """Makes what Lightning parses settings with, and ends there."""

    setup_parser = training.TrainingCLI.setup_parser  # which forks do without

    def parse_arguments(self, parser: Any, args: Any) -> None:
        raise training.ParsedError(
            {name: getattr(self, name) for name in ("parser", "_subcommand_parsers", "_subcommand_method_arguments")}
        )


@functools.cache
def parser(command: str) -> dict[str, Any]:
    """Made of the settings of all classes, before any argument is looked at; once, for all forks."""
    with MonkeyPatch.context() as patch:
        patch.setattr(training, "_quieten", lambda: None)  # that is for a process of its own
        try:
            Parsers(command, [])
        except training.ParsedError as made:
            return made.args[0]
    raise AssertionError


def _status(run: Any) -> int:
    """What Python's own exit would be."""
    try:
        run()
        return 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run(*arguments: str | Path, cwd: Path, timeout: float = 240) -> str:
    """Run `lightning ARGUMENTS` to a good end; everything it printed."""
    status, output = start(*arguments, cwd=cwd).wait(timeout)
    assert status == 0, output[-4000:]
    return output


def start_ranks(count: int, *arguments: str | Path, cwd: Path, before: Callable[[], None] | None = None) -> list[Run]:
    """Start `lightning ARGUMENTS` as torchrun would on one node of `count` devices."""
    number = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "test"}
    arguments = (*arguments, "--trainer.devices", str(count))
    rank = [{"RANK": str(i), "LOCAL_RANK": str(i), "GROUP_RANK": "0"} for i in range(count)]
    return [start(*arguments, cwd=cwd, environment=number | port | rank[i], before=before) for i in range(count)]


def run_ranks(count: int, *arguments: str | Path, cwd: Path, timeout: float = 240) -> str:
    """Run `lightning ARGUMENTS` on so many ranks to a good end; everything rank 0 printed."""
    if count == 1:
        return run(*arguments, "--trainer.devices", "1", cwd=cwd, timeout=timeout)
    ranks = start_ranks(count, *arguments, cwd=cwd)
    status, output = wait_ranks(ranks, timeout)[0]
    assert status == 0, output[-4000:]
    return output


def wait_ranks(ranks: list[Run], timeout: float = 240) -> list[tuple[int, str]]:
    """Status and output of each; the first that fails is an error, and ends the others."""
    deadline = time.monotonic() + timeout
    waiting = dict(enumerate(ranks))
    ended: dict[int, tuple[int, str]] = {}
    try:
        while waiting:
            for number, rank in list(waiting.items()):
                if rank.is_running() and time.monotonic() < deadline:
                    continue
                ended[number] = waiting.pop(number).wait(0)
                status, output = ended[number]
                assert status == 0, f"rank {number} ended with {status}:\n{output[-4000:]}"
            time.sleep(0.005)
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                rank.kill()
    return [ended[number] for number in sorted(ended)]


def write_data(folder: Path, rows: int = 60) -> None:
    """`sentences.txt` and `pairs.jsonl` of so many rows, all different."""
    made = [f"{s} {v} {o}" for s in SUBJECTS for v in VERBS for o in OBJECTS]
    made = made * (rows // len(made) + 1)
    sentences = [f"{sentence}, day {i}." for i, sentence in enumerate(made[:rows])]
    (folder / "sentences.txt").write_text("\n".join(sentences) + "\n")
    pairs = [
        {"query": s.split(",")[0], "positive": s, "negatives": [sentences[(i + 7) % rows]]}
        for i, s in enumerate(sentences)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))


def write_stage(
    folder: Path, stage: str, model: str | Path, *, root: str | None = None, steps: int = 6, **settings: Any
) -> Path:
    """`<stage>.yaml` for a tiny run with data in `folder`; dotted keys in `settings` override."""
    data_class = "Pairs" if stage == "Supervised" else "Sentences"
    source = "pairs.jsonl" if stage == "Supervised" else "sentences.txt"
    dropout = {"attention_dropout": 0.1} if stage == "SimCSE" else {}
    content: dict[str, Any] = {
        "model": {
            "class_path": f"lightning_modules.{stage}",
            "init_args": {
                "backbone": {"model": str(model), "dtype": "float32", **dropout},
                "lora": {"r": 4, "alpha": 8, "dropout": 0.1},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 5e-3}},
                "schedule": {"total_steps": steps},
                "max_length": 64,
            },
        },
        "data": {
            "class_path": f"datamodules.{data_class}",
            "init_args": {
                "sources": [{"path": str(folder / source)}],
                "global_batch_size": 8,
                "max_length": 32,
                "num_workers": 0,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": steps,
            "default_root_dir": root or f"runs/{stage.lower()}",
            "log_every_n_steps": 1,
        },
        "checkpoints": {"every_n_steps": 2},
    }
    for key, value in settings.items():
        *path, last = key.split(".")
        place = content
        for part in path:
            place = place.setdefault(part, {})
        place[last] = value
    file = folder / f"{stage.lower()}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def adapter(root: Path) -> dict[str, torch.Tensor]:
    """The trained weights that a run left in its encoder folder."""
    from safetensors.torch import load_file

    last = Card.read(root / "encoder").lineage.adapters[-1]
    return load_file(last.path)


def metrics(root: Path, name: str) -> dict[int, float]:
    """What a run with a CSVLogger in `root` logged under `name`, by step; of all its starts together."""
    found = {}
    for file in sorted(root.glob("*/version_*/metrics.csv"), key=lambda file: file.stat().st_mtime):
        with file.open() as lines:
            found.update({int(row["step"]): float(row[name]) for row in csv.DictReader(lines) if row.get(name)})
    return found


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max():.3g}"
