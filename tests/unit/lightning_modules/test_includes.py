"""Settings files that include others."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules.includes import includes, merged, with_includes, with_settings


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


def test_our_recipes_have_an_address(tmp_path: Path) -> None:
    configs = Path(__file__).parents[3] / "configs"
    (tmp_path / "a.yaml").write_text("include: otherside:trainer/cpu.yaml")
    assert includes(tmp_path / "a.yaml") == [configs / "trainer/cpu.yaml", tmp_path / "a.yaml"]
    ours = includes(Path("otherside:quickstart/mntp.yaml"))
    assert ours == [configs / "trainer/cpu.yaml", configs / "quickstart/mntp.yaml"]


def test_later_settings_win(tmp_path: Path) -> None:
    write(tmp_path, a="include: b.yaml\ntrainer: {max_steps: 5}", b="trainer: {max_steps: 3, devices: 2}\nx: 1")
    found = merged(tmp_path / "a.yaml")
    assert found["trainer"] == {"max_steps": 5, "devices": 2} and found["x"] == 1


def test_a_longer_circle_is_found(tmp_path: Path) -> None:
    write(tmp_path, a="include: b.yaml", b="include: a.yaml")
    with pytest.raises(ValueError, match=r"circle; .*a.yaml includes itself"):
        includes(tmp_path / "a.yaml")


SOURCES = "data: {init_args: {sources: [{path: a}], splits: [x]}}"


def test_a_list_is_emptied_before_it_is_set_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """jsonargparse merges lists of the same length item by item."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, a=f"include: b.yaml\n{SOURCES}", b=SOURCES, c="data: {sources: [{path: a}]}")
    empty = ["--data.init_args.sources", "[]"]
    assert with_includes(["--config", "a.yaml"]) == ["--config", "b.yaml", *empty, "--config", "a.yaml"]
    found = with_includes(["--config", "b.yaml", "--config=c.yaml", "--config", "b.yaml"])
    emptied = ["--data.sources", "[]", "--config", "c.yaml", *empty, "--config", "b.yaml"]
    assert found == ["--config", "b.yaml", *emptied]
    for option in (["--data.sources", '[{"path": "c"}]'], ['--data.sources=[{"path": "c"}]']):
        assert with_includes(["--config", "b.yaml", *option]) == ["--config", "b.yaml", "--data.sources", "[]", *option]
    assert with_includes(["--config", "b.yaml", "--flag", *option])[2:] == ["--flag", "--data.sources", "[]", *option]
    whole = ["--data", "{init_args: {sources: [{path: c}]}}"]
    assert with_includes(["--config", "b.yaml", *whole]) == ["--config", "b.yaml", *empty, *whole]


@pytest.mark.parametrize("option", ["--x [1, 2]", "--x [", "--x []", "--x {a: 1}", "--x", "--devices=[0]", "[1]"])
def test_other_options_are_left_alone(option: str) -> None:
    arguments = option.split(" ", 1)
    assert with_includes(arguments) == arguments


def test_arguments_of_another_command_come_before_those_that_are_typed(tmp_path: Path) -> None:
    arguments = "out: c, b: file, corpus: null, fields: {query: Frage}, instruction: '-x', a: folder"
    write(tmp_path, a=f"mine: {{{arguments}}}", b="mine: {b: file}")
    found = with_settings("mine", ["a", "b"], ["--out", "d", f"--config={tmp_path}/a.yaml", "--x"])
    options = ["--out=c", "--corpus=null", '--fields={"query": "Frage"}', "--instruction=-x"]
    assert found == ["folder", "file", *options, "--out", "d", "--x"]
    with pytest.raises(ValueError, match=r"under mine:, a and b among them; .*/b.yaml has {'b': 'file'}"):
        with_settings("mine", ["a", "b"], ["folder", "--config", f"{tmp_path}/b.yaml"])
