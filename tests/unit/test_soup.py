"""Averages of encoders: exactly the average of their weights."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import train_a_little

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder
from otherside.export import readme
from otherside.lineage import Card, Parent, Training
from otherside.soup import soup
from otherside.tokenizer import load_tokenizer, start_id


def stage(model: str, folder: Path, seed: int, lora: Lora, max_length: int = 64) -> str:
    tokenizer = load_tokenizer(model)
    backbone = Backbone.load(BackboneConfig(model, dtype="float32"), lora, start=start_id(tokenizer))
    torch.manual_seed(seed)
    train_a_little(backbone.lm, size=0.1)
    return str(Encoder(backbone, tokenizer, max_length=max_length).save(folder, folder.name))


@pytest.fixture(scope="module")
def folders(tiny_llama_sink: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two recipes on one MNTP: a stage, and two stages of another shape."""
    root = tmp_path_factory.mktemp("soup")
    mntp = stage(str(tiny_llama_sink), root / "mntp", 1, Lora(r=4))
    one = stage(mntp, root / "one", 2, Lora(r=4, alpha=8))
    simcse = stage(mntp, root / "simcse", 3, Lora(r=2, rslora=True, targets=["q_proj", "v_proj"]))
    other = stage(simcse, root / "other", 4, Lora(r=3))
    return {"base": str(tiny_llama_sink), "mntp": mntp, "one": one, "simcse": simcse, "other": other}


def weights(encoder: str) -> dict[str, torch.Tensor]:
    return dict(Encoder.load(encoder).backbone.lm.state_dict())


@pytest.mark.parametrize(
    ("names", "shares", "common"),
    [(("one", "other"), None, 1), (("one", "simcse", "other"), [0.5, 0.2, 0.3], 1), (("other", "base"), [0.7, 0.3], 0)],
)
def test_weights_are_the_average(
    names: tuple[str, ...], shares: list[float] | None, common: int, folders: dict[str, str], tmp_path: Path
) -> None:
    soup([folders[name] for name in names], tmp_path / "out", shares)
    found, each = weights(str(tmp_path / "out")), [weights(folders[name]) for name in names]
    for name, weight in found.items():
        parts = zip(shares or [1 / len(names)] * len(names), each, strict=True)
        expected = sum(share * other[name] for share, other in parts)
        assert torch.allclose(weight, expected, atol=1e-6), name
    card, first = Card.read(tmp_path / "out"), Card.read(Path(folders[names[0]]))
    assert [a.name for a in card.lineage.adapters] == [*[a.name for a in first.lineage.adapters[:common]], "soup"]
    assert (card.stage, card.sink, card.max_length) == ("soup", first.sink, 64)


def test_it_is_an_encoder_like_others(folders: dict[str, str], tmp_path: Path) -> None:
    """It opens, a stage starts from it, and it is averaged again."""
    soup([folders["one"], folders["other"]], tmp_path / "out")
    vectors = Encoder.load(tmp_path / "out").encode(["A cat."])
    assert not np.allclose(vectors, Encoder.load(folders["one"]).encode(["A cat."]))
    again = stage(str(tmp_path / "out"), tmp_path / "again", 5, Lora(r=2))
    soup([again, folders["one"]], tmp_path / "twice")
    assert Encoder.load(tmp_path / "twice", merge=False).encode(["A cat."]).shape == (1, 64)


def told(encoder: str, out: Path, training: Training) -> str:
    """A copy of an encoder that says how its last stage was trained."""
    card = Card.read(Path(shutil.copytree(encoder, out)))
    replace(card, history=(*card.history[:-1], training)).write(out)
    return str(out)


def test_it_knows_its_parents(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = told(folders["one"], tmp_path / "a", Training("one", 5, ("a.txt", "b.txt"), {"query": "Q: "}, (8, 16, 32)))
    other = told(folders["other"], tmp_path / "b", Training("other", 7, ("b.txt", "c.txt"), {}, (16, 32, 64)))
    soup([one, other, folders["base"]], tmp_path / "out", [0.5, 0.25, 0.25])
    assert "Their prompts differ" in capsys.readouterr().out
    card = Card.read(tmp_path / "out")
    sums = [Card.read(Path(parent)).lineage.adapters[-1].sha256 for parent in (one, other)]
    assert card.history[-1].parents == (
        Parent("one", sums[0], 0.5),
        Parent("other", sums[1], 0.25),
        Parent("base", None, 0.25),
    )
    assert card.history[-1].data == ("a.txt", "b.txt", "c.txt")
    assert (card.dimensions, card.prompts) == ((16, 32), {})
    assert f"| soup | not: the average 0.5 × one `{sums[0][:12]}…` + 0.25 × other" in "\n".join(readme.stages(card))
    assert "parents" not in (Path(folders["one"]) / "encoder.json").read_text(), "older versions read it"


@pytest.mark.parametrize(
    ("names", "shares", "message"),
    [
        (("one",), None, "two encoders or more; got 1"),
        (("one", "other"), [0.5], r"--weights must be one number for each of the 2 encoders, .* got 0\.5"),
        (("one", "other"), [0.5, 0.6], "with the sum 1"),
        (("one", "one"), None, "differ; these are one and the same"),
        (("base", "base"), None, "got base models alone"),
        (("one", "short"), None, "read texts alike; .* differ in max_length 32 and 64"),
        (("one", "foreign"), None, "encoders of one base model"),
        (("one", "dora"), None, "plain LoRA adapters; dora in"),
    ],
)
def test_what_it_refuses(
    names: tuple[str, ...],
    shares: list[float] | None,
    message: str,
    folders: dict[str, str],
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    made = {
        "short": lambda: stage(folders["mntp"], tmp_path / "short", 6, Lora(r=2), max_length=32),
        "dora": lambda: stage(folders["mntp"], tmp_path / "dora", 7, Lora(r=2, dora=True)),
        "foreign": lambda: stage(str(tiny_llama), tmp_path / "foreign", 8, Lora(r=2)),
    }
    with pytest.raises(ValueError, match=message):
        soup([made[name]() if name in made else folders[name] for name in names], tmp_path / "out", shares)
    assert not (tmp_path / "out").exists()


def test_a_damaged_adapter_is_refused_even_where_all_have_it(folders: dict[str, str], tmp_path: Path) -> None:
    both = [shutil.copytree(folders[name], tmp_path / name) for name in ("one", "other")]
    weights = both[0] / "adapters" / "0-mntp" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"adapter 'mntp' .*must have SHA-256"):
        soup([str(folder) for folder in both], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other"], "nothing is left"


def test_out(folders: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    both = [folders["one"], folders["other"]]
    with pytest.raises(FileExistsError, match="--force"):
        soup(both, tmp_path / "out")
    soup(both, tmp_path / "out", force=True)
    assert not (tmp_path / "out" / "mine").exists()
    with pytest.raises(ValueError, match="must not contain the encoder"):
        soup(both, Path(folders["one"]).parent, force=True)
