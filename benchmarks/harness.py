"""Contenders side by side: each in a process and environment of its own, one round at a time, in turn.

A contender is a program in `benchmarks/contenders`. It gets its settings as JSON, does its set-up, and then one round
whenever it is told to (`contenders/gate.py`); so two of them can stand in the middle of their own training loops and
take turns. What is compared are ratios of the same round; peak memory is the kernel's.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import signal
import statistics
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import MappingProxyType
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("OTHERSIDE_PEERS", HERE / ".environments"))
Round = dict[str, float]


def python_of(peer: str) -> str:
    """The interpreter of a peer's environment, which is made first if need be; our own for "otherside"."""
    if peer == "otherside":
        return sys.executable
    folder, requirements = ENVIRONMENTS / peer, HERE / "contenders" / f"{peer}.txt"
    if not (folder / ".ready").exists():
        print(f"installing {peer} into {folder}", flush=True)
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin/python", "-m", "pip", "install", "-q", "-r", requirements], check=True)
        (folder / ".ready").touch()
    return str(folder / "bin/python")


class OutOfMemoryError(RuntimeError):
    """The kernel ended a contender."""


class Contender:
    """One process, between its rounds.

    Args:
        peer: whose environment; its program is `contenders/with_PEER.py`.
        task: what it is to do, the program's first argument.
        threads: of torch.
        settings: of the task.
        variables: of its environment.
    """

    def __init__(
        self,
        peer: str,
        task: str,
        threads: int,
        settings: Mapping[str, Any],
        variables: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.peer = peer
        environment = {**os.environ, **variables, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(HERE.parent)}
        if peer != "otherside":
            del environment["PYTHONPATH"]
        program = HERE / "contenders" / f"with_{peer.replace('-', '_')}.py"
        self.process = subprocess.Popen(
            [python_of(peer), program, task, json.dumps(dict(settings))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=Path(os.environ.get("OTHERSIDE_PEERS_LOG", os.devnull)).open("a"),  # noqa: SIM115  # as long as the process
            text=True,
            env=environment,
        )
        self.about = self._read()

    def round(self) -> Round:
        """Let it do one round."""
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """No more rounds."""
        self.process.kill()
        self.process.wait()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            if status == -signal.SIGKILL:
                raise OutOfMemoryError(self.peer)
            raise RuntimeError(f"{self.peer} ended with status {status}; OTHERSIDE_PEERS_LOG=FILE keeps what it says")
        return json.loads(line)


@dataclass
class Comparison:
    """Rounds of all contenders on one case.

    Args:
        case: its name.
        rounds: by contender; the first is ours.
        peaks: operations a second of a large matrix product, of those that measured it.
    """

    case: str
    rounds: dict[str, list[Round]]
    peaks: dict[str, float]

    def rate(self, name: str) -> float:
        """Median real tokens (or rows) per second."""
        return statistics.median(r["tokens"] / r["seconds"] for r in self.rounds[name])

    def ratios(self, name: str) -> list[float]:
        """Seconds of `name` / ours, for the same tokens, round by round: above 1, ours is faster."""
        ours = next(iter(self.rounds.values()))
        return [
            (theirs["seconds"] / theirs["tokens"]) / (mine["seconds"] / mine["tokens"])
            for theirs, mine in zip(self.rounds[name], ours, strict=True)
        ]

    def megabytes(self, name: str) -> float:
        """Highest peak of a round above what the process held before the first."""
        return max(r["megabytes"] for r in self.rounds[name])

    def utilisation(self, name: str) -> float | None:
        """Median share of the measured peak that the text's operations make."""
        peak = self.peaks.get(name)
        return peak and statistics.median(r["operations"] / r["seconds"] for r in self.rounds[name]) / peak

    def row(self, name: str) -> dict[str, Any]:
        """What a report says of one contender."""
        if not self.rounds[name]:
            return {"case": self.case, "contender": name}
        ratios = sorted(self.ratios(name))
        return {
            "case": self.case,
            "contender": name,
            "tokens": sum(r["tokens"] for r in self.rounds[name]) / len(self.rounds[name]),
            "rate": self.rate(name),
            "megabytes": self.megabytes(name),
            "ratio": statistics.median(ratios),
            "spread": [ratios[0], ratios[-1]],
            "first_loss": self.rounds[name][0].get("loss"),
            "utilisation": self.utilisation(name),
        }


def compare(case: str, contenders: Mapping[str, Contender], rounds: int, warm_up: int = 1) -> Comparison:
    """All contenders in turn, `rounds` times; the order turns round every time. Ends them."""
    found: dict[str, list[Round]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(warm_up + rounds):
        for name in names[:] if i % 2 == 0 else names[::-1]:
            try:
                done = contenders[name].round()
            except OutOfMemoryError:
                print(f"{case}: {name} ran out of memory", flush=True)
                names.remove(name)
                found[name] = []
                continue
            if i >= warm_up:
                found[name].append(done)
            print(f"{case}: {name}: {'warm-up' if i < warm_up else f'round {i - warm_up + 1}'} {done}", flush=True)
    for contender in contenders.values():
        contender.stop()
    peaks = {name: c.about["peak"] for name, c in contenders.items() if "peak" in c.about}
    return Comparison(case, found, peaks)


def report(
    name: str, title: str, comparisons: Sequence[Comparison], settings: Mapping[str, Any], out: Path, notes: str = ""
) -> None:
    """A dated Markdown table and everything as JSON, in `out`."""
    rows = [c.row(contender) for c in comparisons for contender in c.rounds]
    text = ["Settings: " + ", ".join(f"{k} {v}" for k, v in settings.items()), ""]
    text += ["| case | contender | real tokens / round | real tokens / s | utilisation | peak MB | ours is faster by |"]
    text += ["| --- | --- | ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        if "ratio" not in row:
            text.append(f"| {row['case']} | {row['contender']} | | | | out of memory | |")
            continue
        used = f"{row['utilisation']:.0%}" if row["utilisation"] else ""
        ratio = f"{row['ratio']:.2f} × ({row['spread'][0]:.2f}–{row['spread'][1]:.2f})"
        text.append(
            f"| {row['case']} | {row['contender']} | {row['tokens']:.0f} | {row['rate']:.0f} | {used} | "
            f"{row['megabytes']:.0f} | {'' if row['contender'] == next(iter(comparisons[0].rounds)) else ratio} |"
        )
    text += [
        "",
        "Contenders took turns; ratios are those of the same round: median (lowest–highest). Peak memory is the",
    ]
    text += [
        "kernel's high-water mark above what the process held before its first round.",
        *([notes] if notes else []),
    ]
    rounds = [{"case": c.case, "rounds": c.rounds} for c in comparisons]
    kept = {"settings": {k: str(v) for k, v in settings.items()}, "rows": rows, "rounds": rounds}
    keep(out, name, title, text, {"machine": machine(), **kept})


def keep(out: Path, name: str, title: str, lines: Sequence[str], content: Any = None) -> None:
    """Print a report, and leave it in `out`: dated Markdown with machine and command; what there is as JSON, too."""
    text = "\n".join([f"# {title}", "", machine(), "", *lines, "", f"Command: `{command()}`", ""])
    print(text)
    out.mkdir(parents=True, exist_ok=True)
    stem = out / f"{date.today()}-{name}"
    stem.with_suffix(".md").write_text(text)
    if content is not None:
        stem.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def held(name: str) -> int:
    """Bytes of this process by the kernel: VmRSS, or VmHWM, its peak."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) * 1024


def command() -> str:
    """What this run was started with."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def machine() -> str:
    """Date, processor and versions, in a line."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    versions = (f"{p} {importlib.metadata.version(p)}" for p in ("torch", "transformers", "lightning", "peft"))
    processor = models[0] if models else platform.machine()
    about = f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}"
    return f"{date.today()}, {about}, {', '.join(versions)}"
