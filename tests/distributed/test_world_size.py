"""Invariant 3: training on several ranks is the same training, whatever shards it and however it is cut into chunks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from conftest import build_tiny_llama
from families import FAMILIES
from strategies import CUT, FROZEN, FULL, NF4, SHARING, STRATEGIES, assert_same_training, once, train

from otherside.lineage import SINK, Card

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "supervised": ("Supervised", {}),
    "supervised-cut": ("Supervised", CUT),
    "mntp-cut": ("MNTP", CUT),
    "supervised-full": ("Supervised", {**FULL, **CUT}),
    "supervised-frozen": ("Supervised", FROZEN),
    "mntp-full": ("MNTP", {**FULL, **CUT}),
    "supervised-nf4": ("Supervised", {**NF4, **CUT, "model.init_args.backbone.activation_checkpointing": True}),
    "mntp-nf4": ("MNTP", {**NF4, **CUT}),
}
TRAINED: dict[str, dict[str, Any]] = {"lora": {}, "full": FULL}
ALONE = {"data.init_args.negatives": 2, **CUT}


def together(*values: Any, by: Any) -> Any:
    """A test's values; one process runs all that are compared with the same run, and trains it once."""
    return pytest.param(*values, marks=pytest.mark.xdist_group(f"world-{by}"))


