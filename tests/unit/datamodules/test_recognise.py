"""What data files of others hold, by the names of their columns."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.recognise import recognise
from datamodules.rows import BadFile, BadRow
from datamodules.sources import Source, open_table


def columns(folder: Path, *names: str) -> str:
    """A CSV with these columns and one row."""
    (folder / "a.csv").write_text(",".join(names) + "\n" + ",".join(f"text {name}" for name in names) + "\n")
    return str(folder / "a.csv")


@pytest.mark.parametrize(
    ("names", "kind", "fields"),
    [
        (("question", "answer"), "pair", {"query": "question", "positive": "answer"}),
        (("id", "Question", "Answer"), "pair", {"query": "Question", "positive": "Answer"}),
        (("anchor", "positive"), "pair", {"query": "anchor", "positive": "positive"}),
        (("query", "answer", "negative"), "pair", {"query": "query", "positive": "answer", "negatives": "negative"}),
        (("query", "pos", "neg"), "pair", {"query": "query", "positive": "pos", "negatives": "neg"}),
        (("query", "positive", "scores"), "pair", {"query": "query", "positive": "positive"}),
        (("sentence1", "sentence2"), "pair", {"query": "sentence1", "positive": "sentence2"}),
        (("title", "text"), "pair", {"query": "title", "positive": "text"}),
        (("id", "text"), "blank_ok", {"text": "text"}),
        (("Content", "author"), "blank_ok", {"text": "Content"}),
    ],
)  # fmt: skip
def test_known_columns(names: tuple[str, ...], kind: str, fields: dict[str, str], tmp_path: Path) -> None:
    (found,) = recognise(columns(tmp_path, *names))
    others = [name for name in names if name not in fields.values()]
    assert (found.kind, found.source.fields) == (kind, fields)
    assert found.note == (f"not read: {', '.join(others)}" if others else "")


def test_numbered_negatives_are_a_list(tmp_path: Path) -> None:
    """As sentence-transformers has its n-tuples."""
    names = ("anchor", "positive", *(f"Negative_{i}" for i in (1, 2, 10)), "negative_score", "source")
    (found,) = recognise(columns(tmp_path, *names))
    assert found.source.fields == {"query": "anchor", "positive": "positive", "negatives": "Negative_*"}
    assert found.note == "not read: negative_score, source"
    [row] = open_table(found.source, "pair").rows
    assert row["negatives"] == ["text Negative_1", "text Negative_2", "text Negative_10"]
    rows = [{"query": "a", "positive": "b", "neg_2": "d", "neg_1": "c"}, {"query": "a", "positive": "b", "neg_1": None}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = recognise(str(tmp_path / "a.jsonl"))
    assert list(open_table(found.source, "pair").rows["negatives"]) == [["c", "d"], []]
    with pytest.raises(BadRow, match=r"line 1: field 'hard_\*' is missing; .* Name the right one"):
        open_table(Source(str(tmp_path / "a.jsonl"), {"negatives": "hard_*"}), "pair")


def test_columns_are_those_of_the_first_rows(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b"}, {"query": "a", "positive": "b", "neg": ["c"]}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (found,) = recognise(str(tmp_path / "a.jsonl"))
    assert found.source.fields["negatives"] == "neg"


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    (alpaca,) = recognise(columns(tmp_path, "instruction", "input", "output"))
    assert alpaca.kind == "pair" and alpaca.note == "not read: input"
    (labelled,) = recognise(columns(tmp_path, "text", "Label"))
    assert labelled.note == "to train on texts of one Label as pairs, pass --fields '{text: text, label: Label}'"


def test_graded_pairs_are_texts(tmp_path: Path) -> None:
    first, second = recognise(columns(tmp_path, "sentence1", "sentence2", "score"))
    assert [each.source.fields for each in (first, second)] == [{"text": "sentence1"}, {"text": "sentence2"}]
    assert first.kind == second.kind == "blank_ok"
    assert "score says how alike" in first.note and "{query: sentence1, positive: sentence2}" in first.note


def test_named_columns_win(tmp_path: Path) -> None:
    path = columns(tmp_path, "Frage", "Antwort", "text")
    (found,) = recognise(path, {"query": "Frage", "positive": "Antwort"})
    assert found.kind == "pair" and str(found) == "pairs (query = Frage, positive = Antwort)"
    (found,) = recognise(path, {"text": "text", "label": "Frage"})
    assert found.source.labels and str(found) == "texts with labels (text = text, label = Frage)"
    for wrong in ("query", "label"):
        with pytest.raises(ValueError, match=rf"--fields must map text, text and label, or query .* got {wrong}"):
            recognise(path, {wrong: "Frage"})


def test_unknown_columns_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.csv must have columns .* it has Frage, Antwort. Name them: --fields"):
        recognise(columns(tmp_path, "Frage", "Antwort"))


def test_columns_between_semicolons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question;answer\nWhy?;Because.\n")
    with pytest.raises(ValueError, match=r"it has question;answer\. Separate them by commas"):
        recognise(str(tmp_path / "a.csv"))


def test_every_format(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b"}
    pq.write_table(pa.table({name: [text] for name, text in row.items()}), tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    (tmp_path / "a.tsv").write_text("question\tanswer\na\tb\n")
    assert {recognise(str(tmp_path / f"a.{kind}"))[0].kind for kind in ("parquet", "jsonl", "tsv")} == {"pair"}
    (tmp_path / "a.txt").write_text("a\n")
    assert recognise(str(tmp_path / "a.txt"))[0].kind == "blank_ok"


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n")
    with pytest.raises(BadFile, match="must have rows"):
        recognise(str(tmp_path / "a.csv"))
    (tmp_path / "a.jsonl").write_text("[1]\n")
    with pytest.raises(BadRow, match=r"a\.jsonl, line 1: a row must be a JSON object"):
        recognise(str(tmp_path / "a.jsonl"))
