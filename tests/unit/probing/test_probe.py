"""`lightning probe` from encoder folders to figures."""

import csv
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from probing_data import write_published

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder
from otherside.probing import probe, probes
from otherside.probing.measure import Protocol
from otherside.probing.results import Result
from otherside.probing.run import run_probe
from otherside.probing.session import VARIANTS, Session
from otherside.probing.variants import find_variants
from otherside.tokenizer import load_tokenizer, start_name


def trained(base: Path, folder: Path, stage: str, seed: int = 0) -> str:
    """An encoder folder whose adapter is random."""
    backbone = Backbone.load(BackboneConfig(str(base), dtype="float32"), Lora(r=4))
    torch.manual_seed(seed)
    for name, parameter in backbone.lm.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return str(Encoder(backbone, load_tokenizer(str(base))).save(folder, stage))


@pytest.fixture(scope="module")
def encoders(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("encoders")
    return [trained(tiny_llama, root / stage, stage, seed) for seed, stage in enumerate(["mntp", "simcse"])]


@pytest.fixture
def pairs(tmp_path: Path, sentences: list[str]) -> Path:
    path = tmp_path / "heldout.jsonl"
    path.write_text("".join(json.dumps({"query": text, "positive": text}) + "\n" for text in sentences))
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_published(tmp_path_factory.mktemp("published")))


