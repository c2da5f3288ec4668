"""Real runs of the command `lightning` on tiny Llamas, forked from a process that has imported everything."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import lightning_modules.training  # noqa: F401  # imported once, for all forks
from lightning_modules.cli import main

SUBJECTS = ["the cat", "a dog", "my neighbour", "the old teacher", "a committee", "the sea", "rain", "her brother"]
VERBS = ["watched", "opened", "could not find", "slowly painted", "forgot", "wrote about", "sold", "carried"]
OBJECTS = ["a window", "the other side of the street", "three letters", "water", "the mat", "an answer", "Paris"]


@dataclass
class Run:
    """One running command."""

    pid: int
    output: Path

    def wait(self, timeout: float = 120) -> tuple[int, str]:
        """Exit status (negative: the signal) and everything it printed."""
        deadline = time.monotonic() + timeout
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status), self.output.read_text(errors="replace")
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGUSR2)  # where it hangs
                time.sleep(0.5)
                self.kill()
                raise AssertionError(f"the command did not end in {timeout} s:\n{self.output.read_text()[-6000:]}")
            time.sleep(0.005)

    def kill(self) -> None:
        """kill -9, with everything it started."""
        os.killpg(self.pid, signal.SIGKILL)


def start(*arguments: str | Path, cwd: Path) -> Run:
    """Start `lightning ARGUMENTS` in `cwd`."""
    handle, name = tempfile.mkstemp(suffix=".out")
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
        status = _status(lambda: main([str(argument) for argument in arguments]))
    finally:
        os._exit(status)


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


def run(*arguments: str | Path, cwd: Path, timeout: float = 120) -> str:
    """Run `lightning ARGUMENTS` to a good end; everything it printed."""
    status, output = start(*arguments, cwd=cwd).wait(timeout)
    assert status == 0, output[-4000:]
    return output


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

    last = sorted((root / "encoder" / "adapters").iterdir())[-1]
    return load_file(last / "adapter_model.safetensors")


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max():.3g}"
