"""Every family of docs/models.md, from loading to exports: what is turned is the model, and nothing of it is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exports import TEXTS, relative, trained
from families import FAMILIES, Family
from tiny import adapter_gradients, distance, load, nothing, random_texts, singles, some_loss, train_a_little
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from lightning_modules.sizing.shape import KNOWN, Shape
from otherside import mntp, sink
from otherside.adapters import Lora, adapter_layers
from otherside.backbone import Backbone, BackboneConfig
from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder
from otherside.export import export
from otherside.mntp import Masking
from otherside.sink import Sink

LENGTHS = [1, 9, 3, 17, 9, 2]
DIRECTIONS = ["bidirectional", "causal"]

Saved = tuple[Family, Path]


@pytest.fixture(scope="module", params=FAMILIES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_llama_bos: Path) -> Saved:
    """A family and a folder with a tiny model of it."""
    family = FAMILIES[request.param]
    return family, family.save(tmp_path_factory.mktemp(family.kind), tiny_llama_bos)


def plain(folder: Path, **options: Any) -> Any:
    """The base model as transformers itself runs it."""
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval().requires_grad_(False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_mask_is_the_one_asked_for(saved: Saved, direction: str, dtype: str) -> None:
    backbone = load(saved[1], Lora(r=4), attention=direction, dtype=dtype, attention_dropout=0.3)
    train_a_little(backbone.lm)
    backbone.self_test()


def test_causal_states_are_the_models_own(saved: Saved) -> None:
    """In texts that are longer than windows."""
    text = random_texts([23])
    own = plain(saved[1])(text.input_ids[None], output_hidden_states=True)
    found = load(saved[1], attention="causal").hidden_states(text)
    assert len(found) == 5
    for ours, its in zip(found, own.hidden_states, strict=True):
        assert distance(ours, its[0]) < 1e-5


def test_bidirectional_states_are_what_transformers_turns_into(saved: Saved) -> None:
    """By `is_causal: false`, which since 5.2 opens any decoder."""
    family, folder = saved
    text = random_texts([23])
    own = plain(folder).model(text.input_ids[None], is_causal=False, use_cache=False).last_hidden_state[0]
    found = load(folder)(text)
    assert distance(found, own) < 1e-5
    assert distance(found, load(folder, attention="causal")(text)) > 0.1
    if family.window:
        backbone = load(folder)
        for part in (backbone.lm.config, *backbone.lm.modules()):
            if getattr(part, "sliding_window", None):
                part.sliding_window = 100
        assert distance(found, backbone(text)) > 0.01


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_text_does_not_depend_on_its_company(saved: Saved, direction: str) -> None:
    backbone, texts = load(saved[1], attention=direction), random_texts(LENGTHS)
    assert distance(backbone(texts), torch.cat([backbone(text) for text in singles(texts)])) < 1e-5


def test_adapters_off_it_generates_as_its_base_bit_for_bit(saved: Saved) -> None:
    def generated(lm: Any) -> tuple[Tensor, Tensor]:
        options = {"max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
        outcome = lm.generate(torch.tensor([[0, 60, 70, 80, 90, 100, 110, 120]]), **options)
        return outcome.sequences, torch.stack(outcome.logits)

    backbone = load(saved[1], Lora(r=4))
    train_a_little(backbone.lm)
    backbone(random_texts(LENGTHS))
    with backbone.as_base():
        tokens, logits = generated(backbone)
    expected, its_logits = generated(plain(saved[1]))
    assert torch.equal(tokens, expected) and torch.equal(logits, its_logits)


def test_the_loss_of_mntp_is_that_of_the_models_own_logits(saved: Saved) -> None:
    backbone, texts = load(saved[1], attention="causal"), random_texts([23])
    masked, labels = mntp.mask(texts, torch.tensor([0]), Masking(), 95, 256, seed=0)
    where = mntp.predicting(labels)
    targets = labels[labels != -100]
    found = mntp.loss(backbone(masked)[where], targets, backbone.logits)
    own = plain(saved[1])(masked.input_ids[None]).logits[0]
    assert len(targets) > 2
    assert found.item() == pytest.approx(F.cross_entropy(own[where].float(), targets).item(), rel=1e-5)


def test_all_projections_are_adapted_and_learn(saved: Saved) -> None:
    backbone, texts = load(saved[1], Lora(r=4)).train(), random_texts(LENGTHS)
    head = backbone.lm.get_output_embeddings()
    linear = {name for name, module in plain(saved[1]).named_modules() if type(module) is torch.nn.Linear}
    assert head is not None and len(list(adapter_layers(backbone.lm))) == len(linear) - 1
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(some_loss(backbone(texts)))
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[1] < losses[0]


def test_a_part_of_a_fused_projection_is_refused(tmp_path: Path, tiny_llama: Path) -> None:
    folder = FAMILIES["phi3"].save(tmp_path, tiny_llama)
    with pytest.raises(
        ValueError, match=r"lora\.targets .*; q_proj, v_proj matches none.*gate_up_proj, o_proj, qkv_proj"
    ):
        load(folder, Lora(targets=["q_proj", "v_proj", "o_proj"]))


def test_gradients_packed_are_gradients_single(saved: Saved) -> None:
    backbone = load(saved[1], Lora(r=4, dropout=0))
    train_a_little(backbone.lm)
    texts = random_texts(LENGTHS)
    aim = torch.randn(len(texts.input_ids), backbone.hidden_size, generator=torch.Generator().manual_seed(1))
    (backbone(texts) * aim).sum().backward()
    packed = adapter_gradients(backbone.lm)
    for text, wanted in zip(singles(texts), aim.split(LENGTHS), strict=True):
        (backbone(text) * wanted).sum().backward()
    for name, gradient in adapter_gradients(backbone.lm).items():
        assert distance(packed[name], gradient) < 1e-4, name


def test_an_encoder_is_saved_loaded_and_exported(saved: Saved, tmp_path: Path) -> None:
    """sentence-transformers opens it inside `export`, padded; here transformers does, text by text."""
    folder = trained(saved[1], tmp_path / "encoder")
    encoder = Encoder.load(folder)
    expected = encoder.encode(TEXTS)
    export(folder, tmp_path / "st")
    export(folder, tmp_path / "merged", "merged")
    model, tokenizer = (
        AutoModel.from_pretrained(tmp_path / "merged"),
        AutoTokenizer.from_pretrained(tmp_path / "merged"),
    )
    with torch.no_grad():
        alone = [model(**tokenizer([text], return_tensors="pt")).last_hidden_state[0].mean(0).numpy() for text in TEXTS]
    assert relative(np.stack(alone), expected) < 1e-5
    assert relative(Encoder.load(tmp_path / "merged").encode(TEXTS), expected) < 1e-5
    assert relative(Encoder.load(folder, attention="causal").encode(TEXTS), expected) > 1e-2


def test_loaded_piece_by_piece_it_is_the_same(saved: Saved) -> None:
    """As ZeRO-3 and FSDP2 load it."""
    found = []
    for shard in (None, nothing):
        torch.manual_seed(3)
        found.append(Backbone.load(BackboneConfig(str(saved[1]), dtype="float32"), Lora(r=4), shard))
    whole, pieces = found
    expected = dict(whole.lm.named_parameters())
    for name, parameter in pieces.lm.named_parameters():
        assert torch.equal(parameter, expected.pop(name)), name
    assert not expected and pieces.lineage == whole.lineage
    texts = random_texts(LENGTHS)
    assert torch.equal(pieces.eval()(texts), whole.eval()(texts))


def test_its_size_is_known_or_refused(saved: Saved) -> None:
    family, lm = saved[0], plain(saved[1])
    if family.kind in KNOWN:
        assert Shape.from_config(lm.config.to_dict(), "it").base == sum(p.numel() for p in lm.parameters())
    else:
        with pytest.raises(ValueError, match=rf"it must be of a family whose memory is known .*; got {family.kind}\."):
            Shape.from_config(lm.config.to_dict(), "it")


def test_a_start_token_enters_with_the_state_before_it_grows(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some families multiply embeddings, in the embeddings' own module or behind it."""
    monkeypatch.setattr(sink, "GROWN", 1.1)  # random weights make no sink; what grows a little is taken for one
    lineage = load(saved[1]).lineage
    found = next(filter(None, (sink.find(lineage, token) for token in range(60, 120))))
    text = Packed.from_tokens([Tokens([found.token, 60, 70])])
    own = plain(saved[1])(text.input_ids[None], output_hidden_states=True).hidden_states
    entered = Backbone(plain(saved[1]), lineage, sink=found).hidden_states(text)[0][0]
    assert min(distance(entered, states[0, 0]) for states in own[:-1]) < 1e-5


