"""Graphs, run by ONNX Runtime and the tokenizers library alone."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from exports import TEXTS, relative, trained
from tiny import SMOLLM2
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from otherside.encoder import Encoder
from otherside.export import ParityError, export, onnx
from otherside.export.push import opened_there
from otherside.pooling import Pooling
from otherside.weights import resolve

SPELLING = "A text that spells </s> is text."


def vectors(folder: Path, texts: list[str]) -> np.ndarray:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    read = tokenizer.encode_batch(texts)
    fed = {"input_ids": [text.ids for text in read], "attention_mask": [text.attention_mask for text in read]}
    found: np.ndarray = session.run(
        ["sentence_embedding"], {name: np.array(rows, "int64") for name, rows in fed.items()}
    )[0]
    return found


of_one_graph = pytest.mark.xdist_group("onnx")  # so that it is made once


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """An encoder folder and its graph, which takes torch ten seconds."""
    place = tmp_path_factory.mktemp("onnx")
    folder = trained(tiny_llama, place / "encoder")
    export(folder, place / "out", kind="onnx")
    return folder, place / "out"


def copied(graph: Path) -> Callable[[onnx.Graph, Path], None]:
    """Takes the place of torch's writing: the graph in this folder, at once."""

    def copy(_: onnx.Graph, path: Path) -> None:
        for file in graph.glob(f"{onnx.MODEL}*"):
            shutil.copy(file, path.parent)

    return copy


def check(folder: str, out: Path) -> None:
    texts = ["", *TEXTS, SPELLING, "One long text that has to be cut. " * 30]
    ours = Encoder.load(folder)
    assert relative(vectors(out, texts), ours.encode(texts)) < 1e-5
    for batch in (TEXTS[:1], ["a"], [""], ["", ""]):  # other numbers of texts and tokens
        assert relative(vectors(out, batch), ours.encode(batch)) < 1e-5, batch
    assert relative(Encoder.load(folder, attention="causal").encode(TEXTS), ours.encode(TEXTS)) > 1e-3


@of_one_graph
def test_runs_without_torch(exported: tuple[str, Path]) -> None:
    check(*exported)


@pytest.mark.parametrize(
    ("base", "pooling", "pool_start"),
    [
        ("tiny_llama_bos", "mean", False),
        ("tiny_llama", "weighted_mean", False),
        ("tiny_llama_bos", "last_token", True),
    ],
)
def test_pools_as_the_encoder_does(
    base: str, pooling: Pooling, pool_start: bool, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder = trained(request.getfixturevalue(base), tmp_path / "encoder", pooling, pool_start=pool_start)
    export(folder, tmp_path / "out", kind="onnx")
    check(folder, tmp_path / "out")


def test_an_empty_text_without_a_start_token(tiny_llama: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    torch.nn.init.normal_(model.get_input_embeddings().weight.data)  # also of the token for padding, which was 0
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "base")
    folder = trained(tmp_path / "base", tmp_path / "encoder", start_token=None)
    export(folder, tmp_path / "out", kind="onnx")
    check(folder, tmp_path / "out")


@pytest.mark.slow
def test_a_real_llama(tmp_path: Path) -> None:
    """Whose few huge states make more of rounding than a tiny model's. They grow in its first layers; torch takes
    minutes for a graph of all 30.
    """
    base = str(tmp_path / "base")
    AutoModelForCausalLM.from_pretrained(resolve(SMOLLM2), num_hidden_layers=6).save_pretrained(base)
    AutoTokenizer.from_pretrained(resolve(SMOLLM2)).save_pretrained(base)
    export(base, tmp_path / "out", kind="onnx", dtype="int8")
    found, expected = vectors(tmp_path / "out", TEXTS), Encoder.load(base).encode(TEXTS)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.98


def test_a_causal_encoder_stays_causal(tiny_llama: Path, tmp_path: Path) -> None:
    folder = trained(tiny_llama, tmp_path / "encoder", "last_token", "causal")
    export(folder, tmp_path / "out", kind="onnx")
    assert relative(vectors(tmp_path / "out", TEXTS), Encoder.load(folder).encode(TEXTS)) < 1e-5


@of_one_graph
def test_what_the_readme_says_runs(exported: tuple[str, Path]) -> None:
    _, out = exported
    said = (out / "README.md").read_text().split("```python\n")[1].split("```")[0]
    show = "import sys; print(vectors.shape, 'torch' in sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", said + show], cwd=out.parent, capture_output=True, text=True, check=True
    )
    assert ran.stdout == "(2, 64) False\n"


@of_one_graph
def test_what_it_says_on_the_hub_runs(exported: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's copy is the folder itself, as there is no hub here."""
    _, out = exported
    said = opened_there((out / "README.md").read_text(), "someone/encoder")
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: asked.append(repo) or str(out))
    found: dict[str, np.ndarray] = {}
    exec(said.split("```python\n")[1].split("```")[0], found)
    assert (asked, found["vectors"].shape) == (["someone/encoder"], (2, 64))


def test_another_graph_is_refused(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = onnx.Graph.forward

    def off(self: onnx.Graph, input_ids, attention_mask):  # type: ignore[no-untyped-def]
        vectors, tokens = made(self, input_ids, attention_mask)
        return vectors * 1.01, tokens

    monkeypatch.setattr(onnx.Graph, "forward", off)
    with pytest.raises(ParityError, match="must equal the encoder's"):
        export(trained(tiny_llama, tmp_path / "encoder"), tmp_path / "out", kind="onnx")
    assert not (tmp_path / "out").exists()


@of_one_graph
def test_eight_bits_are_close_and_small(
    exported: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = exported
    monkeypatch.setattr(onnx, "_write_graph", copied(out))
    export(folder, tmp_path / "int8", kind="onnx", dtype="int8")
    assert re.search(r"mean cosine of (0\.99|1\.00)", capsys.readouterr().out)
    assert 1e-5 < relative(vectors(tmp_path / "int8", TEXTS), Encoder.load(folder).encode(TEXTS)) < 0.1
    small, large = (sum(f.stat().st_size for f in d.glob("model.*")) for d in (tmp_path / "int8", out))
    assert small < 0.7 * large


@of_one_graph
def test_vectors_that_are_not_close_are_refused(
    exported: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = exported
    monkeypatch.setattr(onnx, "_write_graph", copied(out))
    monkeypatch.setattr("otherside.export.CLOSE", 1.0)
    with pytest.raises(ParityError, match=r"mean cosine of 1\.0 or more"):
        export(folder, tmp_path / "out", kind="onnx", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_int8_is_onnx_only(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--dtype must be one of .* with --kind=merged; got int8"):
        export(str(tiny_llama), tmp_path / "out", kind="merged", dtype="int8")


def test_half_precision_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--dtype must be one of float32, int8 with --kind=onnx; got bfloat16"):
        export(str(tiny_llama), tmp_path / "out", kind="onnx", dtype="bfloat16")


def test_missing_packages_are_named(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ModuleNotFoundError, match=r"no onnxscript\. .*otherside\[onnx\]"):
        export(str(tiny_llama), tmp_path / "out", kind="onnx")