BOTH = [
    together(case, name, by=case)
    for case in CASES
    for name in STRATEGIES
    if name != "auto"
    and not (case.endswith("nf4") and name in SHARING)
    and not (name == "zero1" and case not in ("supervised", "supervised-cut"))  # our code is zero2's
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    runs.write_data(folder, rows=30)
    return folder


@pytest.fixture(scope="module")
def one_process(place: Path, tiny_llama: Path) -> Callable[[str], Path]:
    """Runs on one process, made when they are asked for."""

    def get(case: str) -> Path:
        stage, settings = CASES[case]
        return once(place, tiny_llama, f"{case}-one", stage, "auto", 1, **settings)

    return get


@pytest.mark.parametrize(("case", "strategy"), BOTH)
def test_two_ranks_train_as_one_process(
    case: str, strategy: str, place: Path, tiny_llama: Path, one_process: Callable[[str], Path]
) -> None:
    stage, settings = CASES[case]
    found = train(place, tiny_llama, f"{case}-{strategy}", stage, strategy, 2, **settings)
    assert_same_training(found, one_process(case))


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", [together(kind, by=kind) for kind in ("alone", "labels", "scores")])
def test_own_negatives_only_train_as_one_process(ranks: int, kind: str, place: Path, tiny_llama: Path) -> None:
    """Rows with one, two or three negatives, of which two are drawn, with a teacher's scores or not; or texts with
    labels, told from all of other labels.
    """
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    file = place / f"{kind}.jsonl"
    more = [
        {"text": row["positive"], "label": i % 4}
        if kind == "labels"
        else {**row, "negatives": [other["positive"] for other in rows[i - 1 - i % 3 : i]] or ["Rain."]}
        for i, row in enumerate(rows)
    ]
    source: dict[str, Any] = {"path": str(file), "in_batch": kind == "labels"}
    settings: dict[str, Any] = {"data.init_args.sources": [source], **ALONE}
    if kind != "alone":
        source[kind] = True
    if kind == "scores":
        more = [{**row, "scores": [i % 5 / 10, 0.2, 0.4][: len(row["negatives"])]} for i, row in enumerate(more)]
        more = [{**row, "positive_score": 0.7 + i % 3 / 10} for i, row in enumerate(more)]
        settings["model.init_args.loss"] = {"scale": 2, "teacher": {"temperature": 0.5}}
    file.write_text("".join(json.dumps(row) + "\n" for row in more))
    one = once(place, tiny_llama, f"{kind}-1", "Supervised", "auto", 1, **settings)
    assert_same_training(train(place, tiny_llama, f"{kind}-{ranks}", "Supervised", "ddp", ranks, **settings), one)


@pytest.mark.xdist_group("world-mntp-cut")
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_an_earlier_stage_is_merged_into_shards(
    strategy: str, place: Path, tiny_llama: Path, one_process: Callable[[str], Path]
) -> None:
    earlier = one_process("mntp-cut") / "encoder"
    one = once(place, earlier, "later-one", "Supervised", "auto", 1)
    assert_same_training(train(place, earlier, f"later-{strategy}", "Supervised", strategy, 2), one)


@pytest.mark.xdist_group("world-mntp-cut")
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
@pytest.mark.parametrize("later", ["full", "frozen", "lora"])
def test_adapter_and_full_stage_are_merged_into_shards(
    later: str, strategy: str, place: Path, tiny_llama: Path, one_process: Callable[[str], Path]
) -> None:
    """An adapter, then all weights, then a stage on top of both."""
    second = once(place, one_process("mntp-cut") / "encoder", "second", "Supervised", "auto", 1, **FULL) / "encoder"
    settings = {"full": FULL, "frozen": FROZEN, "lora": {}}[later]
    one = once(place, second, f"{later}-third-one", "Supervised", "auto", 1, **settings)
    found = train(place, second, f"{later}-third-{strategy}", "Supervised", strategy, 2, **settings)
    assert_same_training(found, one)
    stages = Card.read(found / "encoder").lineage.adapters
    assert [stage.name for stage in stages] == ["mntp", "supervised", "supervised"]
    kept = {"full": [False, False, True], "frozen": [False, True, True], "lora": [False, True, True]}[later]
    assert [stage.folder is not None for stage in stages] == kept


@pytest.mark.parametrize("strategy", ["ddp", "zero3", "fsdp2"])
@pytest.mark.parametrize("trained", [together(trained, by=f"tied-{trained}") for trained in TRAINED])
def test_tied_embeddings_are_sharded_once_and_keep_their_sink(trained: str, strategy: str, place: Path) -> None:
    """The head reads the embeddings' shards, in MNTP with gradients through both; the start token enters otherwise."""
    llama, settings = place / "tied", TRAINED[trained]
    if not llama.exists():
        build_tiny_llama(llama, tied=True, sink=True)
    one = once(place, llama, f"tied-{trained}-one", "MNTP", "auto", 1, **settings)
    two = train(place, llama, f"tied-{trained}-{strategy}", "MNTP", strategy, 2, **settings)
    # the sink's large states leave the full gradient's norm fewer digits; weights agree to 1e-7
    assert_same_training(two, one, norm=5e-6 if trained == "full" else 1e-6)
    assert ("model.embed_tokens.weight" in runs.adapter(one)) == (trained == "full")
    assert (one / "encoder" / SINK).read_bytes() == (two / "encoder" / SINK).read_bytes()


@pytest.mark.xdist_group("world-windows")
@pytest.mark.parametrize("strategy", ["zero3", "fsdp2"])
def test_windows_and_soft_caps(strategy: str, place: Path, tiny_llama: Path) -> None:
    gemma = place / "gemma2"
    if not gemma.exists():
        FAMILIES["gemma2"].save(gemma, tiny_llama)
    one = once(place, gemma, "gemma2-one", "MNTP", "auto", 1)
    assert_same_training(train(place, gemma, f"gemma2-{strategy}", "MNTP", strategy, 2), one)


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
@pytest.mark.parametrize("trained", [together(trained, by=f"half-{trained}") for trained in ("lora", "frozen")])
def test_the_base_keeps_its_type(trained: str, strategy: str, place: Path, tiny_llama: Path) -> None:
    """A base turned into float32 on the way would give losses of its own, and take twice the memory. What is trained is
    float32 all the same.
    """
    settings = {"model.init_args.backbone.dtype": "bfloat16", **(FROZEN if trained == "frozen" else {})}
    ddp = once(place, tiny_llama, f"half-{trained}-ddp", "Supervised", "ddp", 2, **settings)
    found = train(place, tiny_llama, f"half-{trained}-{strategy}", "Supervised", strategy, 2, **settings)
    one, other = runs.metrics(found, "train/loss"), runs.metrics(ddp, "train/loss")
    assert one[0] == other[0]
    assert max(abs(one[step] / other[step] - 1) for step in other) < 1e-2  # ZeRO-3 has a backward of its own
    assert {weight.dtype for weight in runs.adapter(found).values()} == {torch.float32}


@pytest.mark.xdist_group("world-dropout")
@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_strategies_draw_the_same_dropout(strategy: str, place: Path, tiny_llama: Path) -> None:
    settings = {"model.init_args.lora.dropout": 0.3}
    ddp = once(place, tiny_llama, "dropout-ddp", "Supervised", "ddp", 2, **settings)
    assert_same_training(train(place, tiny_llama, f"dropout-{strategy}", "Supervised", strategy, 2, **settings), ddp)


def test_validation_does_not_depend_on_the_number_of_ranks(place: Path, tiny_llama: Path) -> None:
    """Neither the loss nor the candidates of a reciprocal rank; 16 rows in batches of 6 are uneven shares."""
    rows = (place / "pairs.jsonl").read_text().splitlines()
    more = '"negatives": ["Rain.", '
    uneven = [row if i % 3 else row.replace('"negatives": [', more) for i, row in enumerate(rows)]
    (place / "validation.jsonl").write_text("\n".join(uneven[:16]) + "\n")
    settings = {
        "data.init_args.val_sources": [{"path": str(place / "validation.jsonl")}],
        "trainer.val_check_interval": 2,
    }
    one, two = (
        train(place, tiny_llama, f"validated-{ranks}", "Supervised", "ddp" if ranks > 1 else "auto", ranks, **settings)
        for ranks in (1, 2)
    )
    for name in ("val/loss", "val/mrr"):
        found, expected = runs.metrics(two, name), runs.metrics(one, name)
        assert found and found == pytest.approx(expected, rel=1e-5)
    assert min(runs.metrics(one, "val/mrr").values()) < 1
