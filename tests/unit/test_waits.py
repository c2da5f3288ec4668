"""Waits: a line on a terminal, nothing in a log."""

from __future__ import annotations

import os
import pty
import sys

import pytest
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from transformers.utils import logging

from otherside.waits import quiet_libraries, saying


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


@pytest.mark.parametrize("terminal", [True, False])
def test_downloads_keep_their_bars_on_a_terminal(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    logging.enable_progress_bar()
    try:
        quiet_libraries()
        assert not logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled() is not terminal
    finally:
        logging.enable_progress_bar()
        enable_progress_bars()
