"""`lightning probe` from encoder folders to figure."""

import csv
import json
from pathlib import Path

import pytest
import torch

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig, load_tokenizer
from otherside.encoder import Encoder
from otherside.probing import probe
from otherside.probing.report import Result
from otherside.probing.run import run_probe


def trained(base: Path, folder: Path, stage: str, seed: int = 0) -> str:
    """An encoder folder whose adapter is random."""
    backbone = Backbone.load(BackboneConfig(str(base), dtype="float32"), Lora(r=4))
    torch.manual_seed(seed)
    for name, parameter in backbone.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return str(Encoder(backbone, load_tokenizer(str(base))).save(folder, stage))


@pytest.fixture(scope="module")
def encoders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("encoders")
    return [trained(tiny_llama, root / stage, stage, seed) for seed, stage in enumerate(["mntp", "simcse"])]


@pytest.fixture
def pairs(tmp_path: Path, sentences: list[str]) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"query": text, "positive": text}) + "\n" for text in sentences))
    return path


def run(encoders: list[str], out: Path, **options: object) -> list[Result]:
    return run_probe(encoders, out, **{"dtype": "float32", "device": "cpu", "train": 80, "test": 40, **options})  # type: ignore[arg-type]


def written(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "variants").iterdir()}


def test_report(encoders: list[str], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    results = run(encoders, out, retrieval=pairs)
    assert [result.name for result in results] == ["uni", "bi", "mntp", "simcse"]
    for result in results:
        assert result.retrieval is not None
        assert result.retrieval["MRR"].value == 1
    uni, bi = results[:2]
    first, second = uni.accuracy["subject animacy"][0], uni.accuracy["object animacy"][0]
    assert (first.low, first.value, first.high) == (second.low, second.value, second.high) == (0.5, 0.5, 0.5)
    assert bi.accuracy["subject animacy"][0] != first
    assert results[2].accuracy != results[3].accuracy != bi.accuracy
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| mntp " in table
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * (2 + 2 * 5)
    assert {row["measure"] for row in rows} == {"MRR", "recall@1", "subject animacy", "object animacy"}
    assert [Result.from_json(row) for row in json.loads((out / "results.json").read_text())] == results
    assert (out / "probing.png").read_bytes().startswith(b"\x89PNG")
    assert "simcse" in (out / "probing.svg").read_text()
    assert not list(out.rglob("*.tmp"))


def test_goes_on_where_it_was_cut(encoders: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    results = run(encoders[:1], out)
    cached = written(out)
    assert len(cached) == 3
    assert run(encoders[:1], out) == results
    assert written(out) == cached, "measured again"
    lost = sorted(cached)[0]
    (out / "variants" / lost).unlink()
    assert run(encoders[:1], out) == results
    again = written(out)
    assert {name for name in again if again[name] != cached[name]} == {lost}
    run(encoders, out)
    assert len(written(out)) == 4, "an encoder more costs one measurement"


def test_what_is_kept_belongs_to_weights_and_settings(encoders: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    [old] = run(encoders[:1], out, baselines=False)
    folder = trained(tiny_llama, tmp_path / "mntp", "mntp", seed=7)
    [new] = run([folder], out, baselines=False)
    assert old.accuracy != new.accuracy
    run([folder], out, baselines=False, dtype="bfloat16")
    run([folder], out, baselines=False, seed=1)
    assert len(written(out)) == 4


def test_two_encoders_of_one_stage_are_told_apart(encoders: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    other = trained(tiny_llama, tmp_path / "mntp", "mntp", seed=7)
    results = run([encoders[0], other], tmp_path / "out", baselines=False)
    assert [result.name for result in results] == [f"mntp ({encoders[0]})", f"mntp ({other})"]


def test_what_it_refuses(encoders: list[str], tiny_llama: Path, tiny_llama_bos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one encoder"):
        probe([], out=tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        probe([str(tmp_path / "none")], out=tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.json"):
        probe([str(tiny_llama)], out=tmp_path)
    stranger = trained(tiny_llama_bos, tmp_path / "other", "mntp")
    with pytest.raises(ValueError, match="one base model"):
        probe([*encoders, stranger], out=tmp_path)
    assert not (tmp_path / "variants").exists()
    assert len(run([encoders[0], stranger], tmp_path / "out", baselines=False)) == 2
