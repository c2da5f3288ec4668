"""Ends a run whose ranks no longer answer each other, and names the rank that is to blame."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch.distributed as dist
from typing_extensions import override

from lightning_modules.waiting import TIMEOUT

PATIENCE = 0.75  # of the time-out, then it is said where all ranks are
FAILED, WAITING, VERDICT = "failed", "waiting", "verdict"
PACKAGES = ("lightning_modules", "otherside", "datamodules")
BROKEN = ("closed by peer", "reset by peer", "Timed out", "timed out", "Broken pipe", "refused", "Socket Timeout")


class RankLostError(RuntimeError):
    """A rank died, hangs or failed; the message says which."""


class Watchdog(pl.Callback):
    """A thread in every rank says in the process group's store that the rank is alive, and where it is.

    - A rank that is silent for half the strategy's time-out (killed, stopped, its node gone) ends the run.
    - A rank at which others waited for the whole time-out is named by those that waited.
    - Where nobody moves for most of the time-out, rank 0 says where the ranks are, those alone at a place first.
    - A rank that fails tells its error to the others, which would only see a closed connection.
    """

    def __init__(self) -> None:
        self._watch: Watch | None = None

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if trainer.world_size > 1 and self._watch is None:
            lightnings = getattr(trainer.strategy, "_timeout", None)  # of a strategy that is not ours
            timeout = getattr(trainer.strategy, "timeout", lightnings)
            self._watch = Watch(trainer, timeout.total_seconds() if timeout else TIMEOUT)
            self._watch.start()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._watch:
            self._watch.leave()
            self._watch = None

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        watch, self._watch = self._watch, None
        if watch is None:
            return
        watch.stop()
        if not isinstance(exception, Exception):
            return  # asked to stop
        of_gloo = type(exception) is RuntimeError and any(said in str(exception) for said in BROKEN)
        if isinstance(exception, dist.DistError) or (of_gloo and "in DataLoader worker" not in str(exception)):
            raise RankLostError(watch.who()) from exception
        watch.tell(exception)


class Watch(threading.Thread):
    """The thread of one rank.

    Args:
        trainer: whose ranks these are.
        timeout: seconds that ranks wait for each other.
    """

    def __init__(self, trainer: pl.Trainer, timeout: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self.trainer, self.timeout, self.silence = trainer, timeout, timeout / 2
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        connection: Any = dist.distributed_c10d._get_default_store()
        self.store: Any = dist.PrefixStore("watchdog", connection.clone())  # one of its own: calls lock a connection
        self.store.set_timeout(timedelta(seconds=max(self.silence, 5)))
        self.store.delete_key(f"left{self.rank}")  # of an earlier command in this process group
        self.heard: dict[int, tuple[str, float]] = {}  # by rank: last beat, and when it was new
        self.places: dict[int, str] = {}  # where the others are
        self.moved: float | None = time.monotonic()  # when one of them last moved; None: it was said that none does
        self._ended = threading.Event()
        self._beats = 0

    def stop(self) -> None:
        """No more beats, and nobody is judged."""
        self._ended.set()
        self.join(timeout=self.silence)

    def leave(self) -> None:
        """Stop in good order: the others may have work left, and do not miss this rank."""
        self.stop()
        with suppress(RuntimeError):  # rank 0 left first, and the store with it
            self.store.set(f"left{self.rank}", "")

    @override
    def run(self) -> None:
        answered = time.monotonic()
        while True:
            try:
                self._beat()
                lost = self._silent()
                answered = time.monotonic()
            except RuntimeError:  # the store is with rank 0, or with its launcher
                gone = time.monotonic() - answered > self.silence
                lost = "rank 0 was lost: it no longer answers" if gone else None
            if lost and not self._ended.is_set():
                print(f"error: {remedy(lost)}", file=sys.stderr, flush=True)
                os._exit(1)  # the main thread may wait for ever
            if self._ended.wait(min(self.silence / 6, 10)):
                return

    def _beat(self) -> None:
        self._beats += 1
        main = sys._current_frames()[threading.main_thread().ident or 0]
        beat = {"n": self._beats, "at": f"step {self.trainer.global_step}, {where(main)}"}
        place = {"host": socket.gethostname(), "pid": os.getpid(), "time": time.time()}
        self.store.set(f"beat{self.rank}", json.dumps(beat | place))

    def _silent(self) -> str | None:
        """Rank 0 looks at all others, they look at rank 0: what is wrong, if anything."""
        if said := self._said():
            return said
        others = range(1, self.world_size) if self.rank == 0 else [0]
        known = [r for r in others if self.store.check([f"beat{r}"]) and not self.store.check([f"left{r}"])]
        now = time.monotonic()
        for rank, found in zip(known, self.store.multi_get([f"beat{rank}" for rank in known]), strict=True):
            beat, since = self.heard.get(rank, ("", now))
            self.heard[rank] = (found.decode(), now if found.decode() != beat else since)
            if now - since > self.silence and found.decode() == beat:
                verdict = f"{self._describe(rank)} was lost: nothing heard of it for {now - since:.0f} s"
                self.store.set(VERDICT, verdict)
                return verdict
        if self.rank == 0:
            self._note_standstill(now)
        return None

    def _note_standstill(self, now: float) -> None:
        """Say once where all ranks are when none has moved for long: NCCL then ends them without saying whose fault."""
        places = {rank: json.loads(beat)["at"] for rank, (beat, _) in self.heard.items()}
        if places != self.places:
            self.places, self.moved = places, now
        elif self.moved is not None and now - self.moved > PATIENCE * self.timeout:
            rare = Counter(places.values())
            odd = sorted(places, key=lambda rank: (rare[places[rank]], rank))[:8]
            shown = "; ".join(self._describe(rank) for rank in odd) or "none but rank 0 has come so far"
            print(f"no rank has moved for {now - self.moved:.0f} s: {shown}", file=sys.stderr, flush=True)
            self.moved = None

    def tell(self, error: Exception) -> None:
        """Let the others know why this rank ends; the first one to tell is believed."""
        with suppress(RuntimeError):  # the store went first; the error itself is on its way to the user
            self.store.compare_set(FAILED, "", f"rank {self.rank} failed: {' '.join(str(error).split())[:500]}")

    def who(self) -> str:
        """Why a collective of this rank broke or timed out; all ranks that are well ask this at the same time."""
        try:
            self.store.append(WAITING, f"{self.rank},")
            time.sleep(min(3, self.silence))
            if said := self._said():
                return remedy(said)
            waiting = {int(rank) for rank in self.store.get(WAITING).decode().split(",") if rank}
            missing = sorted(set(range(self.world_size)) - waiting)
            if not missing:
                return remedy(f"ranks lost each other within {self.timeout:.0f} s, and none of them hangs")
            return remedy(
                f"{'; '.join(self._describe(rank) for rank in missing[:8])}: died, or kept the others waiting"
            )
        except RuntimeError:
            return remedy("rank 0 was lost: it no longer answers")

    def _said(self) -> str | None:
        """What a rank that failed, or rank 0, has told all."""
        for known in (FAILED, VERDICT):
            if self.store.check([known]) and (said := self.store.get(known).decode()):
                return said
        return None

    def _describe(self, rank: int) -> str:
        if not self.store.check([f"beat{rank}"]):
            return f"rank {rank}"
        beat = json.loads(self.store.get(f"beat{rank}"))
        ago = max(time.time() - beat["time"], 0)  # seconds apart, it may have gone on a good deal since
        return f"rank {rank} ({beat['host']}, process {beat['pid']}, seen {ago:.0f} s ago in {beat['at']})"


def where(frame: FrameType | None) -> str:
    """The innermost line of this project that a thread is in."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.parent.name in PACKAGES or path.parent.parent.name in PACKAGES:
            return f"{path.parent.name}/{path.name}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside of this project"


def remedy(wrong: str) -> str:
    """The whole message."""
    return (
        f"all ranks must stay in step; {wrong}. Start the run again to go on from its last checkpoint; if a step may "
        "take longer than trainer.strategy.init_args.timeout, raise that."
    )
