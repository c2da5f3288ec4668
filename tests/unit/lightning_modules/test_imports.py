"""Imports point one way, lightning_modules -> otherside <- datamodules, and ruff says so where they do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]


def findings(folder: str, imported: str) -> str:
    """What ruff's rule on imports says of one line in a file of `folder`."""
    command = [sys.executable, "-m", "ruff", "check", "--select", "TID251", "--output-format", "concise"]
    command += ["--stdin-filename", f"{folder}/new.py", "-"]
    return subprocess.run(command, input=f"import {imported}\n", cwd=REPOSITORY, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("folder", "imported"),
    [
        ("otherside", "lightning"),
        ("otherside/probing", "lightning_modules.base"),
        ("otherside", "datamodules"),
        ("lightning_modules", "datamodules.plan"),
        ("lightning_modules/callbacks", "datamodules"),
        ("datamodules", "lightning_modules.base"),
    ],
)
def test_import_against_the_direction_is_found(folder: str, imported: str) -> None:
    assert "TID251" in findings(folder, imported)


@pytest.mark.parametrize(
    ("folder", "imported"),
    [("lightning_modules", "otherside"), ("datamodules", "lightning"), ("tests", "datamodules")],
)
def test_import_along_the_direction_is_fine(folder: str, imported: str) -> None:
    assert "All checks passed" in findings(folder, imported)


def test_an_error_of_a_quick_command_imports_nothing_large() -> None:
    """Names that may be meant are looked for among all that a YAML may name: only where one was read."""
    script = """
import sys
from lightning_modules.cli import main
try:
    main(["size", "--epochs", "3"])
except SystemExit as end:
    print(end, sorted({"torch", "lightning"} & set(sys.modules)))
"""
    said = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True).stdout
    assert said.startswith("error: there is no option --epochs") and said.endswith(" []\n")
