"""The command line around a plain function: its help, short forms of its options, and who reads its output."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.cli import FUNCTIONS, main

REPOSITORY = Path(__file__).parents[3]
CONFIG, SHAPE = (str(REPOSITORY / path) for path in ("configs/quickstart/mntp.yaml", "benchmarks/shapes/tiny"))


@pytest.mark.parametrize("command", FUNCTIONS)
def test_help_says_what_positional_arguments_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    rest = " ".join(capsys.readouterr().out.partition("positional arguments:")[2].split())
    for name in FUNCTIONS[command][1]:
        assert f"{name} " in rest and f"{name} (required" not in rest


def test_a_bare_flag_is_true(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--json", CONFIG], [CONFIG, "--json"], [CONFIG, "--json", "true"], ["--json=true", CONFIG]):
        main(["size", *arguments, "--model", SHAPE])
        assert json.loads(capsys.readouterr().out)["fits"]
    main(["size", CONFIG, "--json", "false", "--model", SHAPE])
    assert capsys.readouterr().out.startswith("mntp, ")


def test_a_reader_that_has_gone_is_no_error() -> None:
    command = [sys.executable, "-m", "lightning_modules.cli", "size", CONFIG, "--model", SHAPE]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