def test_what_a_start_token_enters_with_is_exported(saved: Saved, tmp_path: Path) -> None:
    state = torch.randn(64, generator=torch.Generator().manual_seed(0))
    backbone = Backbone(plain(saved[1]), load(saved[1]).lineage, sink=Sink(0, state))
    folder = Encoder(backbone, Encoder.load(saved[1]).tokenizer, max_length=64).save(tmp_path / "encoder", "mntp")
    expected = Encoder.load(folder).encode(TEXTS)
    assert relative(Encoder.load(folder, keep_sink=False).encode(TEXTS), expected) > 1e-2
    export(str(folder), tmp_path / "out", "merged")  # which compares with an encoder that is changed already
    assert relative(Encoder.load(tmp_path / "out").encode(TEXTS), expected) < 1e-5


@pytest.mark.parametrize("kernel", ["sdpa", "varlen"])
def test_a_kernel_without_soft_caps_is_refused(kernel: str, tmp_path: Path, tiny_llama: Path) -> None:
    backbone = load(FAMILIES["gemma2"].save(tmp_path, tiny_llama), kernel=kernel)
    message = rf"auto or eager for a Gemma2Attention, .*softcap=5\); got {kernel}\. Use kernel: auto"
    with pytest.raises(ValueError, match=message):
        backbone(random_texts([3]))
