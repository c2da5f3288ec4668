"""Five-word sentences, "the NOUN VERBed the NOUN", whose first and second noun are animate or not.

After the context probes of Klafka & Ettinger (2020), with word lists of our own. What a probe could cheat with is
balanced away: animate and inanimate nouns are equally frequent in both places, the two places are independent of each
other and of the verb, and no noun or verb of the test sentences occurs in the training sentences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from otherside.probing.tasks import Mention, Task, word_spans, words

TRAIN, TEST = 600, 400  # sentences; multiples of 4, the number of (subject, object) combinations
TRAIN_SHARE = 0.6  # of nouns and of verbs
SEED = 0


def _words(text: str) -> list[str]:
    return text.split()


ANIMATE = _words(
    """
    actor artist athlete aunt author baby baker banker barber bishop boy bride broker brother burglar butcher
    captain carpenter cat chef chemist child clerk clown colonel cousin cow critic dancer daughter dentist doctor
    dog dolphin donkey eagle editor elephant emperor engineer farmer father fisherman fox gardener girl goat
    grandmother guest hiker horse hunter husband journalist judge juror king knight lawyer leopard lion man mayor
    mechanic merchant miner monk monkey mother musician neighbor nephew nun nurse owl painter parrot patient penguin
    pig pirate plumber poet prince princess prisoner professor queen rabbit sailor scholar senator sheriff singer
    sister soldier son spy squirrel student surgeon teacher thief tiger tourist uncle waiter wife witch wolf woman
    writer
    """
)

INANIMATE = _words(
    """
    airport anchor apartment banner barrel basket bicycle blanket boat book bottle box brick bridge bucket budget
    button cabin cable cake camera candle carpet castle chair clock cloud coat coin computer concert cottage cup
    curtain desk door drawer engine envelope factory fence festival flag garage garden gate guitar hammer hat helmet
    highway hotel idea island jacket kettle key kitchen ladder lake lamp law letter library machine map meadow
    mirror mountain necklace needle novel oven package path pencil piano picture pillow pistol plate pocket poem
    price promise radio river road roof room rope rumor shelf shirt shovel song sound spoon stone storm story table
    tent theory ticket tower train tunnel umbrella valley village wagon wallet window
    """
)

VERBS = _words(
    """
    accepted admired affected avoided blamed blocked carried changed chased covered delayed described disturbed
    dragged dropped expected feared followed forgot found grabbed hated heard helped hid ignored imagined improved
    kicked knew lectured lifted liked lost loved measured mentioned missed moved needed noticed painted praised
    preferred protected pulled pushed reached recalled rejected remembered replaced saved scraped shook stopped
    surprised touched trusted valued wanted warned watched welcomed
    """
)


def is_animate(noun: str) -> bool:
    """Of `ANIMATE`."""
    return noun in ANIMATE


# Task -> the word that it asks about, counted from 1, and what it asks: the class of that word
TASKS: dict[str, tuple[int, Callable[[str], int]]] = {
    "subject_animacy": (2, is_animate),
    "object_animacy": (5, is_animate),
}


def template_tasks() -> list[Task]:
    """The tasks, for linear probes, on the same sentences, which are always the same."""
    rng = np.random.default_rng(SEED)
    parts = [_split(rng, words) for words in (ANIMATE, INANIMATE, VERBS)]
    first, second = zip(*parts, strict=True)
    texts = [*_fill(rng, TRAIN, *first), *_fill(rng, TEST, *second)]
    mentions = [[Mention(text, *span) for span in word_spans(text)] for text in texts]
    is_test = np.arange(TRAIN + TEST) >= TRAIN
    tasks = []
    for name, (place, label) in TASKS.items():
        asked = [text.split()[place - 1] for text in texts]
        labels = np.array([int(label(word)) for word in asked])
        tasks.append(Task(name, mentions, labels, np.array(asked), words(None), is_test))
    return tasks


def _split(rng: np.random.Generator, words: list[str]) -> tuple[list[str], list[str]]:
    shuffled, border = rng.permutation(words).tolist(), round(len(words) * TRAIN_SHARE)
    return shuffled[:border], shuffled[border:]


def _fill(rng: np.random.Generator, size: int, animate: list[str], inanimate: list[str], verbs: list[str]) -> list[str]:
    """`size` sentences: every verb meets all four combinations of animacy, every noun is used about equally often."""
    subjects = {True: _deal(rng, animate), False: _deal(rng, inanimate)}
    objects = {True: _deal(rng, animate), False: _deal(rng, inanimate)}
    texts = []
    for i in range(size):
        things = objects[i % 2 == 0]
        subject, thing = next(subjects[i % 4 < 2]), next(things)
        if thing == subject:
            thing = next(things)
        texts.append(f"the {subject} {verbs[i // 4 % len(verbs)]} the {thing}")
    return [texts[i] for i in rng.permutation(size)]


def _deal(rng: np.random.Generator, words: list[str]) -> Iterator[str]:
    """Words in random order, each once before any comes again."""
    while True:
        yield from rng.permutation(words).tolist()
