"""Signals that are only noted, in a process of their own that has imported nothing heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules import signals

BEGIN = """
import os, signal, sys, time
me = os.getpid()
{before}
from lightning_modules import signals
signals.install(training=True)
{after}
assert "torch" not in sys.modules
"""


def run(before: str = "", after: str = "", *launcher: str, **environment: str) -> int:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment = {**clean, **environment, "PYTHONPATH": str(Path(__file__).parents[3])}
    script = BEGIN.format(before=before, after=after)
    return subprocess.run([*launcher, sys.executable, "-c", script], env=environment, timeout=60).returncode


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"NODE_RANK": "1"}, False),  # all that Lightning's own launcher asks for on the second machine
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "SLURM_PROCID": "1"}, True),  # torchrun inside srun
        ({"RANK": "8", "LOCAL_RANK": "0", "GROUP_RANK": "1", "SLURM_PROCID": "0"}, False),
        ({"SLURM_PROCID": "3", "SLURM_NODEID": "1"}, False),
        ({"SLURM_PROCID": "0", "NODE_RANK": "1"}, False),  # by hand, in a shell that srun gave on the second node
        ({"JSM_NAMESPACE_RANK": "1"}, False),
    ],
)
def test_one_process_speaks_for_all(environment: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*signals.RANKS, "NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert signals.is_first() is first


def test_nothing_is_asked_at_first() -> None:
    assert run(after="assert signals.asked() == 0") == 0


def test_sigterm_wins_over_sigusr1() -> None:
    assert run(after="os.kill(me, 15); os.kill(me, 10); assert signals.asked() == 15") == 0


def test_ctrl_c_ends_at_once_where_there_is_no_step() -> None:
    assert run(after="os.kill(me, 2); time.sleep(9)") == 130


@pytest.mark.parametrize(("amid", "status"), [("signals.at_once('stopped')", 130), ("contextlib.nullcontext()", 0)])
def test_ctrl_c_amid_imports_ends_at_once_whoever_calls(amid: str, status: int) -> None:
    """A weak reference's callback swallows what is raised in it, and C++ aborts."""
    swallowed = f"""
import contextlib, weakref
with {amid}:
    held = {{1}}
    reference = weakref.ref(held, lambda _: os.kill(me, 2))
    del held
"""
    assert run(after=swallowed) == status


def test_ctrl_c_while_training_is_noted_and_a_second_one_means_now() -> None:
    assert run(after="signals.note_interrupt(True); os.kill(me, 2); assert signals.asked() == 2") == 0
    assert run(after="signals.note_interrupt(True); os.kill(me, 2); time.sleep(2.1); os.kill(me, 2)") == -2


def test_a_signal_before_the_handler_waits_behind_a_block() -> None:
    usr1 = "os.kill(me, signal.SIGUSR1)"
    asserted = "assert signals.asked() == signal.SIGUSR1"
    assert run(usr1, asserted, "env", "--block-signal=USR1") == 0
    assert run(usr1, asserted) == -signal.SIGUSR1


@pytest.mark.parametrize(
    ("pause", "environment", "status"), [(0.1, {}, 0), (2.1, {}, -15), (2.1, {"SLURM_JOB_ID": "1"}, 0)]
)
def test_a_second_sigterm_means_now(pause: float, environment: dict[str, str], status: int) -> None:
    """Not if it only came twice by way of a launcher; nor under SLURM, which sends another ahead of SIGKILL."""
    assert run(after=f"os.kill(me, 15); time.sleep({pause}); os.kill(me, 15)", **environment) == status


@pytest.mark.parametrize(("said", "seconds"), [("", 600), ("1200", 1200), ("0", 0), ("1.5", 1.5)])
def test_grace(said: str, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHERSIDE_GRACE", said)
    assert signals.grace() == seconds


@pytest.mark.parametrize("said", ["20m", "-1", "nan", "inf"])
def test_a_grace_time_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHERSIDE_GRACE", said)
    with pytest.raises(ValueError, match=f"OTHERSIDE_GRACE must be a number of seconds, such as 1200; got '{said}'"):
        signals.grace()
