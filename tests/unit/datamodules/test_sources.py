"""Every format is read, every malformed row is named, and the cache follows the files."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from datamodules.rows import READERS, BadFile, BadRow
from datamodules.sources import Kind, Source, Table, load_remote, open_table
from otherside.hub import DATA

TEXTS = ["One.", 'Two, with "quotes".', "Three: ünï ✓", "Four"]


def texts_of(table: Table) -> list[str]:
    return list(table.rows["text"])


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def content(suffix: str) -> bytes:
    """TEXTS in the format of `suffix`."""
    if suffix == ".parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": TEXTS, "other": [1, 2, 3, 4]}), sink, row_group_size=2)
        return sink.getvalue().to_pybytes()
    quoted = ['"' + text.replace('"', '""') + '"' for text in TEXTS]
    lines = {
        ".jsonl": [json.dumps({"text": text, "other": 1}) for text in TEXTS],
        ".json": [json.dumps({"text": text}, ensure_ascii=False) for text in TEXTS],
        ".txt": TEXTS,
        ".csv": ["other,text", *(f"1,{text}" for text in quoted)],
        ".tsv": ["text\tother", *(f"{text}\t1" for text in quoted)],
    }[suffix]
    return "\n".join(lines).encode()


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet"])
def test_formats(tmp_path: Path, suffix: str, compression: str) -> None:
    data = content(suffix)
    if compression == ".gz":
        data = gzip.compress(data)
    elif compression == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path = write(tmp_path / f"data{suffix}{compression}", data)
    assert texts_of(open_table(Source(str(path)), "text")) == TEXTS


def test_windows_lines_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    rows = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}\r\n\n'
    assert texts_of(open_table(Source(str(write(tmp_path / "a.jsonl", rows))), "text")) == ["a", "b"]
    assert texts_of(open_table(Source(str(write(tmp_path / "a.txt", "\ufeffa b\r\nc\u2028d\r\n"))), "text")) == [
        "a b",
        "c\u2028d",  # not a line end
    ]


def test_csv_cells_may_hold_lines_and_long_texts(tmp_path: Path) -> None:
    long = "x" * 200_000
    path = write(tmp_path / "a.csv", f'text\n"two\nlines"\n{long}\n')
    assert texts_of(open_table(Source(str(path)), "text")) == ["two\nlines", long]


def test_globs_lists_and_order(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / "part" / f"{name}.txt", f"{name}1\n{name}2\n")
    pattern = str(tmp_path / "part" / "*.txt")
    assert texts_of(open_table(Source(pattern), "text")) == ["a1", "a2", "b1", "b2", "c1", "c2"]
    some = [str(tmp_path / "part" / "c.txt"), str(tmp_path / "**" / "a.txt")]
    assert texts_of(open_table(Source(some), "text")) == ["c1", "c2", "a1", "a2"]
    twice = [some[0], pattern, str(tmp_path / "part" / ".." / "part" / "a.txt")]
    assert texts_of(open_table(Source(twice), "text")) == ["c1", "c2", "a1", "a2", "b1", "b2"], "each file once"


def test_fields_are_mapped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"q": "x", "doc": "y", "hard": "z"}\n{"q": "a", "doc": "b", "hard": null}\n')
    source = Source(str(path), fields={"query": "q", "positive": "doc", "negatives": "hard"})
    assert open_table(source, "pair").rows.to_list() == [
        {"query": "x", "positive": "y", "negatives": ["z"]},
        {"query": "a", "positive": "b", "negatives": []},
    ]


def test_negatives_may_be_a_list_one_text_null_or_absent(tmp_path: Path) -> None:
    values = ['["n", "m"]', '"n"', "null", "[]"]
    lines = [f'{{"query": "q", "positive": "p", "negatives": {value}}}' for value in values]
    path = write(tmp_path / "a.jsonl", "\n".join([*lines, '{"query": "q", "positive": "p"}']))
    assert list(open_table(Source(str(path)), "pair").rows["negatives"]) == [["n", "m"], ["n"], [], [], []]


def test_lists_in_cells_of_csv(tmp_path: Path) -> None:
    """As JSON and as pandas write them; nothing else in brackets is one."""
    positives = ["p", '["p", "o"]', "[deleted]", "[1, 2]", "['p' 'o']"]
    negatives = [["n, 1", "it's"], [], ["[n]"], ["n"], ["m"]]
    with (tmp_path / "a.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerows([("query", "positive", "negatives"), *zip("abcde", positives, negatives, strict=True)])
    rows = open_table(Source(str(tmp_path / "a.csv")), "pair").rows
    assert list(rows["positive"]) == ["p", "p", "o", "[deleted]", "[1, 2]", "['p' 'o']"]
    assert list(rows["negatives"]) == [["n, 1", "it's"], [], [], ["[n]"], ["n"], ["m"]]


def test_each_of_several_positives_makes_a_pair(tmp_path: Path) -> None:
    """As in FlagEmbedding's files, their scores included."""
    row = {"query": "q", "pos": ["p", "o"], "neg": ["o", "n"], "pos_scores": [0.5, 0.25], "neg_scores": [-1, 0.125]}
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    fields = {"positive": "pos", "negatives": "neg"}
    made = [{"query": "q", "positive": positive, "negatives": ["n"]} for positive in "po"]  # none of its positives
    assert open_table(Source(str(path), fields), "pair").rows.to_list() == made
    alone = open_table(Source(str(path), fields, in_batch=False), "pair").rows
    assert alone.to_list() == made
    fields |= {"scores": "neg_scores", "positive_score": "pos_scores"}
    scored = open_table(Source(str(path), fields, scores=True), "pair").rows
    assert scored.to_list() == [made[0] | {"scores": [0.5, 0.125]}, made[1] | {"scores": [0.25, 0.125]}]


