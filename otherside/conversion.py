"""PyTorch's .bin checkpoints become safetensors once; a pickle is read without running what it holds."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shutil
import sys
import zipfile
from functools import cache
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor

from otherside import files, weights
from otherside.lineage import sha256

SAFE, PICKLED = "model*.safetensors", "pytorch_model*.bin"
INDEX = "model.safetensors.index.json"


def fetch(model: str, revision: str | None) -> str | Path:
    """What `weights.resolve` gives, here and with safetensors: a hub's files are downloaded, .bin files converted.

    What one process has fetched, the others of its machine find. So one rank of each node calls this before ranks wait
    for each other in a collective: a slow download or conversion must not be taken for a hang.

    Args:
        model: a base model, as `weights.locate` takes it.
        revision: of a hub id.

    Returns:
        A hub id that has safetensors as it is; else the folder with the weights.

    Raises:
        FileNotFoundError: there is no such model, or not all of its files.
        ValueError: a .bin file cannot be read without running code, or holds something else than tensors.
    """
    place = weights.resolve(model)
    if isinstance(place, Path):
        return place if has(place, SAFE) or not has(place, PICKLED) else converted(place, place.name, content(place))
    if has(download(place, revision, SAFE), SAFE):
        return place
    folder = download(place, revision, PICKLED)  # its name is the commit, whose files never change
    return converted(folder, place.rpartition("/")[2], folder.name) if has(folder, PICKLED) else place


def download(name: str, revision: str | None, pattern: str) -> Path:
    """A hub model's folder in the hub's cache, with its .json files and those of the pattern."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[pattern, "*.json"]))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"backbone.model must be a folder here or a model on the hub; {name} could not be downloaded: {error}"
        ) from error


def has(folder: Path, pattern: str) -> bool:
    """Whether a file of the pattern is there."""
    return next(folder.glob(pattern), None) is not None


def content(folder: Path) -> str:
    """Digest of what `convert` reads of a folder; takes about as long as reading it, once in a process."""
    return _digest(tuple((p, p.stat().st_mtime_ns) for p in sorted([*folder.glob(PICKLED), *folder.glob("*.json")])))


@cache
def _digest(seen: tuple[tuple[Path, int], ...]) -> str:
    return hashlib.sha256("".join(sha256(path) for path, _ in seen).encode()).hexdigest()


def converted(folder: Path, name: str, key: str) -> Path:
    """The folder in our cache with the weights of `folder` as safetensors, and its .json files; made on first use.

    Args:
        folder: with .bin files.
        name: of the model, for people who look into the cache.
        key: differs where the weights do.
    """
    return files.made_once(weights.cache_folder() / f"{name}-{key[:16]}", lambda work: convert(folder, work))


def convert(folder: Path, work: Path) -> None:
    """Write the weights of `folder` into `work`, one file after the other: no more than one is in memory."""
    print(f"turning .bin files of {folder} into safetensors, once", file=sys.stderr, flush=True)
    index: dict[str, str] = {}
    size = 0
    for file in shards(folder):
        name = f"{file.stem.replace('pytorch_model', 'model')}.safetensors"
        tensors = read(file)
        save_file(tensors, work / name, {"format": "pt"})
        index.update(dict.fromkeys(tensors, name))
        size += sum(tensor.nbytes for tensor in tensors.values())
    (work / INDEX).write_text(json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=1))
    for file in folder.glob("*.json"):
        if not file.name.endswith(".index.json"):
            shutil.copyfile(file, work / file.name)


def shards(folder: Path) -> list[Path]:
    """A folder's .bin files, all of those that its index names.

    Raises:
        FileNotFoundError: one is missing.
    """
    indices = sorted(folder.glob("pytorch_model*.index.json"))
    named = {name for index in indices for name in json.loads(index.read_text())["weight_map"].values()}
    if missing := sorted(name for name in named if not (folder / name).is_file()):
        raise FileNotFoundError(
            f"backbone.model must have all weights that {indices[0]} names; there is no {missing[0]}. Download it "
            "again."
        )
    return sorted(folder / name for name in named) or sorted(folder.glob(PICKLED))


def read(file: Path) -> dict[str, Tensor]:
    """The tensors of a .bin file by name, each with memory of its own.

    Raises:
        ValueError: the file cannot be read without running code, or holds something else than tensors.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        code = re.search(r"GLOBAL \S+", str(error))
        raise ValueError(
            "backbone.model must have weights that are read without running code (safetensors, or .bin with nothing "
            f"but tensors); {file} {f'holds {code[0]}' if code else 'is no such file'}. Take a base with safetensors, "
            "or download it again."
        ) from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"backbone.model must have .bin files with tensors by name and nothing else; {file} has more")
    tensors: dict[str, Tensor] = {}
    memory: set[int] = set()
    for name, tensor in found.items():  # safetensors takes no tensors that share memory, as tied weights do
        shared = tensor.untyped_storage().data_ptr() in memory
        tensors[name] = tensor.clone(memory_format=torch.contiguous_format) if shared else tensor.contiguous()
        memory.add(tensor.untyped_storage().data_ptr())
    return tensors
