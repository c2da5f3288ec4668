"""Full fine-tuning: what is trained, in which type, what is kept of it, and what it is refused for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build_tiny_llama
from safetensors.torch import load_file
from tiny import distance, load, nothing, random_texts, some_loss, train_a_little
from transformers import AutoModelForCausalLM

from otherside.adapters import Lora
from otherside.backbone import Backbone, BackboneConfig
from otherside.encoder import Encoder
from otherside.evaluation.model import model_meta
from otherside.export import Kind, export
from otherside.full import Full, SavedWeights, layers
from otherside.lineage import Card, Lineage
from otherside.probing.measure import Protocol
from otherside.probing.run import run_probe
from otherside.soup import soup
from otherside.tokenizer import load_tokenizer, start_id

TEXTS = ["The cat sat on the mat.", "Rain.", "A dog barked at the postman all morning long."]


def opened(model: str | Path, new: Lora | Full | None, dtype: str = "float32", shard: Any = None) -> Encoder:
    tokenizer = load_tokenizer(str(model))
    config = BackboneConfig(str(model), dtype=dtype)  # type: ignore[arg-type]
    return Encoder(Backbone.load(config, new, shard, start_id(tokenizer)), tokenizer, max_length=64).eval()


def stage(model: str | Path, folder: Path, new: Lora | Full, seed: int = 1) -> Path:
    """An encoder folder whose stage did something."""
    encoder = opened(model, new)
    train_a_little(encoder.backbone.lm, seed=seed, size=0.1)
    random = torch.Generator().manual_seed(seed)
    for parameter in encoder.backbone.lm.parameters() if isinstance(new, Full) else []:
        if parameter.requires_grad:
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)
    return encoder.save(folder, folder.name)


def weights(model: str | Path) -> dict[str, torch.Tensor]:
    return {
        name: p.detach() for name, p in Backbone.load(BackboneConfig(str(model), dtype="float32")).lm.named_parameters()
    }


@pytest.fixture(scope="module")
def folders(tiny_llama_sink: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter, all weights on top, and weights above a frozen layer."""
    root = tmp_path_factory.mktemp("full")
    mntp = stage(tiny_llama_sink, root / "mntp", Lora(r=4))
    return {
        "base": tiny_llama_sink,
        "mntp": mntp,
        "whole": stage(mntp, root / "whole", Full(), 2),
        "upper": stage(mntp, root / "upper", Full(frozen_layers=1), 3),
        "bare": stage(tiny_llama_sink, root / "bare", Full(), 4),
    }


class TestTrained:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("frozen", [None, 0, 1])
    def test_all_but_what_is_frozen_and_a_head_of_its_own(self, tied: bool, frozen: int | None, tmp_path: Path) -> None:
        lm = load(build_tiny_llama(tmp_path, tied=tied), Full(frozen)).lm
        trained = {name for name, parameter in lm.named_parameters() if parameter.requires_grad}
        expected = {name for name, _ in lm.named_parameters() if name != "lm_head.weight"}
        if frozen is not None:
            expected -= {"model.embed_tokens.weight"}
        if frozen:
            expected = {name for name in expected if not name.startswith("model.layers.0.")}
        assert trained == expected

    def test_every_weight_that_is_trained_gets_a_gradient(self, tiny_llama: Path) -> None:
        backbone = load(tiny_llama, Full())
        some_loss(backbone(random_texts([5, 9, 12]))).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in backbone.parameters() if p.requires_grad)

    @pytest.mark.parametrize("frozen", [-1, 2, 9])
    def test_a_layer_must_be_left(self, frozen: int, tiny_llama: Path) -> None:
        with pytest.raises(ValueError, match=r"model.frozen_layers must .* got"):
            load(tiny_llama, Full(frozen))

    def test_types(self, tiny_llama: Path) -> None:
        """An update that bfloat16 would round away changes what is trained."""
        backbone = load(tiny_llama, Full(1), dtype="bfloat16")
        for parameter in backbone.lm.parameters():
            assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16)
        weight = layers(backbone.lm)[1].self_attn.q_proj.weight
        assert torch.equal(
            weight, AutoModelForCausalLM.from_pretrained(tiny_llama).model.layers[1].self_attn.q_proj.weight
        )
        before = weight.detach().clone()
        some_loss(backbone(random_texts([5, 9]))).backward()
        torch.optim.AdamW([weight], lr=1e-6).step()
        assert not torch.equal(weight, before)
        assert (weight.bfloat16() == before.bfloat16()).float().mean() > 0.99

    @pytest.mark.parametrize("frozen", [None, 1])
    def test_it_computes_in_the_bases_type_as_the_base_does(self, frozen: int | None, tiny_llama: Path) -> None:
        texts = random_texts([5, 9, 12])
        found, plain, exact = (
            load(tiny_llama, Full(frozen), dtype="bfloat16"),
            load(tiny_llama, dtype="bfloat16"),
            load(tiny_llama),
        )
        assert all(state.dtype == torch.bfloat16 for state in found.hidden_states(texts))
        rounding = distance(plain(texts), exact(texts))
        assert distance(found(texts), exact(texts)) < 2 * rounding
        found.self_test()

    def test_pieces_are_as_the_whole(self, folders: dict[str, Path]) -> None:
        for model in ("base", "mntp", "whole", "upper"):
            one, other = (opened(folders[model], Full(1), "bfloat16", shard).backbone.lm for shard in (None, nothing))
            expected, found = dict(one.named_parameters()), dict(other.named_parameters())
            assert list(found) == list(expected)
            for name, parameter in expected.items():
                assert torch.equal(found[name], parameter) and found[name].dtype == parameter.dtype, name
                assert found[name].requires_grad == parameter.requires_grad, name


