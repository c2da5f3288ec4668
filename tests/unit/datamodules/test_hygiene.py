"""What is planted in data is found, and nothing in clean data."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from datamodules import Source
from datamodules.hygiene.known import Known, number
from datamodules.hygiene.near import alike
from datamodules.hygiene.page import page
from datamodules.hygiene.run import check, failures

RANDOM = random.Random(0)
WORDS = ["".join(RANDOM.choices("abcdefghijklmnop", k=6)) for _ in range(2000)]


def text(words: int = 20) -> str:
    return " ".join(RANDOM.choices(WORDS, k=words))


def write(file: Path, rows: list[Any]) -> Source:
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    file.write_text("".join(line + "\n" for line in lines))
    return Source(str(file))


def pairs(count: int = 60) -> list[dict[str, Any]]:
    return [{"query": text(6), "positive": text(30), "negatives": [text(30)]} for _ in range(count)]


def test_clean_data_pass(tmp_path: Path) -> None:
    sources = [(write(tmp_path / f"{i}.jsonl", pairs()), "pair") for i in range(2)]
    tests = {"Task": [(False, text()), (True, text())]}
    report = check(sources, [(write(tmp_path / "val.jsonl", pairs()), "pair")], None, None, tests)
    assert report["near"]["rows"] == 0 and not report["across"] and not report["leaks"]
    assert not any(source[what] for source in report["sources"] for what in ("malformed", "repeated"))
    assert failures(report, may_skip=False) == []
    assert report["looked_for"] == {"Task": 2, f"validation {tmp_path}/val.jsonl": 120}
    assert "fine: nothing forbids training" in page(report, [])


def test_scores_are_no_texts(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{**row, "scores": [0.5], "positive_score": 1} for row in pairs()])
    source.scores = True
    report = check([(source, "pair")], [], None, None, {})
    assert set(report["sources"][0]["lengths"]) == {"query", "positive", "negatives"}


def test_what_is_planted_is_found(tmp_path: Path) -> None:
    tested, document, held = text(), text(), text()
    one, other = pairs(), pairs()
    one[7] = dict(one[3])
    one[8]["negatives"] = [one[8]["positive"].upper() + "!"]
    one[9]["positive"] = one[9]["query"]
    one[10]["query"] = tested.title() + "?"
    one[11]["positive"], one[12]["negatives"] = document, [document]
    other[5] = dict(one[4])
    other[6] = {**one[5], "positive": one[5]["positive"] + " indeed"}  # one run of words more
    other[7]["query"] = held
    bad = [*other, {"query": "no positive"}]
    sources = [(write(tmp_path / "one.jsonl", one), "pair"), (write(tmp_path / "other.jsonl", bad), "pair")]
    validation = [(write(tmp_path / "val.jsonl", [{"query": held, "positive": text()}]), "pair")]
    report = check(sources, validation, None, None, {"Task": [(False, tested), (True, document), (True, tested)]})

    first, second = report["sources"]
    assert (first["rows"], first["repeated"], second["repeated"]) == (60, 1, 0)
    assert (first["negative_is_positive_or_query"], first["positive_is_query"]) == (1, 1)
    assert second["malformed"] == 1 and "other.jsonl, line 61" in second["faults"][0]
    assert report["across"] == [{"sources": [f"{tmp_path}/one.jsonl", f"{tmp_path}/other.jsonl"], "rows": 1}]
    assert report["near"]["rows"] == 1 and report["near"]["examples"][0][3].endswith("indeed")
    leaks = {(leak["source"][-10:], leak["of"][:10], leak["documents"], leak["rows"]) for leak in report["leaks"]}
    assert leaks == {
        ("/one.jsonl", "Task", False, 1),
        ("/one.jsonl", "Task", True, 2),
        ("ther.jsonl", "validation", False, 1),
    }
    assert [re.sub(r"/\S+/", "", reason) for reason in failures(report, may_skip=False)] == [
        "1 rows are malformed",
        "texts of Task, validation val.jsonl are among those of training",
    ]
    assert len(failures(report, may_skip=True)) == 1
    told = page(report, failures(report, False))
    assert "LEAK: 1 rows of" in told and "have documents of Task" in told and told.splitlines()[-1].startswith("do not")


def test_rows_with_other_negatives_are_not_repeated(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "negatives": [f"c {i % 3}"]} for i in range(4)]
    report = check([(write(tmp_path / "a.jsonl", rows), "pair")], [], None, None, {})
    [source] = report["sources"]
    assert (source["repeated"], source["repeated_with_other_negatives"], report["near"]["rows"]) == (1, 2, 0)
    assert "2 of the query and positive of one before them, with other negatives" in page(report, [])


def test_a_text_with_another_label_is_not_repeated_but_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", [{"text": "a", "label": label} for label in ("x", "x", "y")])
    source.labels = True
    report = check([(source, "pair")], [], None, None, {})
    [found] = report["sources"]
    assert [found[f"repeated{which}"] for which in ("", "_with_another_label", "_with_other_negatives")] == [1, 1, 0]
    assert "1 of the text of one before them, with another label" in page(report, [])


def test_negatives_that_are_positives_of_the_query_elsewhere(tmp_path: Path) -> None:
    rows = [{"query": "a", "positive": "b", "negatives": ["c", "d", "e"]}, {"query": "f", "positive": "c"}]
    sources = [
        (write(tmp_path / "one.jsonl", [*rows, {"query": "a", "positive": "d", "negatives": ["e"]}]), "pair"),
        (write(tmp_path / "other.jsonl", [{"query": "a", "positive": "e"}]), "pair"),
        (write(tmp_path / "texts.txt", ["a", "b"]), "text"),
    ]
    report = check(sources, [], None, None, {})
    assert [source["negative_is_positive_of_another_row"] for source in report["sources"]] == [2, 0, 0]
    assert "2 with a negative that is a positive of the query in another row" in page(report, [])


def test_documents_alone_are_no_reason_to_stop(tmp_path: Path) -> None:
    document = text()
    report = check([(write(tmp_path / "a.txt", [document, text()]), "text")], [], None, None, {"T": [(True, document)]})
    assert [leak["rows"] for leak in report["leaks"]] == [1] and not failures(report, False)


def test_lengths(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [text(count) for count in range(10, 31)])
    found = check([(source, "text")], [], None, 20, {})["sources"][0]["lengths"]["text"]
    assert found == {"texts": 21, "median": 20, "95%": 29, "most": 30}  # words cannot be told from max_length's tokens


def test_lengths_in_tokens_have_instructions(tmp_path: Path, tokenizer: Any) -> None:
    source = write(tmp_path / "a.txt", ["one two three", "four five six seven"])
    plain = check([(source, "text")], [], tokenizer, 4, {})["sources"][0]["lengths"]["text"]
    source.instruction = "Find what is alike: "
    longer = check([(source, "text")], [], tokenizer, 4, {})["sources"][0]["lengths"]["text"]
    assert longer["most"] > plain["most"] > 4 and plain["cut"] > 0


def test_near_rows_across_many(tmp_path: Path) -> None:
    """Of 300 rows each with a near one, all but a few are found."""
    rows = [text(40) for _ in range(300)]
    changed = [" ".join([*row.split()[:-1], "other"]) for row in rows]
    report = check([(write(tmp_path / "a.txt", rows + changed), "text")], [], None, None, {})
    assert report["near"]["rows"] >= 298


@pytest.mark.parametrize("letters", [range(0x4E00, 0x5E00), range(0x3041, 0x3097), range(0x0E01, 0x0E2F)])
def test_near_rows_without_spaces(tmp_path: Path, letters: range) -> None:
    """Chinese, Japanese, Thai."""
    rows = ["".join(map(chr, RANDOM.choices(letters, k=60))) for _ in range(50)]
    near = [f"{row[:-1]}{chr(letters[row[-1] == chr(letters[0])])}" for row in rows]  # another letter in each
    report = check([(write(tmp_path / "a.txt", [*rows, *near]), "text")], [], None, None, {})
    assert report["near"]["rows"] >= 48 and report["near"]["too_short"] == 0


def test_rows_that_are_not_compared_are_told(tmp_path: Path) -> None:
    source = write(tmp_path / "a.txt", [*(text(5) for _ in range(7)), text(9)])
    report = check([(source, "text")], [], None, None, {})
    assert report["near"]["too_short"] == 7
    told = page(report, [])
    assert "7 rows were too short" in told and "no other row is nearly another one" in told


def test_pairs_are_as_alike_as_what_is_less_alike() -> None:
    long = text(100)
    assert alike(["who was it", long], ["where was it", long]) == 0  # of one passage many things are asked
    assert alike(["who was it", long], ["Who was it?", long]) == 1
    assert alike([text(), long], [long]) == 0


def test_marks_are_part_of_words() -> None:
    assert number("वह लड़का घर जाता है") != number("वह लड़की घर जाती है")


def test_short_texts_are_anywhere() -> None:
    known = Known()
    known.add("a", [(False, "Thank you."), (True, "A man is playing the guitar."), (False, "a cat sits on a mat")])
    known.add("b", [(False, "A man is playing the guitar.")])
    known.close()
    found = ["thank you", "a man is  PLAYING the guitar", "A cat sits on a mat!", "a man is playing"]
    assert known.places([number(text) for text in found]).tolist() == [-1, 2, 0, -1]


def test_languages(tmp_path: Path) -> None:
    pytest.importorskip("py3langid")
    lines = ["The weather in the north of the country was cold and wet."] * 30
    lines += ["Das Wetter im Norden des Landes war kalt und nass."] * 10
    [source] = check([(write(tmp_path / "a.txt", lines), "text")], [], None, None, {})["sources"]
    assert source["languages"] == {"en": 0.75, "de": 0.25}


def test_without_the_library_the_page_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "py3langid", None)
    report = check([(write(tmp_path / "a.txt", [text()]), "text")], [], None, None, {})
    assert "languages were not looked at: pip install py3langid" in page(report, [])