@pytest.fixture(autouse=True)
def few_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the MLPs: what they learn is tested elsewhere."""
    monkeypatch.setattr(probes.mlp_probes, "__defaults__", (2, "cpu"))


FAST = Protocol(2)


def run(encoders: list[str], out: Path, **options: object) -> list[Result]:
    return run_probe(encoders, out, **{"dtype": "float32", "device": "cpu", "protocol": FAST, **options})  # type: ignore[arg-type]


def numbers(results: list[Result], variant: str, **wanted: object) -> list[float]:
    [result] = [result for result in results if result.name == variant]
    return [row.score.value for row in result.find(condition="context", **wanted)]


def written(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for kind in ("variants", "features") for path in (out / kind).iterdir()}


def test_report_on_built_in_sentences(
    encoders: list[str], pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    results = run(encoders, out, retrieval=pairs, protocol=Protocol(1, controls=False))
    assert [result.name for result in results] == ["uni", "bi", "mntp", "simcse"]
    for result in results:
        assert numbers(results, result.name, metric="MRR") == [1]
        assert {row.probe for row in result.rows} == {"linear", ""}
    first = results[0].find(task="subject_animacy", input="1")[0].score
    assert (first.low, first.value, first.high) == (0.5, 0.5, 0.5), "a causal model's first word cannot know"
    assert numbers(results, "mntp", probe="linear") != numbers(results, "simcse", probe="linear")
    table = (out / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| mntp " in table and "Anisotropy" in table
    assert (out / "probing.png").read_bytes().startswith(b"\x89PNG")
    assert "simcse" in (out / "probing.svg").read_text()
    assert not list(out.rglob("*.tmp"))


def test_words_and_generation(encoders: list[str], sentences: list[str], tmp_path: Path) -> None:
    words = [word for sentence in sentences for word in sentence.lower().strip(".").split() if word.isalpha()]
    lists = tmp_path / "lists"
    lists.mkdir()
    for name in ("A", "B"):
        lines = [f"{one}\t{other}\t{len(one) - len(name + other)}" for one, other in pairwise(words)]
        (lists / f"{name}.txt").write_text("\n".join(lines))
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(sentences))
    options: dict[str, object] = {"words": lists, "contexts": texts, "generation": texts}
    out = tmp_path / "out"
    results = run(encoders, out, tasks=["subject_animacy"], protocol=Protocol(1, controls=False), **options)
    off = {tuple(numbers(results, name, input="adapters off")) for name in ("uni", "bi", "mntp", "simcse")}
    assert len(off) == 1, "the base's, bit for bit"
    assert numbers(results, "uni", input="adapters on") == [*off.pop()] != numbers(results, "mntp", input="adapters on")
    for name in ("alone", "behind a space", "in contexts"):
        found = [
            numbers(results, "mntp", input=name, target=target, metric="spearman") for target in ("A", "B", "mean")
        ]
        assert len(found[2]) == 3 and found[2] == pytest.approx(np.mean(found[:2], axis=0))
    table, content = (out / "table.md").read_text(), json.loads((out / "results.json").read_text())
    assert "mean over 2 lists" in table and "Generation: perplexity" in table and "in contexts 100%" in table
    samples = content["variants"][2]["completions"]
    assert samples["adapters off"] == content["variants"][0]["completions"]["adapters on"] != samples["adapters on"]
    assert content["words"] == ["A", "B"] and len(content["generation"]) == 64
    cached = written(out)
    again = run(encoders, out, tasks=["subject_animacy"], protocol=Protocol(1, controls=False), **options)
    assert again == results and written(out) == cached


def test_the_papers_tasks(encoders: list[str], published: str, tmp_path: Path) -> None:
    """What the files hold is documented in docs/probing.md."""
    out = tmp_path / "out"
    results = run(encoders[:1], out, data=published, layers=[0, 2])
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    content = json.loads((out / "results.json").read_text())
    assert content["format"] == 2 and len(content["rows"]) == len(rows) == sum(len(r.rows) for r in results)
    assert [variant["name"] for variant in content["variants"]] == ["uni", "bi", "mntp"]
    assert [task["name"] for task in content["tasks"]] == [
        *("subject_animacy", "verb_causative", "verb_dynamic", "object_animacy"),
        *("telicity", "duration", "concreteness", "sensorimotor", "wic"),
    ]
    mine = [row for row in rows if row["variant"] == "mntp" and row["layer"] == "2"]
    per_layer = {"subject_animacy": 30, "telicity": 6, "concreteness": 24, "sensorimotor": 12 * 24, "wic": 12}
    for task, count in per_layer.items():
        assert len([row for row in mine if row["task"] == task]) == count, task
    assert {row["condition"] for row in mine if row["task"] == "wic"} == {"context", "shuffled labels"}
    assert {row["layer"] for row in rows if row["task"] == "anisotropy"} == {"0", "1", "2"}
    with (out / "differences.csv").open() as file:
        compared = {(row["variant"], row["minus"]) for row in csv.DictReader(file)}
    assert compared == {("bi", "uni"), ("mntp", "uni"), ("mntp", "bi")}
    assert (out / "layers.png").exists()
    assert "Word in context" in (out / "probing.svg").read_text() or "wic" in (out / "table.md").read_text().lower()


def test_goes_on_where_it_was_cut(encoders: list[str], published: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options: dict[str, object] = {"data": published, "tasks": ["telicity", "wic"], "baselines": False}
    results = run(encoders[:1], out, **options)
    cached = written(out)
    assert len(cached) == 4 + 3, "layers, anisotropy, two tasks; vectors of two tasks, and of bare verbs"
    assert run(encoders[:1], out, **options) == results
    assert written(out) == cached, "measured again"
    lost = next(path for path in sorted((out / "variants").iterdir()) if path.stat().st_size > 3000)
    lost.unlink()
    assert run(encoders[:1], out, **options) == results
    again = written(out)
    assert {name for name in again if again[name] != cached[name]} == {lost.name}, "vectors were taken again"
    run(encoders[:1], out, **{**options, "protocol": Protocol(3)})
    assert len(written(out)) == len(cached) + 2, "probes anew, vectors and anisotropy not"


def test_what_is_kept_belongs_to_weights_and_settings(
    encoders: list[str], published: str, tiny_llama: Path, tmp_path: Path
) -> None:
    out, options = tmp_path / "out", {"data": published, "tasks": ["telicity"], "baselines": False}
    old = run(encoders[:1], out, **options)
    folder = trained(tiny_llama, tmp_path / "mntp", "mntp", seed=7)
    new = run([folder], out, **options)
    assert numbers(old, "mntp", input=INSIDE) != numbers(new, "mntp", input=INSIDE)
    count = len(written(out))
    run([folder], out, dtype="bfloat16", **options)
    assert len(written(out)) == count * 3 / 2
    changed = write_published(tmp_path / "data")
    path = changed / "Task2_Lexical aspect binary classification/telicity_train.txt"
    path.write_text(path.read_text().replace("day 3 ", "week 3 "))
    before = written(out)
    run([folder], out, **{**options, "data": str(changed)})
    assert len(written(out).keys() - before.keys()) == 2, "vectors and probes; the bare verbs are the same"


INSIDE = "same sentence"


def test_a_random_split_mixes_training_and_test_words(encoders: list[str], published: str, tmp_path: Path) -> None:
    options: dict[str, object] = {"data": published, "tasks": ["object_animacy"], "baselines": False}
    options["protocol"] = Protocol(2, mlp=False)
    [apart] = run(encoders[:1], tmp_path / "out", **options)
    [mixed] = run(encoders[:1], tmp_path / "out", split="random", **options)
    assert apart.rows != mixed.rows
    [task] = json.loads((tmp_path / "out" / "results.json").read_text())["tasks"]
    assert task["test"] == round(0.2 * (task["train"] + task["test"]))
    assert len(list((tmp_path / "out" / "features").iterdir())) == 2, "the same vectors"


def test_two_encoders_of_one_stage_are_told_apart(encoders: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    other = trained(tiny_llama, tmp_path / "mntp", "mntp", seed=7)
    results = run([encoders[0], other], tmp_path / "out", baselines=False, protocol=Protocol(1, controls=False))
    assert [result.name for result in results] == [f"mntp ({encoders[0]})", f"mntp ({other})"]


def test_several_seeds_are_one_variant(tiny_llama: Path, pairs: Path, tmp_path: Path) -> None:
    models = [trained(tiny_llama, tmp_path / seed / "mntp" / "encoder", "mntp", int(seed)) for seed in "12"]
    options: dict[str, object] = {"retrieval": pairs, "protocol": Protocol(1, controls=False)}
    each = run(models, tmp_path / "each", **options)
    both = run(models, tmp_path / "both", seeds=True, **options)
    assert [result.name for result in both] == ["uni", "bi", "mntp"]
    of_each = [numbers(each, f"mntp ({model})", task="anisotropy", layer=2)[0] for model in models]
    assert of_each[0] != of_each[1]
    assert numbers(both, "mntp", task="anisotropy", layer=2)[0] == pytest.approx(np.mean(of_each))
    assert json.loads((tmp_path / "both/results.json").read_text())["variants"][2]["model"] == models


def test_encoders_of_one_stage_are_named_by_their_runs(encoders: list[str], tiny_llama: Path, tmp_path: Path) -> None:
    """A chain with two supervised stages: the one in `supervised` keeps the name that the findings are about."""
    models = [
        trained(tiny_llama, tmp_path / run / "encoder", "mntp", seed=i) for i, run in enumerate(["mntp", "other"])
    ]
    named = [variant.name for variant in find_variants([*models, encoders[1]], baselines=True)]
    assert named == ["uni", "bi", "mntp", "other", "simcse"]


def test_a_base_with_fewer_positions_than_the_default(tiny_llama: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_llama, tmp_path / "short")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 20}))
    lengths = [variant.open("float32", "cpu").max_length for variant in find_variants([str(base)], baselines=True)]
    assert lengths == [20, 20]


def test_untrained_bases_are_read_as_their_encoder(tiny_llama: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_llama, pooling="last_token", max_length=33, start_token="<s>", pool_start=False)
    variants = find_variants([str(encoder.save(tmp_path / "encoder", "average"))], baselines=True)
    for variant, attention in zip(variants, ["causal", "bidirectional", "bidirectional"], strict=True):
        opened = variant.open("float32", "cpu")
        assert (opened.backbone.attention, opened.pooling, opened.max_length) == (attention, "last_token", 33)
        assert (start_name(opened.tokenizer), opened.pool_start) == ("<s>", False)


def test_attention_is_asked_as_it_is_opened(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Backbone] = []
    monkeypatch.setattr(Backbone, "self_test", lambda backbone: asked.append(backbone))
    opened = [variant.open("float32", "cpu") for variant in find_variants([str(tiny_llama)], baselines=True)]
    assert asked == [encoder.backbone for encoder in opened]


def test_the_number_of_layers_is_kept_whole_or_not_at_all(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session(find_variants([str(tiny_llama)], baselines=True)[0], "float32", "cpu", tmp_path)
    (tmp_path / VARIANTS).mkdir()

    def stopped(path: Path, _: str) -> None:
        path.touch()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "write_text", stopped)
        session.last  # noqa: B018
    assert session.last == 2


def test_what_it_refuses(encoders: list[str], tiny_llama: Path, tiny_llama_bos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one encoder"):
        probe([], out=tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing is at"):
        probe([str(tmp_path / "none")], out=tmp_path)
    with pytest.raises(ValueError, match=r"encoder\.json"):
        probe([str(tmp_path)], out=tmp_path)
    with pytest.raises(ValueError, match=r"--tasks must be among subject_animacy, .* got telicity"):
        probe(encoders, out=tmp_path, tasks=["telicity"])
    with pytest.raises(FileNotFoundError, match="no folder nowhere"):
        probe(encoders, out=tmp_path, data="nowhere")
    stranger = trained(tiny_llama_bos, tmp_path / "other", "mntp")
    with pytest.raises(ValueError, match="one base model"):
        probe([*encoders, stranger], out=tmp_path)
    assert not (tmp_path / "variants").exists()
    with pytest.raises(ValueError, match=r"--layers must lie in 0 … 2, the last of uni; got 3"):
        run([encoders[0]], tmp_path / "out", layers=[3])