class TestFolder:
    def test_it_holds_what_was_trained_and_says_so(self, folders: dict[str, Path]) -> None:
        lineage = Card.read(folders["upper"]).lineage
        assert [(s.name, s.kind) for s in lineage.adapters] == [("mntp", "adapter"), ("upper", "weights")]
        saved = load_file(lineage.adapters[1].path)
        assert {tensor.dtype for tensor in saved.values()} == {torch.float32}
        assert not any(name.startswith(("model.layers.0.", "model.embed", "lm_head")) for name in saved)
        assert lineage.adapters[0].folder, "the frozen layer is as the adapter left it"

    def test_what_was_replaced_is_named_and_not_kept(self, folders: dict[str, Path], tmp_path: Path) -> None:
        first, second = Card.read(folders["whole"]).lineage.adapters
        assert (first.name, first.folder, second.kind) == ("mntp", None, "weights")
        assert first.sha256 == Card.read(folders["mntp"]).lineage.adapters[0].sha256
        assert not (folders["whole"] / "adapters").exists()

    def test_it_opens_as_it_was_saved_in_every_type(self, folders: dict[str, Path], tmp_path: Path) -> None:
        encoder = opened(folders["mntp"], Full(1))
        for parameter in encoder.backbone.lm.parameters():
            parameter.data += 0.03 * parameter.requires_grad
        folder = encoder.save(tmp_path / "encoder", "supervised", steps=3)
        again = Encoder.load(folder)
        assert (again.encode(TEXTS) == encoder.encode(TEXTS)).all()
        assert (
            again.backbone.sink
            and (folder / "sink.safetensors").read_bytes() == (folders["mntp"] / "sink.safetensors").read_bytes()
        )
        Encoder.load(folder, dtype="bfloat16")
        moved = (tmp_path / "elsewhere").resolve()
        folder.rename(moved)
        assert (Encoder.load(moved).encode(TEXTS) == encoder.encode(TEXTS)).all()

    def test_a_stage_starts_from_it(self, folders: dict[str, Path], tmp_path: Path) -> None:
        for name in ("whole", "upper"):
            on_top = stage(folders[name], tmp_path / f"{name}-lora", Lora(r=2), 5)
            kinds = [s.kind for s in Card.read(on_top).lineage.adapters]
            assert kinds == ["adapter", "weights", "adapter"]
            assert (Encoder.load(on_top).encode(TEXTS) != Encoder.load(folders[name]).encode(TEXTS)).any()
            stage(on_top, tmp_path / f"{name}-again", Full(), 6)
            assert len(Card.read(tmp_path / f"{name}-again").lineage.files) == 1

    def test_changed_weights_and_another_base_are_refused(
        self, folders: dict[str, Path], tiny_llama: Path, tmp_path: Path
    ) -> None:
        saved = Card.read(stage(folders["base"], tmp_path / "one", Full(), 7)).lineage.adapters[0]
        with pytest.raises(
            ValueError, match=r"weights 'one' in .* must fit the base model, and do not: .*Use the base"
        ):
            SavedWeights(saved).check_fits(load(tiny_llama).lm.model)
        content = bytearray(saved.path.read_bytes())
        content[-1] ^= 1
        saved.path.write_bytes(content)
        with pytest.raises(ValueError, match=r"weights 'one' in .* must have SHA-256"):
            Encoder.load(tmp_path / "one")
        saved.path.unlink()
        with pytest.raises(FileNotFoundError, match="weights 'one' must be at"):
            Encoder.load(tmp_path / "one")

    def test_a_card_is_of_the_new_format_where_it_needs_it_alone(self, folders: dict[str, Path]) -> None:
        plain, whole = (json.loads((folders[name] / "encoder.json").read_text()) for name in ("mntp", "whole"))
        assert (plain["format"], whole["format"]) == (4, 5)
        assert set(plain["lineage"]["adapters"][0]) == {"name", "folder", "sha256"}


