"""`pip install` of the wheel, used where there is no checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("otherside", "lightning_modules", "datamodules", "configs", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


pytestmark = pytest.mark.xdist_group("wheel")  # which is built once


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with our wheel; dependencies are those of the tests' own."""
    folder = tmp_path_factory.mktemp("wheel")
    source, home = folder / "source", folder / "venv"
    source.mkdir()
    for name in SOURCES:  # building leaves folders behind
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source, cwd=folder)
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=folder)
    [wheel] = folder.glob("*.whl")
    run(*pip, "--python", home / "bin/python", "install", "--quiet", "--no-deps", "--no-compile", wheel, cwd=folder)
    [site] = home.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return home


def files(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix in (".py", ".yaml", ".md", ".html"))
    return {str(path.relative_to(folder)) for path in found}


def test_recipes_are_found_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    said = run(installed / "bin/lightning", "recipe", "otherside:quickstart", "--dry-run", cwd=tmp_path)
    assert [line.split()[1] for line in said.splitlines()] == ["1/3:", "2/3:", "3/3:"]
    assert f"{installed}/lib" in said and str(ROOT) not in said
    assert not list(tmp_path.iterdir())  # what a recipe makes belongs to where it is run


def test_it_has_every_file_of_the_packages_and_recipes(installed: Path) -> None:
    [site] = installed.glob("lib/python*/site-packages")
    assert files(site / "otherside/configs") == files(ROOT / "configs")
    for package in ("otherside", "lightning_modules", "datamodules"):
        there = {name for name in files(site / package) if not name.startswith("configs/")}
        assert there == files(ROOT / package)
