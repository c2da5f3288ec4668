"""The published data sets as tasks: where words are, what is wrong with the files, what a malformed one is told."""

from pathlib import Path

import numpy as np
import pytest
from conftest import shared
from probing_data import put, write_published

from otherside.probing.published import NORMS, READERS, inflected, read_tasks
from otherside.probing.tasks import Mention, Task


def word(mention: Mention) -> str:
    return mention.text[mention.start : mention.end]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {task.name: task for task in read_tasks(shared("data/probing"))}


def test_sizes(tasks: dict[str, Task]) -> None:
    """Table 1 of the paper, less what is left out here."""
    sizes = {name: tuple(map(len, task.split(42))) for name, task in tasks.items()}
    assert sizes == {
        "subject_animacy": (4000, 988),
        "verb_causative": (4000, 1000),
        "verb_dynamic": (3999, 1000),
        "object_animacy": (4000, 984),
        "telicity": (3946, 987),
        "duration": (2596, 650),
        "concreteness": (346, 87),
        "sensorimotor": (358, 90),
        "wic": (1120, 280),
    }
    assert tasks["sensorimotor"].targets.shape == (448, 11)


def test_what_is_wrong_is_noted(tasks: dict[str, Task]) -> None:
    assert tasks["subject_animacy"].notes == ("12 repeated items left out",)
    assert tasks["concreteness"].notes == ("1 repeated items left out",)
    repeated, moved, verbless = tasks["telicity"].notes
    assert (repeated, moved[:17]) == ("2 repeated items left out", "17 verbs stand el")
    assert verbless.endswith("line 240, 1856, 2812, 2997, 3691")
    assert tasks["wic"].notes == tasks["sensorimotor"].notes == ()


def test_every_word_is_found(tasks: dict[str, Task]) -> None:
    for name in ("telicity", "duration"):
        verbs = [word(item[0]) for item in tasks[name].mentions]
        assert all(any(map(str.isalpha, verb)) for verb in verbs)
    forms = {(noun, word(item[0]).lower()) for noun, item in zip(*groups(tasks["sensorimotor"]), strict=True)}
    other = {form for noun, form in forms if not form.startswith(noun)}
    assert other == {"broke", "drew", "ran", "sang"}
    for task in ("concreteness", "wic"):
        alike = [
            word(m)[0].lower() == noun[0].lower() for noun, item in zip(*groups(tasks[task]), strict=True) for m in item
        ]
        assert np.mean(alike) > 0.999  # 've of have


def groups(task: Task) -> tuple[list[str], list[list[Mention]]]:
    return task.groups.tolist(), list(map(list, task.mentions))


