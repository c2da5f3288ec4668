from collections import Counter

import numpy as np
import pytest

from otherside.probing.templates import ANIMATE, INANIMATE, LENGTH, TASKS, VERBS, sentences, word_spans


def test_word_lists_are_large_and_do_not_overlap() -> None:
    assert min(len(set(ANIMATE)), len(set(INANIMATE))) >= 60
    assert len(set(VERBS)) >= 40
    assert not set(ANIMATE) & set(INANIMATE)
    assert all(words == sorted(set(words)) for words in (ANIMATE, INANIMATE, VERBS))


def test_same_seed_same_sentences() -> None:
    assert sentences(seed=3)[0].texts == sentences(seed=3)[0].texts
    assert sentences(seed=3)[0].texts != sentences(seed=4)[0].texts


@pytest.mark.parametrize("part", [0, 1])
def test_nothing_but_the_noun_tells_its_animacy(part: int) -> None:
    data = sentences()[part]
    subject, thing = (data.labels[task] for task in TASKS)
    verbs = np.array([text.split()[2] for text in data.texts])
    cells = Counter(zip(subject.tolist(), thing.tolist(), strict=True))
    assert set(cells.values()) == {len(data.texts) // 4}, "subject and object must be balanced and independent"
    for verb in set(verbs):
        of_verb = Counter(zip(subject[verbs == verb].tolist(), thing[verbs == verb].tolist(), strict=True))
        assert max(of_verb.values()) == min(of_verb.values()), "the verb must not tell animacy"
        assert len(of_verb) == 4
    for task in TASKS:
        used = Counter(data.nouns[task].tolist())
        assert max(used.values()) - min(used.values()) <= 4


def test_labels_belong_to_the_word_asked_about() -> None:
    for data in sentences():
        for i, text in enumerate(data.texts):
            words = text.split()
            assert len(words) == LENGTH
            assert words[1] != words[4]
            for task, word in TASKS.items():
                assert data.nouns[task][i] == words[word - 1]
                assert data.labels[task][i] == (words[word - 1] in ANIMATE)


def test_test_sentences_have_new_nouns_and_verbs() -> None:
    train, test = sentences()
    seen = {word for text in train.texts for word in text.split()}
    assert {word for text in test.texts for word in text.split()} & seen == {"the"}


@pytest.mark.parametrize("sizes", [(10, 40), (40, 0), (-4, 4)])
def test_sizes_that_cannot_be_balanced(sizes: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sentences(*sizes)


def test_word_spans() -> None:
    text = "the nun saw  the nunnery"
    assert [text[slice(*span)] for span in word_spans(text)] == ["the", "nun", "saw", "the", "nunnery"]
    assert word_spans(text)[3] == (13, 16)
