"""Settings files that include others."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.includes import includes, merged, with_includes


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(content)


def test_files_come_before_the_one_that_includes_them(tmp_path: Path) -> None:
    write(tmp_path, a="include: [b.yaml, sub/c.yaml]", b="include: d.yaml", d="x: 1")
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", c="include: ../d.yaml")  # relative to the file that names it
    found = [str(file.relative_to(tmp_path)) for file in includes(tmp_path / "a.yaml")]
    assert found == ["d.yaml", "b.yaml", "d.yaml", "sub/c.yaml", "a.yaml"]


@pytest.mark.parametrize("option", [["--config", "a.yaml"], ["--config=a.yaml"], ["-c", "a.yaml"]])
def test_options_keep_their_place(option: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, a="include: b.yaml", b="x: 1")
    found = with_includes(["--first", "1", *option, "--last=2"])
    assert found == ["--first", "1", "--config", "b.yaml", "--config", "a.yaml", "--last=2"]


def test_later_settings_win(tmp_path: Path) -> None:
    write(tmp_path, a="include: b.yaml\ntrainer: {max_steps: 5}", b="trainer: {max_steps: 3, devices: 2}\nx: 1")
    found = merged(tmp_path / "a.yaml")
    assert found["trainer"] == {"max_steps": 5, "devices": 2} and found["x"] == 1


def test_a_longer_circle_is_found(tmp_path: Path) -> None:
    write(tmp_path, a="include: b.yaml", b="include: a.yaml")
    with pytest.raises(ValueError, match=r"circle; .*a.yaml includes itself"):
        includes(tmp_path / "a.yaml")