def test_pairs_that_stand_alone_need_a_negative(tmp_path: Path) -> None:
    lines = ['{"query": "q", "positive": "p", "negatives": ["p", "n", "q"]}', '{"query": "q", "positive": "p"}']
    source = Source(str(write(tmp_path / "a.jsonl", lines[0] + "\n")), in_batch=False)
    assert list(open_table(source, "pair").rows["negatives"]) == [["n"]]
    source = Source(str(write(tmp_path / "b.jsonl", "\n".join(lines))), in_batch=False)
    with pytest.raises(
        BadRow, match=r"line 2: field 'negatives' must hold a text other than query and positive.*got 0"
    ):
        open_table(source, "pair")
    assert len(open_table(source, "pair", "skip")) == 1
    source.in_batch = True  # another table
    assert [len(negatives) for negatives in open_table(source, "pair").rows["negatives"]] == [2, 0]


@pytest.mark.parametrize("setting", ["in_batch", "labels", "scores"])
def test_settings_of_pairs_are_none_of_texts(tmp_path: Path, setting: str) -> None:
    source = Source(str(write(tmp_path / "a.txt", "a\n")), **{setting: setting != "in_batch"})
    with pytest.raises(ValueError, match=r"in_batch, labels and scores must be for datamodules\.Pairs; got .*a\.txt"):
        open_table(source, "text")


@pytest.mark.parametrize("kind", ["text", "blank_ok", "corpus"])
def test_texts_have_one_instruction(tmp_path: Path, kind: Kind) -> None:
    source = Source(str(write(tmp_path / "a.txt", "a\n")), document_instruction="passage: ")
    with pytest.raises(ValueError, match=r"got 'passage: ' for .*a\.txt, which is read as texts\. Set instruction"):
        open_table(source, kind)


SCORED = {"query": "q", "positive": "p", "negatives": ["n", "p", "m"], "scores": [0.5, 1, -2.5], "positive_score": 0.75}
FREE = {"query": "r", "positive": "s", "scores": None, "positive_score": 1}


