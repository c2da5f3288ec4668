"""Bases that are .bin files only: read once without running what they hold, then safetensors like any other."""

from __future__ import annotations

import os
import pickle
import resource
import shutil
import time
from pathlib import Path

import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file
from tiny import nothing, pickled
from transformers import AutoModelForCausalLM

from otherside import conversion, files
from otherside.backbone import Backbone, BackboneConfig


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OTHERSIDE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found.update(load_file(file))
    return found


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("shard", [None, nothing])
def test_loads_as_the_same_weights_in_safetensors_do(count, shard, tiny_llama: Path, tmp_path: Path) -> None:
    folder = pickled(tiny_llama, tmp_path / "base", count)
    one = Backbone.load(BackboneConfig(str(folder)), None, shard)
    other = Backbone.load(BackboneConfig(str(tiny_llama)), None, shard)
    assert one.lineage.fingerprint == other.lineage.fingerprint
    assert one.lineage.base == str(folder)
    found = dict(one.lm.named_parameters())
    assert all(torch.equal(found[name], p) for name, p in other.lm.named_parameters())
    assert AutoModelForCausalLM.from_pretrained(conversion.fetch(str(folder), None), use_safetensors=True)


def test_is_done_once_and_found_by_content(tiny_llama: Path, tmp_path: Path, cache: Path) -> None:
    folder = pickled(tiny_llama, tmp_path / "base")
    first = conversion.fetch(str(folder), None)
    assert isinstance(first, Path) and first.parent == cache
    assert first.stat().st_mode & 0o777 == 0o755  # other users' jobs read it
    made = first.stat().st_mtime_ns
    moved = tmp_path / "elsewhere" / "base"
    shutil.copytree(folder, moved)
    assert conversion.fetch(str(moved), None) == first
    assert first.stat().st_mtime_ns == made
    config = (moved / "config.json").read_text()
    (moved / "config.json").write_text(config.replace("1e-06", "1e-05"))
    changed = conversion.fetch(str(moved), None)
    assert changed != first and (Path(changed) / "config.json").read_text() != config
    shutil.rmtree(changed)
    (moved / "config.json").write_text(config)
    weights = torch.load(moved / "pytorch_model.bin", weights_only=True)
    weights["model.norm.weight"] += 1
    torch.save(weights, moved / "pytorch_model.bin")
    second = conversion.fetch(str(moved), None)
    assert second != first
    assert sorted(cache.iterdir()) == sorted([first, Path(second)])  # nothing half done is left
    assert torch.equal(tensors(Path(second))["model.norm.weight"], tensors(first)["model.norm.weight"] + 1)


def test_safetensors_are_preferred(tiny_llama: Path, tmp_path: Path, cache: Path) -> None:
    folder = pickled(tiny_llama, tmp_path / "base")
    shutil.copy(tiny_llama / "model.safetensors", folder)
    assert conversion.fetch(str(folder), None) == folder
    assert not cache.exists()


def test_tied_weights_and_views(tmp_path: Path) -> None:
    whole = torch.arange(12.0).view(3, 4)
    torch.save({"a": whole, "b": whole, "row": whole[1], "turned": whole.T}, tmp_path / "pytorch_model.bin")
    found = tensors(Path(conversion.fetch(str(tmp_path), None)))
    assert torch.equal(found["a"], whole) and torch.equal(found["b"], whole)
    assert torch.equal(found["row"], whole[1]) and torch.equal(found["turned"], whole.T)


def test_files_of_before_zip(tiny_llama: Path, tmp_path: Path) -> None:
    weights = load_file(tiny_llama / "model.safetensors")
    torch.save(weights, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert tensors(Path(conversion.fetch(str(tmp_path), None))).keys() == weights.keys()


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("save", [torch.save, lambda it, path: path.write_bytes(pickle.dumps(it))])
def test_code_is_refused_and_not_run(save, tmp_path: Path, cache: Path) -> None:
    ran = tmp_path / "ran"
    save({"a": torch.ones(2), "b": Code(f"touch {ran}")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"without running code.*pytorch_model.bin.*Take a base with safetensors"):
        conversion.fetch(str(tmp_path), None)
    assert not ran.exists()
    assert list(cache.iterdir()) == []


def test_other_bad_files_are_named(tiny_llama: Path, tmp_path: Path) -> None:
    folder = pickled(tiny_llama, tmp_path / "base", 3)
    second = folder / "pytorch_model-00002-of-00003.bin"
    whole = second.read_bytes()
    second.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"pytorch_model-00002-of-00003.bin is no such file.*download it again"):
        conversion.fetch(str(folder), None)
    second.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no pytorch_model-00002-of-00003.bin"):
        conversion.fetch(str(folder), None)
    torch.save({"state": {"a": torch.ones(1)}}, second)
    with pytest.raises(ValueError, match=r"00002-of-00003.bin has more"):
        conversion.fetch(str(folder), None)


def test_one_file_is_in_memory_at_a_time(tmp_path: Path) -> None:
    count, size = 8, 40 * 2**20
    for i in range(count):
        torch.save({f"w{i}": torch.full((size // 4,), float(i))}, tmp_path / f"pytorch_model-{i:05}-of-{count:05}.bin")

    def grown() -> int:
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        conversion.fetch(str(tmp_path), None)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before

    [peak] = run_ranks(1, grown, group=False)
    assert peak < 3 * size  # the file, its tensors as safetensors takes them, and some


def test_of_several_processes_one_converts(tmp_path: Path) -> None:
    def make(work: Path) -> None:
        with (tmp_path / "made").open("a") as log:
            log.write("once\n")
        time.sleep(1)  # the others are here by then
        (work / "file").write_text("whole")

    found = run_ranks(4, lambda: files.made_once(tmp_path / "folder", make) / "file", group=False)
    assert {file.read_text() for file in found} == {"whole"}
    assert (tmp_path / "made").read_text() == "once\n"


class TestHub:
    """The hub's cache as it lies on the disk, with the hub switched off."""

    @pytest.fixture
    def hub(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        model = tmp_path / "hub" / "models--org--old-llama"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("c0ffee" * 6 + "beef")
        return model / "snapshots" / ("c0ffee" * 6 + "beef")

    def test_bin_files_are_converted_by_revision(self, hub: Path, tiny_llama: Path, cache: Path) -> None:
        pickled(tiny_llama, hub, 2)
        found = conversion.fetch("org/old-llama", None)
        assert found == cache / "old-llama-c0ffeec0ffeec0ff"
        assert tensors(Path(found)).keys() == load_file(tiny_llama / "model.safetensors").keys()

    def test_safetensors_stay_the_hubs(self, hub: Path, tiny_llama: Path, cache: Path) -> None:
        pickled(tiny_llama, hub)
        shutil.copy(tiny_llama / "model.safetensors", hub)
        assert conversion.fetch("org/old-llama", None) == "org/old-llama"
        assert not cache.exists()

    def test_what_is_not_there_is_named(self, hub: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"on the hub; org/another could not be downloaded"):
            conversion.fetch("org/another", None)
