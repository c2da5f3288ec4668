"""What a recipe's YAMLs are, in which order, and what is finished."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from recipes import end, mines, write

from lightning_modules import finished
from lightning_modules.includes import with_settings
from lightning_modules.steps import behind, stages, steps
from otherside.lineage import Card, Lineage, Merged


def test_each_stage_comes_behind_the_one_it_starts_from(tmp_path: Path) -> None:
    write(tmp_path, "a-last", "runs/m/encoder", "runs/l")
    write(tmp_path, "b-middle", "runs/f/encoder", "runs/m")
    write(tmp_path, "c-first", "base", "runs/f")
    (tmp_path / "common.yaml").write_text("trainer: {devices: 1}\n")  # no stage
    assert [stage.file.stem for stage in stages(tmp_path)] == ["c-first", "b-middle", "a-last"]


def test_mining_comes_between_the_stages_that_it_joins(tmp_path: Path) -> None:
    rows = "data: {init_args: {sources: [{path: other.jsonl}, {path: [more.jsonl, ./runs/mined.jsonl]}]}}\n"
    write(tmp_path, "a-last", "runs/f/encoder", "runs/l", rows)
    write(tmp_path, "c-first", "base", "runs/f")
    file = mines(tmp_path, negatives=2)
    found = steps(tmp_path)
    assert [step.name for step in found] == ["c-first", "negatives", "a-last"]
    assert found[1].command(["--trainer.max_steps", "2"])[2:] == ["mine", "--config", str(file)]
    assert behind(found[2], found) == [found[0], found[1]]
    assert [stage.name for stage in stages(tmp_path)] == ["c-first", "a-last"]


@pytest.mark.parametrize(
    "read",
    [
        "{here}/runs/mined.jsonl",
        "a/../runs/mined.jsonl",
        "a/../runs/min*.jsonl",
        "link/mined.jsonl",
        "~/runs/mined.jsonl",
    ],
)
@pytest.mark.parametrize(
    "sources", ["sources: [{path: %s}], val_sources: null", "sources: [{path: a}], val_sources: [{path: %s}]"]
)
def test_a_path_may_be_written_in_other_ways(
    read: str, sources: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("runs").mkdir()
    Path("link").symlink_to("runs")
    write(tmp_path, "a-last", "base", "runs/l", f"data: {{init_args: {{{sources % read.format(here=tmp_path)}}}}}\n")
    mines(tmp_path, encoder=f"{tmp_path}/runs/f")
    write(tmp_path, "z-first", "base", "runs/f")
    assert [step.name for step in steps(tmp_path)] == ["z-first", "negatives", "a-last"]


def test_a_glob_names_what_is_in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [step] = steps(mines(tmp_path, pairs="data/*.jsonl", out="data/mined/a.jsonl").parent)
    assert not behind(step, [step])


def test_two_steps_never_write_to_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "again.yaml").write_text(mines(tmp_path, out=f"{tmp_path}/runs/mined.jsonl").read_text())
    mines(tmp_path)
    with pytest.raises(
        ValueError, match=r"and each mine an out; again.yaml and negatives.yaml share .*runs/mined.jsonl"
    ):
        steps(tmp_path)


def test_mining_from_what_it_makes_is_a_circle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"wait for each other: negatives.yaml. See .* encoder and pairs of mine"):
        steps(mines(tmp_path, pairs="runs/mined.jsonl").parent)


def test_a_stage_that_mines_is_two_steps(tmp_path: Path) -> None:
    write(tmp_path, "a", "base", "runs/f", mines(tmp_path).read_text().removeprefix("{").removesuffix("}"))
    with pytest.raises(ValueError, match=r"a.yaml must be a stage or mine; it has model: and mine:"):
        steps(tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"pairs": ""}, "which needs encoder, pairs, out"), ({"negative": 2, "1": 3}, "which has no negative, 1")],
)
def test_what_mining_does_not_know_is_an_error(settings: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"negatives.yaml: mine must have arguments of `lightning mine`, {said}"):
        steps(mines(tmp_path, **settings).parent)
    with pytest.raises(ValueError, match=r"under mine:, encoder among them; .*/other.yaml has none"):
        write(tmp_path, "other", "base", "runs/other")
        with_settings("mine", ["encoder"], ["--config", str(tmp_path / "other.yaml")])


def test_settings_may_stand_in_an_included_file(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "trainer.yaml").write_text("trainer: {default_root_dir: runs/a}")
    (tmp_path / "a.yaml").write_text("include: parts/trainer.yaml\nmodel: {init_args: {backbone: {model: base}}}")
    [stage] = stages(tmp_path)
    assert stage.root == "runs/a"


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ("trainer: {devices: 2, log_every_n_steps: 9}", True),
        ("trainer: {max_epochs: -1, max_steps: 1}", True),
        ("trainer: {max_steps: 3}", False),
        ("trainer: {precision: bf16-mixed}", False),
        ("model: {init_args: {lora: {r: 8}}}", False),
        ("data: {init_args: {max_length: 16}}", False),
        ("seed_everything: 7", False),
    ],
)
def test_what_is_finished_is_said_without_a_process(change: str, answer: bool, tmp_path: Path) -> None:
    write(tmp_path, "a", "base", str(tmp_path / "run"))
    end(tmp_path / "a.yaml", tmp_path / "run")
    [stage] = stages(tmp_path)
    assert stage.is_finished()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.yaml").write_text(change)
    assert stage.is_finished(["--config", str(tmp_path / "b" / "b.yaml")]) is answer


def encoder(folder: Path, sha256: str) -> str:
    """As if one had been trained there."""
    folder.mkdir(parents=True, exist_ok=True)
    adapter = Merged("mntp", str(folder / "adapters" / "0-mntp"), sha256)
    Card(Lineage("base", adapters=(adapter,)), "mntp", 2, "bidirectional", "mean", 64, None, True, None).write(folder)
    return str(folder)


def test_a_stage_on_an_encoder_that_was_trained_again_is_in_doubt(tmp_path: Path) -> None:
    place = tmp_path / "mntp" / finished.ENCODER
    write(tmp_path, "simcse", encoder(place, "a" * 64), str(tmp_path / "run"))
    end(tmp_path / "simcse.yaml", tmp_path / "run", str(place))
    [stage] = stages(tmp_path)
    assert stage.is_finished()
    encoder(place, "b" * 64)
    assert not stage.is_finished()


def test_negatives_of_an_encoder_that_was_trained_again_are_in_doubt(tmp_path: Path) -> None:
    out, report = tmp_path / "mined.jsonl", tmp_path / "mined.jsonl.report.json"
    [step] = steps(mines(tmp_path, encoder=encoder(tmp_path / "encoder", "a" * 64), out=str(out), negatives=[2]).parent)
    made = {"settings": {"encoder": {"lineage": {"adapters": [{"name": "mntp", "sha256": "a" * 64}]}}}}
    given = {"encoder": step.model, "negatives": [2], "last_rank": 100}
    report.write_text(json.dumps({**made, "given": given}))
    assert not step.is_finished()
    out.write_text("{}")
    assert step.is_finished()
    for other in (None, {**given, "last_rank": 50}):  # an older version's
        report.write_text(json.dumps({**made, "given": other}))
        assert not step.is_finished()
    report.write_text(json.dumps({**made, "given": given}))
    encoder(tmp_path / "encoder", "b" * 64)
    assert not step.is_finished()