def scored(folder: Path, *rows: dict[str, Any], **settings: Any) -> Source:
    path = write(folder / "scored.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return Source(str(path), **{"scores": True, **settings})


def test_scores_are_of_the_positive_then_of_each_negative(tmp_path: Path) -> None:
    rows = open_table(scored(tmp_path, SCORED, FREE), "pair").rows
    assert list(rows["scores"]) == [[0.75, 0.5, -2.5], [1]] and list(rows["negatives"]) == [["n", "m"], []]
    alone = open_table(scored(tmp_path, SCORED, in_batch=False), "pair").rows
    assert alone.to_list() == [{"query": "q", "positive": "p", "negatives": ["n", "m"], "scores": [0.75, 0.5, -2.5]}]
    renamed = {{"scores": "neg_scores", "positive_score": "pos_score"}.get(key, key): x for key, x in SCORED.items()}
    fields = {"scores": "neg_scores", "positive_score": "pos_score"}
    assert list(open_table(scored(tmp_path, renamed, fields=fields), "pair").rows["scores"]) == [[0.75, 0.5, -2.5]]


def test_scores_are_not_read_where_they_are_not_asked_for(tmp_path: Path) -> None:
    """What tables and runs of older versions are known by: the digest is theirs."""
    row = {**SCORED, "negatives": ["n", "m"], "scores": [0.5, -2.5]}
    table = open_table(scored(tmp_path, row, FREE, scores=False), "pair")
    assert table.rows.column_names == ["query", "positive", "negatives"]
    assert table.content == "758d51ce6780f80f21a9b1dbe88783703b520cc81e2632a1bd8b41d0280dda5b"
    asked = open_table(scored(tmp_path, row, FREE), "pair")
    assert asked.content != table.content
    assert list(asked.sizes(99)) == list(table.sizes(99)), "scores are no texts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5]}, "field 'scores' must be a list of numbers, one for each of the 3 negatives; got 1. Score"),
        (
            {"scores": None},
            "field 'scores' must be a list of numbers, one for each of the 3 negatives; got 0. Score all",
        ),
        ({"scores": 0.5}, ".* one for each of the 3 negatives; got float"),
        ({"scores": [0.5, float("nan"), 1]}, r"field 'scores' must hold finite numbers; got nan. Score texts"),
        ({"scores": [0.5, 1e39, 1]}, r"field 'scores' must hold finite numbers; got 1e\+39"),
        ({"scores": [0.5, 1, "0.2"]}, r"field 'scores' must hold finite numbers; got '0.2'"),
        ({"positive_score": [0.5, 1]}, "field 'positive_score' must be .* for each of the 1 positives; got 2"),
        ({"positive_score": None}, "field 'positive_score' must hold finite numbers; got null"),
        ({"positive_score": True}, "field 'positive_score' must hold finite numbers; got True"),
        ({"positive_score": float("inf")}, "field 'positive_score' must hold finite numbers; got inf"),
    ],
)
def test_bad_scores(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = scored(tmp_path, SCORED, {**SCORED, **change})
    with pytest.raises(BadRow, match=f"line 2: {message}"):
        open_table(source, "pair")
    assert len(open_table(source, "pair", "skip")) == 1


@pytest.mark.parametrize("missing", ["scores", "positive_score"])
def test_scores_that_are_missing(missing: str, tmp_path: Path) -> None:
    row = {key: value for key, value in SCORED.items() if key != missing}
    with pytest.raises(BadRow, match=f"field '{missing}' is missing; .* Name the right one under fields: {missing}"):
        open_table(scored(tmp_path, row), "pair")


def test_scores_are_of_no_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scores and labels must not both be true"):
        open_table(scored(tmp_path, SCORED, labels=True), "pair")


def test_parquet_lists_of_negatives(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query": ["q"], "positive": ["p"], "negatives": [["n", "m"]]}), tmp_path / "a.parquet")
    table = open_table(Source(str(tmp_path / "a.parquet")), "pair")
    assert table.rows.to_list() == [{"query": "q", "positive": "p", "negatives": ["n", "m"]}]


def pair(**fields: Any) -> bytes:
    return json.dumps({"query": "q", "positive": "p", **fields}).encode()


GOOD = b'{"text": "fine"}'
BAD_ROWS: dict[str, tuple[str, Kind, list[bytes], list[str]]] = {
    # name: file, kind, lines of which the third is bad, what the message must say
    "missing": (
        "a.jsonl",
        "text",
        [GOOD, GOOD, b'{"txt": "a", "n": 1}'],
        ["'text' is missing", "'txt', 'n'", "fields"],
    ),
    "null": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": null}'], ["'text' must be a string", "null"]),
    "number": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": 3}'], ["'text' must be a string", "int"]),
    "list": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": ["a"]}'], ["'text' must be a string", "list"]),
    "empty": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": ""}'], ["'text'", "blank"]),
    "spaces": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": " \\n "}'], ["'text'", "blank"]),
    "blank line": ("a.txt", "text", [b"a", b"b", b"", b"c"], ["'text'", "blank"]),
    "broken": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": "a'], ["JSON object on one line", "Unterminated"]),
    "no object": ("a.jsonl", "text", [GOOD, GOOD, b'["a"]'], ["JSON object", "list"]),
    "integer": (
        "a.jsonl",
        "text",
        [GOOD, GOOD, b'{"text": "a", "n": ' + b"1" * 5000 + b"}"],
        ["not a JSON object on one line", "4300 digits"],
    ),
    "array": ("a.json", "text", [GOOD, GOOD, b"["], ["JSON object on one line", "one object per line"]),
    "encoding": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": "caf\xe9"}'], ["UTF-8", "character 4"]),
    "text encoding": ("a.txt", "text", [b"a", b"b", b"caf\xe9"], ["UTF-8"]),
    "surrogate": ("a.jsonl", "text", [GOOD, GOOD, b'{"text": "\\ud800"}'], ["UTF-8"]),
    "nul": ("a.txt", "text", [b"a", b"b", b"a\0b"], ["NUL"]),
    "columns": ("a.csv", "text", [b"text,n", b"a,1", b"a,b,1"], ["2 columns; got 3"]),
    "quotes": ("a.csv", "text", [b"text,n", b"a,1", b'"a"b,1'], ["broken CSV"]),
    "tab": ("a.tsv", "text", [b"text\tn", b"a\t1", b"a"], ["2 columns; got 1"]),
    "no positive": ("a.jsonl", "pair", [pair(), pair(), b'{"query": "q"}'], ["'positive' is missing"]),
    "no positives": ("a.jsonl", "pair", [pair(), pair(), pair(positive=[])], ["'positive'", "got an empty list"]),
    "blank positive": ("a.jsonl", "pair", [pair(), pair(), pair(positive=["p", ""])], ["'positive[1]'", "blank"]),
    "blank query": ("a.jsonl", "pair", [pair(), pair(), pair(query=" ")], ["'query'", "blank"]),
    "negatives type": ("a.jsonl", "pair", [pair(), pair(), pair(negatives={})], ["'negatives' must be a list", "dict"]),
    "negative type": ("a.jsonl", "pair", [pair(), pair(), pair(negatives=["n", 1])], ["'negatives[1]'", "int"]),
    "blank negative": ("a.jsonl", "pair", [pair(), pair(), pair(negatives=[""])], ["'negatives[0]'", "blank"]),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named(tmp_path: Path, name: str) -> None:
    file, kind, lines, said = BAD_ROWS[name]
    path = write(tmp_path / file, b"\n".join(lines))
    with pytest.raises(BadRow) as raised:
        open_table(Source(str(path)), kind)
    message = str(raised.value)
    assert f"{path}, line 3: " in message
    assert all(words in message for words in said), message
    assert "setting on_bad_row to skip" in message

    table = open_table(Source(str(path)), kind, on_bad_row="skip")
    header = path.suffix in (".csv", ".tsv")
    assert (len(table), table.skipped) == (len(lines) - 1 - header, 1)
    assert f"{path}, line 3: " in table.faults[0]


def test_bad_parquet_rows_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "b", None]}), path)
    with pytest.raises(BadRow, match=r"a\.parquet, row 3: field 'text' must be a string; got null"):
        open_table(Source(str(path)), "text")
    pq.write_table(pa.table({"txt": ["a"]}), path)
    with pytest.raises(BadRow, match=r"row 1: field 'text' is missing; the row has 'txt'"):
        open_table(Source(str(path)), "text")


