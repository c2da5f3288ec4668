"""The note of a finished stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from lightning_modules import finished


@pytest.mark.parametrize(
    ("asked", "answer"),
    [((6, None), True), ((4, None), True), ((7, None), False), ((-1, 2), False)],
)
def test_finished_with_at_least_these_steps(asked: tuple[int, int | None], answer: bool, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, steps=6, max_steps=6, max_epochs=None)
    assert finished.is_finished(tmp_path, *asked) is answer


@pytest.mark.parametrize(("epochs", "answer"), [(2, True), (3, False), (None, False)])
def test_finished_by_epochs(epochs: int | None, answer: bool, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, steps=10, max_steps=-1, max_epochs=2)
    assert finished.is_finished(tmp_path, -1, epochs) is answer


@pytest.mark.parametrize("note", [None, "", "{", '{"max_steps"'])
def test_without_a_whole_note_a_stage_is_not_finished(note: str | None, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    if note is not None:
        (tmp_path / finished.NOTE).write_text(note)
    assert not finished.is_finished(tmp_path, 1, None)


def test_without_its_encoder_a_stage_is_not_finished(tmp_path: Path) -> None:
    finished.write(tmp_path, steps=6, max_steps=6, max_epochs=None)
    assert not finished.is_finished(tmp_path, 6, None)
