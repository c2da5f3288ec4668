"""The note of a finished stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lightning_modules import finished


@pytest.mark.parametrize(
    ("asked", "answer"),
    [((6, None), True), ((6, -1), True), ((4, None), True), ((7, None), False), ((-1, 2), True), ((-1, 3), False)],
)
def test_ended_with_at_least_these_steps_or_epochs(asked: tuple[int, int | None], answer: bool, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, steps=6, epochs=2, max_steps=6, max_epochs=-1)
    assert (finished.ended(tmp_path, *asked) is not None) is answer


@pytest.mark.parametrize(
    ("asked", "answer"), [((100, 1), True), ((100, 3), False), ((100, None), False), ((40, 3), True), ((200, 1), True)]
)
def test_ended_by_epochs_before_its_steps(asked: tuple[int, int | None], answer: bool, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, steps=40, epochs=1, max_steps=100, max_epochs=1)
    assert (finished.ended(tmp_path, *asked) is not None) is answer


def test_ended_early_is_ended_as_long_as_limits_stay(tmp_path: Path) -> None:
    """EarlyStopping."""
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, steps=40, epochs=1, max_steps=100, max_epochs=-1)
    assert finished.ended(tmp_path, 100, None) and not finished.ended(tmp_path, 101, None)


@pytest.mark.parametrize("note", [None, "", "{", '{"max_steps"', "[]", '{"steps": 3}'])
def test_without_a_whole_note_a_stage_is_not_finished(note: str | None, tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    if note is not None:
        (tmp_path / finished.NOTE).write_text(note)
    assert not finished.ended(tmp_path, 1, None)


def test_without_its_encoder_a_stage_is_not_finished(tmp_path: Path) -> None:
    finished.write(tmp_path, steps=6, epochs=2, max_steps=6, max_epochs=-1)
    assert not finished.ended(tmp_path, 6, None)


def test_what_is_noted_comes_back(tmp_path: Path) -> None:
    (tmp_path / finished.ENCODER).mkdir()
    finished.write(tmp_path, 6, 2, 6, None, identity={"base": "b"}, changes=["c"])
    note = finished.ended(tmp_path, 6, None)
    assert note and note["identity"] == {"base": "b"} and note["changes"] == ["c"]
    assert json.loads((tmp_path / finished.NOTE).read_text()) == note