def test_cells_of_parquet_that_python_cannot_hold(tmp_path: Path) -> None:
    """Spoil the rows in which they are read, and no others."""
    bytes_ = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 3, bytes_.buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), texts)
    dates = pa.array([1, 10**18, 10**18], pa.timestamp("us"))
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": texts, "query": ["q"] * 3, "negatives": lists, "hard_1": texts, "at": dates}), path
    )
    bad = r"a\.parquet, row 2: field '{}' cannot be read: 'utf-8' codec can't decode.*Write texts in UTF-8, or leave"
    with pytest.raises(BadRow, match=bad.format("text")):
        open_table(Source(str(path)), "text")
    table = open_table(Source(str(path)), "text", "skip")
    assert (texts_of(table), table.skipped) == (["a", "c"], 1)
    for negatives in ({}, {"negatives": "negatives"}, {"negatives": "hard_*"}):
        source = Source(str(path), {"positive": "query", **negatives})
        with pytest.raises(BadRow, match=bad.format("hard_1" if "hard_*" in negatives.values() else "negatives")):
            open_table(source, "pair")
        table = open_table(source, "pair", "skip")
        assert (len(table), table.skipped) == (2, 1)


def test_a_quotation_mark_of_tsv_joins_no_rows(tmp_path: Path) -> None:
    """Most TSV files quote nothing, so two such marks are two texts'."""
    path = write(tmp_path / "a.tsv", 'text\tn\na\t1\n"b\t1\nc"\t1\n')
    with pytest.raises(BadRow, match="line 3: a cell of TSV must be on one line"):
        open_table(Source(str(path)), "text")
    assert texts_of(open_table(Source(str(path)), "text", "skip")) == ["a", 'c"'], "only the row that opens the quote"


