"""Rows are copied once, and nothing of what is held out is trained on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from datamodules.heldout import HELD_OUT, LABELLED, PAIRS, SAMPLE, TEXTS, Sample, Written, write
from datamodules.labels import LabelledTable
from datamodules.recognise import recognise
from datamodules.rows import BadRow
from datamodules.sources import Source, open_table


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def written(
    folder: Path, name: str, lines: list[dict[str, Any]], fields: dict[str, str] | None = None, **options: str
) -> Written:
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "out").mkdir(exist_ok=True)
    return write(recognise(str(folder / name), fields), folder / "out", **options)


def pairs(count: int) -> list[dict[str, Any]]:
    """Of which one in three has an answer that others have too."""
    return [
        {"question": f"question {i}", "answer": f"answer {i if i % 3 else 0}", "negative": f"other {i % 9}"}
        for i in range(count)
    ]


def test_pairs_are_split_and_their_texts_listed(tmp_path: Path) -> None:
    made = written(tmp_path, "a.jsonl", pairs(300))
    trained, held, texts = (rows(tmp_path / "out" / name) for name in (PAIRS, HELD_OUT, TEXTS))
    assert (made.pairs, made.held_out, made.repeated, made.negatives) == (285, 15, 0, 1)
    assert len(trained) == 285 and len(held) == 15 and made.texts == len(texts)
    assert set(trained[0]) == {"query", "positive", "negatives"}
    asked = {text for row in held for text in (row["query"], row["positive"])}
    seen = {text for row in trained for text in (row["query"], row["positive"])}
    assert not asked & (seen | {row["text"] for row in texts})
    assert {row["text"] for row in texts} == seen | {f"other {i}" for i in range(9)}
    assert len(texts) == len({row["text"] for row in texts})
    samples = {role: sorted(set(sample.texts)) for role, sample in made.sample.items()}
    assert samples["query"] == sorted(row["query"] for row in trained)
    assert len(made.sample["positive"].texts) == 285 and samples["negatives"] == [f"other {i}" for i in range(9)]


def test_held_out_texts_are_no_negatives_either(tmp_path: Path) -> None:
    lines = [{"query": f"q {i}", "positive": f"p {i}", "negatives": [f"p {i - 1}", "n"]} for i in range(400)]
    written(tmp_path, "a.jsonl", lines)
    trained, held = (rows(tmp_path / "out" / name) for name in (PAIRS, HELD_OUT))
    assert len(held) == 20 and not {row["positive"] for row in held} & {n for row in trained for n in row["negatives"]}
    assert all("n" in row["negatives"] for row in trained)


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path, "a.jsonl", pairs(300))
    once = rows(tmp_path / "out" / HELD_OUT)
    written(tmp_path, "a.jsonl", pairs(300)[::-1])
    assert sorted(map(str, once)) == sorted(map(str, rows(tmp_path / "out" / HELD_OUT)))


def test_repeated_rows_are_left_out(tmp_path: Path) -> None:
    made = written(tmp_path, "a.jsonl", pairs(60) + pairs(5))
    assert (made.pairs, made.repeated, made.held_out) == (60, 5, 0)


def test_rows_of_a_pair_become_one_with_the_negatives_of_all(tmp_path: Path) -> None:
    """In files of triplets each negative has a row."""
    lines = [
        {"query": f"q {i % 300}", "positive": f"p {i % 300}", "negative": f"n {i % 900}"} for i in range(1000)
    ]  # 300 pairs with 3 negatives each, of which 100 stand there twice
    made = written(tmp_path, "a.jsonl", lines)
    trained, held = (rows(tmp_path / "out" / name) for name in (PAIRS, HELD_OUT))
    assert (made.pairs, made.held_out, made.negatives) == (285, 15, 3)
    assert made.merged == 2 * 285 and 85 <= made.repeated <= 100
    asked = [row["query"] for row in trained]
    assert len(set(asked)) == 285 and asked == sorted(asked, key=lambda query: int(query[2:])), "in order"
    for row in trained + held:
        number = int(row["query"][2:])
        assert row["negatives"] == [f"n {number + 300 * i}" for i in range(3)]


def test_a_sample_of_many_texts_is_of_all_of_them() -> None:
    sample = Sample()
    for i in range(10 * SAMPLE):
        sample.add(str(i))
    drawn = [int(text) for text in sample.texts]
    assert len(set(drawn)) == SAMPLE
    tenths = [sum(i // SAMPLE == tenth for i in drawn) for tenth in range(10)]
    assert all(0.8 * SAMPLE / 10 < count < 1.2 * SAMPLE / 10 for count in tenths)


def test_few_rows_are_all_trained_on(tmp_path: Path) -> None:
    assert written(tmp_path, "a.jsonl", pairs(199)).held_out == 0
    assert not (tmp_path / "out" / HELD_OUT).exists()


def test_rows_that_share_their_texts_are_not_held_out(tmp_path: Path) -> None:
    for rows_of_one in (400, 2):
        lines = [{"question": f"question {i}", "answer": f"See page {i // rows_of_one}."} for i in range(400)]
        assert written(tmp_path, "a.jsonl", lines).held_out == 0


def test_texts_alone(tmp_path: Path) -> None:
    made = written(tmp_path, "a.jsonl", [{"text": f"text {i}"} for i in range(400)] + [{"text": " "}])
    assert (made.texts, made.pairs, made.held_out) == (380, 0, 20)
    assert not (tmp_path / "out" / PAIRS).exists()
    assert not {row["text"] for row in rows(tmp_path / "out" / HELD_OUT)} & {
        row["text"] for row in rows(tmp_path / "out" / TEXTS)
    }


LABELS = {"text": "text", "label": "topic"}


def labelled(folder: Path, lines: list[dict[str, Any]]) -> Written:
    return written(folder, "a.jsonl", lines, LABELS)


def test_texts_with_labels(tmp_path: Path) -> None:
    """All are texts; where no other has its label a text is no labelled row, neither to train on nor to validate on."""
    lines = [{"text": f"text {i}", "topic": f"topic {i % 30}" if i % 8 else f"own {i}"} for i in range(800)]
    made = labelled(tmp_path, [*lines, lines[1]])
    trained, held, texts = (rows(tmp_path / "out" / name) for name in (LABELLED, HELD_OUT, TEXTS))
    assert 10 <= made.held_out == len(held) < 40, "of 40, those whose label another has, too"
    assert (made.repeated, made.alone, made.pairs) == (1, 100, 0)
    assert len(trained) == made.labelled == 700 - len(held) and len(texts) == made.texts == 800 - len(held)
    for file, each in ((LABELLED, trained), (HELD_OUT, held)):
        assert min(Counter(row["label"] for row in each).values()) > 1
        table = open_table(Source(str(tmp_path / "out" / file), labels=True), "pair")
        assert len(LabelledTable.of(table, 0, 1)) == len(each), "as training reads them"
    assert not {row["text"] for row in held} & {row["text"] for row in texts}
    assert set(made.sample) == {"text"}


def test_a_text_may_have_two_labels(tmp_path: Path) -> None:
    made = labelled(tmp_path, [{"text": f"text {i}", "topic": topic} for i in range(5) for topic in "ab"])
    assert (made.texts, made.labelled, made.repeated) == (5, 10, 0)


@pytest.mark.parametrize("topics", [["a"] * 9, list("abcdefghi"), list("aabcdefgh")])
def test_labels_must_tell_texts_apart(tmp_path: Path, topics: list[str]) -> None:
    got = f"got {len(set(topics))} labels, {int(topics[0] == topics[1])} of which have"
    with pytest.raises(BadRow, match=f"--fields must map label to a column in which at least two labels .* {got}"):
        labelled(tmp_path, [{"text": f"text {i}", "topic": topic} for i, topic in enumerate(topics)])


def test_malformed_rows(tmp_path: Path) -> None:
    bad = [*pairs(10), {"question": "a", "answer": ""}]
    with pytest.raises(BadRow, match=r"a\.jsonl, line 11: field 'answer' must hold a text"):
        written(tmp_path, "a.jsonl", bad)
    made = written(tmp_path, "a.jsonl", bad, on_bad_row="skip")
    assert (made.pairs, made.skipped.count) == (10, 1)