class TestGeneration:
    def test_there_is_no_base_inside(self, folders: dict[str, Path]) -> None:
        with pytest.raises(ValueError, match=r"full fine-tuning, with no base inside. Open the base beside it: /"):
            Encoder.load(folders["whole"], merge=False)
        for encoder in (Encoder.load(folders["upper"]), opened(folders["base"], Full())):
            with (
                pytest.raises(ValueError, match=r"as_base needs the base's own weights; full .* Open it beside this"),
                encoder.backbone.as_base(),
            ):
                pass

    def test_it_generates_as_itself(self, folders: dict[str, Path]) -> None:
        backbone = Encoder.load(folders["bare"], attention="causal").backbone
        ids = torch.tensor([[0, 5, 6]])
        found = backbone.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
        lm = AutoModelForCausalLM.from_pretrained(folders["base"])
        lm.load_state_dict(weights(folders["bare"]), strict=False)
        lm.tie_weights()
        assert torch.equal(found, lm.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))


class TestUse:
    @pytest.mark.parametrize("kind", ["sentence-transformers", "merged", "onnx"])
    def test_exports_hold_its_weights(self, kind: Kind, folders: dict[str, Path], tmp_path: Path) -> None:
        """The gate of exports compares vectors; that these are not the base's is seen here."""
        assert (Encoder.load(folders["whole"]).encode(TEXTS) != Encoder.load(folders["base"]).encode(TEXTS)).any()
        export(str(folders["whole"]), tmp_path / "out", kind=kind)
        readme = (tmp_path / "out" / "README.md").read_text()
        assert "full fine-tuning" in readme and "whole" in readme

    def test_mteb_knows_it_by_its_weights(self, folders: dict[str, Path]) -> None:
        encoders = [opened(folders["mntp"], Full(frozen)) for frozen in (None, 1)]
        found = [model_meta(encoder).revision for encoder in encoders]
        with torch.no_grad():
            layers(encoders[0].backbone.lm)[1].mlp.up_proj.weight[0, 0] += 1
        saved = [model_meta(Encoder.load(folders[name])).revision for name in ("mntp", "whole", "upper")]
        assert len({*found, model_meta(encoders[0]).revision, *saved}) == 6

    def test_probing_generates_with_it_alone(self, folders: dict[str, Path], tmp_path: Path) -> None:
        texts = tmp_path / "texts.txt"
        texts.write_text("\n".join(TEXTS))
        options: dict[str, Any] = {"dtype": "float32", "device": "cpu", "tasks": ["subject_animacy"]}
        protocol = Protocol(1, controls=False)
        results = run_probe([str(folders["upper"])], tmp_path / "out", generation=texts, protocol=protocol, **options)
        inputs = {result.name: [row.input for row in result.find(task="generation")] for result in results}
        assert inputs["upper"] == ["adapters on"] and set(inputs["uni"]) == {"adapters off", "adapters on"}


class TestSoup:
    @pytest.mark.parametrize(
        ("names", "shares"),
        [
            (("whole", "upper"), None),
            (("bare", "base"), [0.5, 0.5]),
            (("whole", "mntp", "base"), [0.5, 0.2, 0.3]),
        ],
    )
    def test_weights_are_the_average(
        self, names: tuple[str, ...], shares: list[float] | None, folders: dict[str, Path], tmp_path: Path
    ) -> None:
        soup([str(folders[name]) for name in names], tmp_path / "out", shares)
        found, each = weights(tmp_path / "out"), [weights(folders[name]) for name in names]
        for name, weight in found.items():
            parts = zip(shares or [1 / len(names)] * len(names), each, strict=True)
            assert torch.allclose(weight, sum(share * other[name] for share, other in parts), atol=1e-6), name  # type: ignore[arg-type]
        card = Card.read(tmp_path / "out")
        assert card.lineage.adapters[-1].kind == "weights" and card.stage == "soup"
        Encoder.load(tmp_path / "out")


def test_extended(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    lineage = Lineage("base").extended("mntp", tmp_path, "weights")
    assert lineage.trained_whole == ["mntp"] and lineage.files[0].path == tmp_path / "model.safetensors"