@pytest.mark.parametrize(
    ("opened", "closed"), [('q,"open quote', 'q7,5"'), ('"Who said this?,he did', '"a","b"'), ('"a,b', "")]
)
def test_a_stray_quotation_mark_costs_its_own_row_only(tmp_path: Path, opened: str, closed: str) -> None:
    """Whether the quote ends at another one, breaks there, or goes on to the end of the file."""
    lines = ["query,positive", *(f"q{i},p{i}" for i in range(1, 900))]
    lines[500], lines[700] = opened, closed or lines[700]
    path = write(tmp_path / "a.csv", "\n".join(lines) + "\n")
    with pytest.raises(BadRow, match=rf"line 501: .* line {701 if closed else 900}\b.* quotes"):
        open_table(Source(str(path)), "pair")
    table = open_table(Source(str(path)), "pair", "skip")
    assert (len(table), table.skipped) == (898, 1)
    assert max(len(text) for text in table.rows["positive"]) < 9


def test_a_record_of_csv_has_so_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or memory would hold the file, of which a quotation mark that is never closed makes one record."""
    monkeypatch.setattr("datamodules.delimited.MOST_LINES", 8)
    path = write(tmp_path / "a.csv", "text\n" + '"a\n' + "b\n" * 20)
    with pytest.raises(BadRow, match=r"line 2: broken CSV .a record of more than 8 lines, in line 9"):
        open_table(Source(str(path)), "text")
    assert texts_of(open_table(Source(str(path)), "text", "skip")) == ["b"] * 20


def test_prose_of_many_lines_is_a_cell(tmp_path: Path) -> None:
    """A comma a line does not make rows of them, nor commas without a space where other lines have none."""
    poem = "Roses are red, they say,\nviolets are blue, they say,\n" * 4 + "x"
    code = "f(a,b)\n" * 3 + "return\n"
    path = write(tmp_path / "a.csv", f'n,text\n1,"{poem}"\n2,"{code}"\n')
    assert texts_of(open_table(Source(str(path)), "text")) == [poem, code]


def test_a_header_between_rows(tmp_path: Path) -> None:
    """As `cat a.csv b.csv` leaves it."""
    path = write(tmp_path / "a.csv", "text,n\na,1\ntext,n\nb,2\n")
    with pytest.raises(BadRow, match=r"line 3: a row must not be the header once more; files were joined\. Remove"):
        open_table(Source(str(path)), "text")
    assert texts_of(open_table(Source(str(path)), "text", "skip")) == ["a", "b"]


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,n,text\na,1,b\n")
    with pytest.raises(BadRow, match=r"line 1: the header must name each column once; got 'text' twice\. Rename"):
        open_table(Source(str(path)), "text")


def test_csv_line_numbers_count_lines_inside_cells(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'text,n\n"two\nlines",1\na,b,c\n')
    with pytest.raises(BadRow, match="line 4: the header has 2 columns; got 3"):
        open_table(Source(str(path)), "text")


def test_a_mapped_field_must_be_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pair())
    with pytest.raises(BadRow, match="'hard' is missing"):
        open_table(Source(str(path), fields={"negatives": "hard"}), "pair")


def test_all_bad_is_an_error_under_skip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n{"b": 1}\n')
    with pytest.raises(BadRow, match=r"at least one row must be good; all 2 are bad.*line 1: field 'text' is missing"):
        open_table(Source(str(path)), "text", on_bad_row="skip")


def test_skipped_rows_are_counted_again_from_the_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "a\n" + "\n" * 20 + "b\n")
    first = open_table(Source(str(path)), "text", on_bad_row="skip")
    again = open_table(Source(str(path)), "text", on_bad_row="skip")
    assert first.rows.cache_files == again.rows.cache_files
    assert first.skipped == again.skipped == 20
    assert len(again.faults) == 5
    with pytest.raises(BadRow, match="line 2"):  # the cache of "skip" is not that of "raise"
        open_table(Source(str(path)), "text")


def test_blank_texts_are_no_fault_of_a_corpus(tmp_path: Path) -> None:
    table = open_table(Source(str(write(tmp_path / "a.txt", "a\n\n \nb\n"))), "blank_ok")
    assert (texts_of(table), table.skipped) == (["a", "b"], 0)


@pytest.mark.parametrize("on_bad_row", ["raise", "skip"])
@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_truncated_archives(tmp_path: Path, suffix: str, on_bad_row: str) -> None:
    lines = "".join(f'{{"text": "{i * 7919 % 10007}"}}\n' for i in range(20_000)).encode()
    data = gzip.compress(lines) if suffix == ".gz" else zstandard.ZstdCompressor().compress(lines)
    path = write(tmp_path / f"a.jsonl{suffix}", data[:-200])
    with pytest.raises(BadFile, match=r"unreadable after row \d{4,}: Truncated"):
        open_table(Source(str(path)), "text", on_bad_row)
    path = write(tmp_path / f"b.jsonl{suffix}", b"not an archive")
    with pytest.raises(BadFile, match="unreadable after row 0"):
        open_table(Source(str(path)), "text", on_bad_row)


def test_broken_parquet(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", content(".parquet")[:-20])
    with pytest.raises(BadFile, match=r"a\.parquet: unreadable after row 0"):
        open_table(Source(str(path)), "text", "skip")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt", "a.csv", "a.txt.gz"])
def test_files_without_rows(tmp_path: Path, name: str) -> None:
    rows = b"text\n" if name == "a.csv" else b""
    empty = write(tmp_path / name, gzip.compress(rows) if name.endswith(".gz") else rows)
    full = write(tmp_path / "full.txt", "a\n")
    with pytest.raises(BadFile, match=f"{name}: the file must have rows; it has none"):
        open_table(Source([str(full), str(empty)]), "text", "skip")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none*.txt", r"'.*none\*\.txt' must match a file; nothing does"),
        ("none.txt", r"none\.txt' must name a file, a glob or a hub dataset.*no such file"),
        ("", "path must name files; got the folder"),
        ("a.xyz", r"files of type \.jsonl.*; got .*a\.xyz"),
    ],
)
def test_paths_that_name_nothing(tmp_path: Path, path: str, message: str) -> None:
    write(tmp_path / "a.xyz", "a")
    with pytest.raises(ValueError, match=message):
        open_table(Source(str(tmp_path / path)), "text")


def test_empty_list_of_paths() -> None:
    with pytest.raises(ValueError, match="at least one file"):
        open_table(Source([]), "text")


def test_unknown_fields_key(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fields must map query, positive, negatives.*got \['question'\]"):
        open_table(Source(str(write(tmp_path / "a.jsonl", pair())), fields={"question": "q"}), "pair")


def test_hub_errors_are_clear_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"path 'no-one/nothing:en'.*hub.*switched off here \(HF_HUB_OFFLINE\)"):
        open_table(Source("no-one/nothing:en"), "text")


def test_whatever_is_read_from_files_is_no_data_set_of_the_hub() -> None:
    """Model cards name data sets by that."""
    assert set(READERS) == DATA


@pytest.mark.parametrize("streaming", [False, True])
def test_a_downloaded_hub_dataset_is_read_offline(
    streaming: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the layout that `hf download --repo-type dataset` leaves."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository, commit = tmp_path / "datasets--acme--words", "0123456789abcdef0123456789abcdef01234567"
    folder = repository / "snapshots" / commit / "plain"
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    write(folder / "train.jsonl", content(".jsonl"))
    card = "configs:\n- config_name: plain\n  data_files: plain/*.jsonl\n"
    (folder.parent / "README.md").write_text(f"---\n{card}---\n")
    source = Source("acme/words:plain")
    found = [row["text"] for row in load_remote(source, True)] if streaming else texts_of(open_table(source, "text"))
    assert found == TEXTS


def test_urls_are_read_through_datasets(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", content(".jsonl"))
    assert texts_of(open_table(Source(path.as_uri()), "text")) == TEXTS
    write(tmp_path / "b.jsonl", '{"txt": "a"}\n')
    with pytest.raises(BadRow, match=r"b\.jsonl, row 1: field 'text' is missing"):
        open_table(Source((tmp_path / "b.jsonl").as_uri()), "text")
    with pytest.raises(ValueError, match="URL of a file of type"):
        open_table(Source("https://example.org/a.xyz"), "text")


@pytest.mark.parametrize("setting", [{"split": "validation"}, {"revision": "main"}])
def test_files_have_no_settings_of_the_hub(tmp_path: Path, setting: dict[str, str]) -> None:
    path = write(tmp_path / "a.txt", "a\n")
    for place in (str(path), [str(path)], path.as_uri()):
        with pytest.raises(ValueError, match=rf"must be for hub datasets; got {next(iter(setting))} for .*a\.txt"):
            open_table(Source(place, **setting), "text")


@pytest.mark.parametrize(("name", "tab"), [("a.csv", ","), ("a.tsv", "\t")])
def test_texts_that_mean_a_missing_value_elsewhere(tmp_path: Path, name: str, tab: str) -> None:
    path = write(tmp_path / name, f"text{tab}n\nNA{tab}1\nnull{tab}2\nb{tab}\n")
    for place in (str(path), path.as_uri()):
        assert texts_of(open_table(Source(place), "text")) == ["NA", "null", "b"]


def test_a_column_by_url_may_have_gaps_far_behind_its_first_rows(tmp_path: Path) -> None:
    """Its type would be taken from the first 10,000, for whoever reads it."""
    rows = "".join(f"text {i},{'' if i == 10_500 else i}\n" for i in range(11_000))
    assert len(open_table(Source(write(tmp_path / "a.csv", f"text,n\n{rows}").as_uri()), "text")) == 11_000


def test_the_cache_follows_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\n")
    first = open_table(Source(str(path)), "text")
    assert open_table(Source(str(path)), "text").rows.cache_files == first.rows.cache_files
    stat = path.stat()
    write(path, "two\n")  # as long as before
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert texts_of(open_table(Source(str(path)), "text")) == ["two"]
    write(path, "three\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as old as before
    assert texts_of(open_table(Source(str(path)), "text")) == ["three"]


def test_the_cache_follows_the_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "a", "other": "b"}\n')
    assert texts_of(open_table(Source(str(path)), "text")) == ["a"]
    assert texts_of(open_table(Source(str(path), fields={"text": "other"}), "text")) == ["b"]


def test_tables_are_memory_mapped(tmp_path: Path, cache: Path) -> None:
    table = open_table(Source(str(write(tmp_path / "a.txt", "a\n" * 1000))), "text")
    files = [Path(file["filename"]) for file in table.rows.cache_files]
    assert files and all(file.is_relative_to(cache) for file in files)
    before = pa.total_allocated_bytes()
    mapped = datasets.Dataset.from_file(str(files[0]))
    assert len(mapped) == 1000
    assert pa.total_allocated_bytes() - before < files[0].stat().st_size


def test_tables_are_written_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so many rows, or so many bytes, of which Arrow takes 2^31 at once; the digest depends on neither."""
    texts = [*"abcdef", "x" * 500, "g", "y" * 500, "z" * 500, "h"]

    def built(name: str) -> Table:
        return open_table(Source(str(write(tmp_path / name, "\n".join(texts)))), "text")

    whole = built("a.txt")
    monkeypatch.setattr("datamodules.cache.BATCH_ROWS", 3)
    monkeypatch.setattr("datamodules.cache.BATCH_BYTES", 400)
    parts = built("b.txt")
    lengths = [[len(chunk) for chunk in table.rows.data.column("text").chunks] for table in (whole, parts)]
    assert lengths == [[11], [3, 3, 2, 2, 1]]
    assert texts_of(whole) == texts_of(parts) == texts and whole.content == parts.content


