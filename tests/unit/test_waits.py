"""Waits: a line on a terminal, nothing in a log."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from otherside.waits import saying


def test_a_terminal_has_a_line_that_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(ValueError, match="gone"), saying("loading"):
            assert os.read(master, 99).decode() == "loading …"
            raise ValueError("gone")
        assert os.read(master, 99).decode() == "\r\x1b[K"  # before the error is told
        monkeypatch.setenv("LOCAL_RANK", "1")
        with saying("loading"):
            print("nothing before this", file=terminal)
        assert os.read(master, 99).decode() == "nothing before this\r\n"
    os.close(master)


def test_a_log_has_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with saying("loading"):
        pass
    assert capsys.readouterr().err == ""
