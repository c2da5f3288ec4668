"""A probing task of one's own, from a table."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otherside.probing.measure import Protocol
from otherside.probing.own import read_own
from otherside.probing.run import run_probe

RAIN = [{"sentence": f"The {word} fell on day {i}.", "word": word} for i in range(12) for word in ("rain", "book")]
LABELLED = [{**row, "label": {"rain": "weather", "book": "thing"}[row["word"]]} for row in RAIN]
RATED = [{**row, "rating": len(row["word"]) + 0.1 * (row["word"] == "rain")} for row in RAIN]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)))
        return path
    mark = {".tsv": "\t", ".csv": ","}[path.suffix]
    lines = [list(rows[0]), *([str(row.get(name, "")) for name in rows[0]] for row in rows)]
    path.write_text("\n".join(mark.join(line) for line in lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["weather.tsv", "weather.csv", "weather.jsonl"])
def test_classes(name: str, tmp_path: Path) -> None:
    task = read_own(write(tmp_path / name, LABELLED))
    assert task.name == "own: weather" and not task.regression and task.notes == ("labels thing, weather",)
    assert task.targets.tolist() == [1, 0] * 12 and task.groups.tolist() == ["rain", "book"] * 12
    [mention] = task.mentions[0]
    assert mention.text[mention.start : mention.end] == "rain"
    assert task.test is None


def test_ratings_spans_and_a_split(tmp_path: Path) -> None:
    rows = [{**row, "start": 4, "end": 8, "split": "test" if i < 6 else "train"} for i, row in enumerate(RATED)]
    task = read_own(write(tmp_path / "long.tsv", rows))
    assert task.regression and task.targets.shape == (24, 1) and task.aspects == ("rating",)
    assert task.test is not None and task.test.sum() == 6
    assert {m.text[m.start : m.end] for [m] in task.mentions} == {"rain", "book"}


@pytest.mark.parametrize(("rows", "metric"), [(LABELLED, "accuracy"), (RATED, "pearson")])
def test_probed_like_the_others(rows: list[dict[str, Any]], metric: str, tiny_llama: Path, tmp_path: Path) -> None:
    table = str(write(tmp_path / "mine.tsv", rows))
    options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "protocol": Protocol(2)}
    results = run_probe([str(tiny_llama)], tmp_path / "out", data=table, **options)
    [row] = results[0].find(task="own: mine", probe="linear", condition="context", metric=metric)
    assert row.score.value > 0.9, "a word is told from another"
    assert np.isfinite(row.score.low)
    assert (tmp_path / "out" / "probing.png").is_file() and "Own: mine, a linear probe" in (
        tmp_path / "out/table.md"
    ).read_text()


MORE: list[dict[str, Any]] = [
    *({"sentence": "Rain", "word": "snow", "label": "a"}, {"word": "snow", "label": "a"}),
]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (LABELLED[:5], "at least 20 rows; it has 5"),
        ([{**row, "label": "a"} for row in RAIN], "at least two labels; it has a"),
        ([*LABELLED, MORE[0]], r"line 26, must have .*'snow' stands in .* 0 times"),
        ([*LABELLED, MORE[1]], "line 26, must have .*it has no 'sentence'"),
        ([{**row, "rating": 1} for row in LABELLED], "line 2, .*both or neither of label and rating"),
        (
            [{**row, "split": "dev" if i else ""} for i, row in enumerate(LABELLED)],
            "must have a split of train or test",
        ),
        ([{**row, "start": 4, "end": 400} for row in RATED], "line 2, .*characters 4 to 400 are not inside"),
        ([{**row, "start": -1, "end": 4} for row in RATED], "line 2, .*characters -1 to 4 are not inside"),
        ([{**row, "rating": "nan"} for row in RATED], "its rating is nan"),
        ([{**row, "rating": 3} for row in RAIN], "must have ratings that differ; all are 3.0"),
        ([{**row, "label": i / 10} for i, row in enumerate(RAIN)], "24 stand in one, such as 0.0. .*named rating"),
        ([*LABELLED, LABELLED[0]], "1 stand there more often, such as 'rain' in 'The rain fell on day 0.'"),
        (
            [{**row, "split": "test" if row["label"] == "thing" else "train"} for row in LABELLED],
            "two labels in the rows of split train",
        ),
        (
            [{**row, "split": "train"} for row in LABELLED]
            + [{**row, "sentence": f"Now {row['sentence']}", "label": "new", "split": "test"} for row in LABELLED[:2]],
            "every label in rows of split train; of new all are test",
        ),
    ],
)
def test_what_it_refuses(rows: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_own(write(tmp_path / "t.tsv", rows))


def test_bare_words_and_a_rare_class(tiny_llama: Path, tmp_path: Path) -> None:
    """No text has two words; and wherever a split falls, what is tested was trained on."""
    words = [f"{first}{second}" for first in "bdklmr" for second in ("at", "in", "op", "ug")]
    rows = [{"sentence": word, "word": word, "label": "ab"[i % 2]} for i, word in enumerate(words)]
    rows[3]["label"] = rows[8]["label"] = "rare"
    task = read_own(write(tmp_path / "bare.jsonl", rows))
    for seed in range(200):
        train, test = task.split(seed)
        assert set(task.targets[test]) <= set(task.targets[train]) and len(train) + len(test) == 24
    data = str(tmp_path / "bare.jsonl")
    found, _ = run_probe(
        [str(tiny_llama)], tmp_path / "out", data=data, dtype="float32", device="cpu", protocol=Protocol(1)
    )
    assert {row.input for row in found.find(task="anisotropy")} == {"random words"}


def test_a_papers_name_is_no_paper_task(tmp_path: Path) -> None:
    """`telicity.tsv` would be judged as the paper's telicity; the mark is what Excel begins a CSV with."""
    file = write(tmp_path / "telicity.csv", LABELLED)
    file.write_text("\ufeff" + file.read_text())
    assert read_own(file).name == "own: telicity"


def test_quotes_and_capitals(tmp_path: Path) -> None:
    rows = [{name: value.replace("rain", "Rain") for name, value in row.items()} for row in LABELLED]
    rows = [{**row, "sentence": f'"{row["sentence"]}'} for row in rows]
    task = read_own(write(tmp_path / "t.tsv", rows))
    assert task.mentions[0][0].text == '"The Rain fell on day 0.' and task.groups[0] == "rain"


def test_what_else_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a label in every row, or a rating in every row"):
        read_own(write(tmp_path / "t.jsonl", [*LABELLED, *RATED]))
    for nothing in (None, math.nan):
        with pytest.raises(ValueError, match=r"line 49, must have .*both or neither of label and rating"):
            read_own(write(tmp_path / "t.jsonl", [*LABELLED, {**LABELLED[0], "label": nothing}]))
    (tmp_path / "t.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match="line 1, must have"):
        read_own(tmp_path / "t.jsonl")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.csv"):
        read_own(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            b"sentence;word;label\nIt rains.;rains;x\n",
            "must name columns: sentence; .*got 'sentence;word;label'",
        ),
        ("t.tsv", b"", "the first line of .* must name columns"),
        ("t.tsv", b"sentence\tword\tlabel\nIt rains.\trains\tx\ty\n", "line 2, .*more cells than there are columns: y"),
        ("t.tsv", "sentence\tword\tlabel\n".encode("utf-16"), "must be text in UTF-8; .*Save it as UTF-8"),
    ],
)
def test_what_is_no_such_table(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_own(tmp_path / name)