def test_tables_of_older_versions_are_found(tmp_path: Path) -> None:
    """They were built by `Dataset.from_generator`."""
    path = write(tmp_path / "a.txt", "a\nb\n")
    table = open_table(Source(str(path)), "text")

    def nothing() -> Iterator[dict[str, str]]:
        raise AssertionError("built again")
        yield {}

    features, fingerprint = table.rows.features, table.rows._fingerprint
    found = datasets.Dataset.from_generator(nothing, features=features, fingerprint=fingerprint)
    assert found.cache_files == table.rows.cache_files and list(found["text"]) == ["a", "b"]


def test_a_killed_build_leaves_no_table(tmp_path: Path, cache: Path) -> None:
    """The second row ends the process; the next one reads all rows."""
    path = write(tmp_path / "a.txt", "a\nb\n")
    script = f"""
import os, datasets, datamodules.rows as rows, datamodules.sources as sources
datasets.config.HF_DATASETS_CACHE = {str(cache)!r}
def die(records, *args):
    yield [{{"text": "a"}}]
    os._exit(9)
sources.checked_rows = die
sources.open_table(sources.Source({str(path)!r}), "text")
"""
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True).returncode == 9
    assert texts_of(open_table(Source(str(path)), "text")) == ["a", "b"]


def test_sizes_are_bytes_of_all_texts_of_a_row(tmp_path: Path) -> None:
    rows = [
        {"query": "äb", "positive": "c", "negatives": []},
        {"query": "a", "positive": "b", "negatives": ["c" * 50, "d"]},
        {"query": "a", "positive": "b", "negatives": ["e"]},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    table = open_table(Source(str(path)), "pair")
    assert table.sizes(10).tolist() == [3 + 1, 2 + 10 + 1, 3]
    cut = datasets.Dataset(table.rows.data.slice(1))  # its offsets begin inside
    chunks = replace(table, rows=datasets.concatenate_datasets([cut, table.rows]))
    assert chunks.sizes(10).tolist() == [13, 3, 4, 13, 3]
