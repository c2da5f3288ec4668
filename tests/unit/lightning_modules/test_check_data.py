"""`lightning check-data`: what it takes from a YAML, its page, its exit status."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import runs
from sts import write_sts

from lightning_modules.cli import main


@pytest.fixture
def stage(tmp_path: Path, tiny_llama: Path) -> Path:
    """A stage's YAML with clean pairs, others to validate, and a task."""
    for name in ("pairs", "val"):
        rows = [{"query": f"What is {name} {i}?", "positive": f"Number {i} of {name}."} for i in range(15)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sentences.txt").write_text("Neither a question nor an answer.\n")
    validation = {"data.init_args.val_sources": [{"path": str(tmp_path / "val.jsonl")}]}
    mteb = {"tasks": ["STSBenchmark"], "data": str(write_sts(tmp_path / "mteb"))}
    return runs.write_stage(tmp_path, "Supervised", tiny_llama, mteb=mteb, **validation)


def leaked(folder: Path) -> str:
    """A sentence of the task, now the query of a training pair."""
    [file] = (folder / "mteb").rglob("*.parquet")
    text: str = pq.read_table(file).to_pylist()[3]["sentence1"]
    with (folder / "pairs.jsonl").open("a") as pairs:
        pairs.write(json.dumps({"query": text.upper(), "positive": "Something else entirely."}) + "\n")
    return text


def test_clean_data_end_well(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check-data", str(stage), "--out", str(tmp_path / "numbers.json")])
    page = capsys.readouterr().out
    assert page.splitlines()[0] == f"{tmp_path}/pairs.jsonl: 15 rows" and page.splitlines()[-1].startswith("fine")
    assert "tokens of a text" in page and "cut at 32" in page
    assert "not among the training texts: those of STSBenchmark" in page and "val.jsonl" in page
    assert json.loads((tmp_path / "numbers.json").read_text())["failures"] == []


def test_a_leak_ends_with_status_1(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = leaked(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["check-data", str(stage), "--out", str(tmp_path / "numbers.json")])
    page = capsys.readouterr().out
    assert ended.value.code == 1
    assert f"LEAK: 1 rows of {tmp_path}/pairs.jsonl have texts of STSBenchmark, such as\n  {text.upper()}" in page
    assert page.splitlines()[-1].startswith("do not train on this yet: texts of STSBenchmark")
    [leak, *_] = json.loads((tmp_path / "numbers.json").read_text())["leaks"]
    assert leak["examples"] == [text.upper()] and leak["of"] == "STSBenchmark"


def test_malformed_rows_fail_where_training_would_stop(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (tmp_path / "pairs.jsonl").open("a") as pairs:
        pairs.write("{}\n")
    with pytest.raises(SystemExit):
        main(["check-data", str(stage)])
    assert "1 rows are malformed" in capsys.readouterr().out
    stage.write_text(stage.read_text().replace("num_workers: 0", "on_bad_row: skip"))
    main(["check-data", str(stage)])
    assert "1 malformed" in capsys.readouterr().out


def test_files_need_no_yaml(stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, sentences = str(tmp_path / "pairs.jsonl"), str(tmp_path / "sentences.txt")
    main(["check-data", pairs, sentences, pairs])
    page = capsys.readouterr().out
    assert "words of a text" in page and "no test texts to look for" in page
    assert f"15 rows are both in {pairs} and {pairs}" in page
    leaked(tmp_path)
    with pytest.raises(SystemExit):
        main(["check-data", pairs, "--mteb", "[STSBenchmark]", "--mteb_data", str(tmp_path / "mteb")])
    with pytest.raises(SystemExit):
        main(["check-data", pairs, "--mteb", "STSBenchmark", "--mteb_data", str(tmp_path / "mteb")])
