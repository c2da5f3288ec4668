"""Imports point one way, lightning_modules -> otherside <- datamodules, and ruff says so where they do not."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PACKAGES = ("otherside", "lightning_modules", "datamodules")


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


def imports(file: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports, wherever in it; with the packages that they lie in."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[:n]) for n in range(1, len(parts) + 1)} & modules
    return found


# Both only name a type: these functions are methods of the one class that they take, in a file of their own
METHODS = {("otherside.self_test", "otherside.backbone"), ("lightning_modules.automatic", "lightning_modules.base")}


def test_imports_lead_in_no_circle() -> None:
    """Not even those of types, or inside functions."""
    files = {path: path.relative_to(REPOSITORY) for name in PACKAGES for path in (REPOSITORY / name).rglob("*.py")}
    modules = {path: ".".join(name.with_suffix("").parts).removesuffix(".__init__") for path, name in files.items()}
    graph = {
        name: {other for other in imports(path, set(modules.values())) if not f"{name}.".startswith(f"{other}.")}
        for path, name in modules.items()
    }
    for one, other in METHODS:
        graph[one].remove(other)
    TopologicalSorter(graph).prepare()  # raises CycleError, which names them
