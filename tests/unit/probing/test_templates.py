from collections import Counter

import numpy as np
import pytest

from otherside.probing.tasks import word_spans
from otherside.probing.templates import ANIMATE, INANIMATE, TASKS, VERBS, template_tasks


def texts() -> list[str]:
    return [words[0].text for words in template_tasks()[0].mentions]


def test_word_lists_are_large_and_do_not_overlap() -> None:
    assert min(len(set(ANIMATE)), len(set(INANIMATE))) >= 60
    assert len(set(VERBS)) >= 40
    assert not set(ANIMATE) & set(INANIMATE)
    assert all(words == sorted(set(words)) for words in (ANIMATE, INANIMATE, VERBS))


def test_sentences_are_always_the_same() -> None:
    assert texts() == texts()


@pytest.mark.parametrize("test", [False, True])
def test_nothing_but_the_noun_tells_its_animacy(test: bool) -> None:
    tasks = template_tasks()
    part = tasks[0].test == test
    subject, thing = (task.targets[part] for task in tasks)
    verbs = np.array([text.split()[2] for text in texts()])[part]
    cells = Counter(zip(subject.tolist(), thing.tolist(), strict=True))
    assert set(cells.values()) == {part.sum() // 4}, "subject and object must be balanced and independent"
    for verb in set(verbs):
        of_verb = Counter(zip(subject[verbs == verb].tolist(), thing[verbs == verb].tolist(), strict=True))
        assert max(of_verb.values()) == min(of_verb.values()), "the verb must not tell animacy"
        assert len(of_verb) == 4
    for task in tasks:
        used = Counter(task.groups[part].tolist())
        assert max(used.values()) - min(used.values()) <= 4


def test_labels_belong_to_the_word_asked_about() -> None:
    for task, (place, _) in zip(template_tasks(), TASKS.values(), strict=True):
        for words, noun, label in zip(task.mentions, task.groups, task.targets, strict=True):
            assert len(words) == 5
            asked = words[place - 1]
            assert asked.text[asked.start : asked.end] == noun == asked.text.split()[place - 1]
            assert label == (noun in ANIMATE)


def test_an_entry_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [task.digest() for task in template_tasks()]
    monkeypatch.setitem(TASKS, "verb_length", (3, len))
    *others, task = template_tasks()
    assert [other.digest() for other in others] == before
    assert task.name == "verb_length" and set(task.groups) == set(VERBS)
    assert task.targets.tolist() == [len(verb) for verb in task.groups]


def test_test_sentences_have_new_nouns_and_verbs() -> None:
    [task, _] = template_tasks()
    assert task.test is not None
    found = np.array(texts())
    seen, new = ({word for text in found[part] for word in text.split()} for part in (~task.test, task.test))
    assert seen & new == {"the"}


def test_word_spans() -> None:
    text = "the nun saw  the nunnery"
    assert [text[slice(*span)] for span in word_spans(text)] == ["the", "nun", "saw", "the", "nunnery"]
    assert word_spans(text)[3] == (13, 16)