def test_training_and_test_share_no_sentence(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        for seed in (42, 43):
            train, test = task.split(seed)
            assert not {tuple(task.mentions[i]) for i in train} & {tuple(task.mentions[i]) for i in test}
    dynamic = tasks["verb_dynamic"]
    assert dynamic.test is not None
    assert len(set(dynamic.groups[dynamic.test]) & set(dynamic.groups[~dynamic.test])) == 1, "a leak of the authors'"


def test_splits_are_random_unless_published(tasks: dict[str, Task]) -> None:
    for task in tasks.values():
        one, same, other = (set(task.split(seed)[1].tolist()) for seed in (42, 42, 43))
        assert one == same
        assert (one == other) == (task.test is not None)


def test_digest_tells_data_apart(tmp_path: Path) -> None:
    folder = write_published(tmp_path)
    [one] = read_tasks(folder, ["telicity"])
    path = folder / "Task2_Lexical aspect binary classification/telicity_train.txt"
    path.write_text(path.read_text().replace("\t1\t0\n", "\t1\t1\n", 1))
    [other] = read_tasks(folder, ["telicity"])
    assert one.digest() == one.digest() != other.digest()
    assert {task.name for task in read_tasks(folder)} == set(READERS)


def test_verbs_that_stand_elsewhere(tmp_path: Path) -> None:
    write_published(tmp_path)
    path = tmp_path / "Task2_Lexical aspect binary classification/telicity_train.txt"
    rows = [
        "0\tgo and  go and go .\tgo\t4\t1",
        "1\tstop ,\t,\t1\t0",
        "2\tgo and  go and go .\tgo\t4\t1",
        "3\tgo\tgo\t90\t0",
    ]
    put(path, *rows)
    [task] = read_tasks(tmp_path, ["telicity"])
    assert [item[0].start for item in task.mentions] == [8, 0], "words are counted between single spaces"
    assert task.targets.tolist() == [1, 0]
    assert task.notes[0].startswith("1 repeated") and task.notes[1].startswith("3 verbs") and "line 2" in task.notes[2]


def test_inflected_forms() -> None:
    assert word(inflected("run", "She ran the race.")) == "ran"
    assert word(inflected("pen", "He opened the pen.")) == "pen"
    with pytest.raises(ValueError, match="'sing' is not in"):
        inflected("sing", "The bird was there.")


BAD = {
    "Task1_Context-probes/verb_dynamic/test.txt": [
        ("the cat sat,1", "five words and a label after a comma; it has 3"),
        ("the cat saw the dog,2", "the label 0 or 1; it has '2'"),
    ],
    "Task2_Lexical aspect binary classification/duration_train.txt": [
        ("0\tWe go .\tgo\t1", "5 values separated by tabs; it has 4"),
        ("0\tWe go .\trun\t1\t0", "'run' is no word of it"),
        ("0\tWe go .\tgo\tone\t0", "a word's number, from 0; it has 'one'"),
    ],
    "Task3_CONcreTEXT/CONcreTEXT_test_EN.txt": [
        ("1\tcook\tV\t9\ta ham is cooked\t5.8", "the number of a word of its sentence; it has 9"),
        ("1\tcook\tV\t3\ta ham is cooked\t58", "a rating from 1 to 7; it has '58'"),
        ("1\tcook\tV\t3\ta ham is cooked\tnan", "a rating from 1 to 7; it has 'nan'"),
    ],
    "Task4_Sensorimotor norms/contextualized_sensorimotor_norms_with_ls.txt": [
        ("1,act,It was an act.,3", "14 values, as many as the header; it has 4"),
        (f"1,act,It was a lot.{',1' * len(NORMS)}", "'act' is not in"),
        (f"1,act,It was an act.{',6' * len(NORMS)}", "a rating from 0 to 5; it has '6'"),
    ],
    "Task5_Word-in-context/test.data.txt": [
        ("hit\tV\t1\tWe hit it .\tIt hit us .", "the words' numbers as i-j; it has '1'"),
        ("hit\tV\t1-7\tWe hit it .\tIt hit us .", "the number of a word of its sentence; it has 7"),
    ],
    "Task5_Word-in-context/test.gold.txt": [("yes", "T or F; it has 'yes'")],
}


@pytest.mark.parametrize(("file", "line", "says"), [(f, *bad) for f, cases in BAD.items() for bad in cases])
def test_a_malformed_line_is_named(tmp_path: Path, file: str, line: str, says: str) -> None:
    path = write_published(tmp_path) / file
    lines = path.read_text().splitlines()
    put(path, *lines[:2], line, *lines[3:])
    with pytest.raises(ValueError) as caught:
        read_tasks(tmp_path)
    assert f"{path}, line 3, must have" in str(caught.value) and says in str(caught.value)


def test_malformed_files(tmp_path: Path) -> None:
    folder = write_published(tmp_path)
    gold = folder / "Task5_Word-in-context/test.gold.txt"
    gold.write_text(gold.read_text() + "T\n")
    with pytest.raises(ValueError, match=r"a line per line of test\.data\.txt: 40; it has 41"):
        read_tasks(folder, ["wic"])
    norms = folder / "Task4_Sensorimotor norms/contextualized_sensorimotor_norms_with_ls.txt"
    norms.write_text(norms.read_text().replace("Taste.M", "Taste"))
    with pytest.raises(ValueError, match=r"line 1, must have a header .* lacks Taste\.M"):
        read_tasks(folder, ["sensorimotor"])
    concrete = folder / "Task3_CONcreTEXT/CONcreTEXT_test_EN.txt"
    concrete.write_text(concrete.read_text().split("\n", 1)[1])
    with pytest.raises(ValueError, match="line 1, must be the header"):
        read_tasks(folder, ["concreteness"])
    context = folder / "Task1_Context-probes/verb_dynamic/train.txt"
    context.write_text("")
    with pytest.raises(ValueError, match="must have rows"):
        read_tasks(folder, ["verb_dynamic"])
    context.write_bytes(b"the na\xefve one,1\n")
    with pytest.raises(ValueError, match="must be UTF-8"):
        read_tasks(folder, ["verb_dynamic"])
    context.unlink()
    with pytest.raises(FileNotFoundError, match="layout of the published data; it has no"):
        read_tasks(folder, ["verb_dynamic"])
    with pytest.raises(ValueError, match=r"--tasks must be among .*; got animacy"):
        read_tasks(folder, ["animacy"])
