"""What an encoder is made of, and the file that says so: `encoder.json` in an encoder folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from otherside.template import Template

CARD = "encoder.json"
ENCODER = "encoder"  # the encoder folder inside a run's folder, or a checkpoint's
SINK = "sink.safetensors"  # the start token's state in it, where that is kept
RESCALE = "rescale.safetensors"  # factors of its vectors' dimensions, where those are rescaled
FORMAT = 5  # of cards with weights of the base's own among their stages; others stay as readable as they were
PLAIN_FORMAT = 4
BASE = "base"  # stage of a model that is no encoder folder
AUTO = "auto"  # start token of such a model: see `tokenizer.default_start`
OWN = "own"  # of format 1, which had no start token, and of LLM2Vec: whatever the tokenizer puts first
ADAPTER_WEIGHTS = "adapter_model.safetensors"
WEIGHTS = "model.safetensors"  # of a stage that trained the base's own
Kind = Literal["adapter", "weights"]


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path: Path, digest: str, what: str) -> Path:
    """`path`, of a file of an encoder folder, which holds `what`.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it has another SHA-256 than its card says.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{what} must be at {path}; there is no such file. Restore it.")
    if (found := sha256(path)) != digest:
        raise ValueError(
            f"{what} in {path} must have SHA-256 {digest[:12]}…; got {found[:12]}…. "
            "The file was changed after its stage ended: restore it, or train the stage again."
        )
    return path


@dataclass(frozen=True)
class Merged:
    """One stage of a lineage: what it left behind.

    Args:
        name: of the stage.
        folder: of its weights file; None where a later stage replaced all that it changed, and nobody needs the file.
        sha256: of its weights file.
        kind: an adapter, or weights of the base's own that take the place of those before.
    """

    name: str
    folder: str | None
    sha256: str
    kind: Kind = "adapter"

    @property
    def path(self) -> Path:
        """Of its weights file."""
        assert self.folder is not None
        return Path(self.folder) / (ADAPTER_WEIGHTS if self.kind == "adapter" else WEIGHTS)

    def check(self) -> None:
        """Raise unless the weights file is there and has the recorded SHA-256."""
        checked(self.path, self.sha256, f"{self.kind} {self.name!r}")


@dataclass(frozen=True)
class Lineage:
    """Where weights come from: a base model and what stages made of it, in order.

    Args:
        base: hub id, folder, .gguf file or pkg:// address of the base model.
        revision: of a hub id.
        fingerprint: of the base's weights (`adapters.fingerprint`); None if not taken.
        adapters: merged so far; also weights of stages that trained the base's own.
    """

    base: str
    revision: str | None = None
    fingerprint: str | None = None
    adapters: tuple[Merged, ...] = ()

    @property
    def files(self) -> list[Merged]:
        """The stages whose files are needed."""
        return [stage for stage in self.adapters if stage.folder is not None]

    @property
    def trained_whole(self) -> list[str]:
        """Names of the stages that trained the base's own weights: of those the base's are not inside."""
        return [stage.name for stage in self.adapters if stage.kind == "weights"]

    def extended(self, name: str, folder: Path, kind: Kind = "adapter") -> Lineage:
        """This lineage and the adapter, or the weights, in `folder`."""
        added = Merged(name, str(folder), "", kind)
        added = replace(added, sha256=sha256(added.path))
        return replace(self, adapters=(*self.adapters, added))


@dataclass(frozen=True)
class Parent:
    """One of the encoders that an average is of.

    Args:
        name: of its last stage.
        sha256: of that stage's weights file; None: the base itself.
        share: in the average.
    """

    name: str
    sha256: str | None
    share: float


@dataclass(frozen=True)
class Training:
    """What a stage was trained with, as far as its users must know.

    Args:
        stage: its name.
        steps: optimizer steps.
        data: its sources' paths.
        prompts: name -> instruction that texts had before them; `query` and `document` where all sources agree. Empty
            where there were none.
        dimensions: lengths at which its vectors may be cut (Matryoshka); empty: not trained for it.
        parents: of a stage that was not trained, but averaged.
    """

    stage: str
    steps: int = 0
    data: tuple[str, ...] = ()
    prompts: dict[str, str] = field(default_factory=dict)
    dimensions: tuple[int, ...] = ()
    parents: tuple[Parent, ...] = ()

    @classmethod
    def read(cls, said: dict[str, Any]) -> Training:
        """From what JSON has of it."""
        parents = tuple(Parent(**parent) for parent in said.get("parents", ()))
        lists = {"data": tuple(said["data"]), "dimensions": tuple(said["dimensions"]), "parents": parents}
        return cls(**{**said, **lists})

    def had(self, name: str, instruction: str) -> bool:
        """Whether texts had this instruction, as far as `prompts` say: `name` is `query` or `document`."""
        if not self.prompts or name in self.prompts:
            return instruction == self.prompts.get(name, instruction)
        return instruction in self.prompts.values() or (name == "document" and not instruction)

    @property
    def instructions(self) -> str:
        """Those of `prompts`, to be told."""
        return " or ".join(map(repr, dict.fromkeys(self.prompts.values())))


def instructions_of(history: Sequence[Training]) -> dict[str, str]:
    """Those of the last stage for queries and for documents, where all its sources agree."""
    prompts = history[-1].prompts if history else {}
    return {side: prompts[side] for side in ("query", "document") if prompts.get(side)}


@dataclass(frozen=True)
class Card:
    """An encoder folder's description.

    Args:
        lineage: base and stages; stages' folders are relative in the file, absolute here.
        stage: the variant's name: `uni`, `bi`, `mntp`, `simcse`, `supervised` or your own.
        steps: optimizer steps of the stage.
        attention: bidirectional or causal.
        pooling: see `pooling.Pooling`.
        max_length: longest text, in tokens.
        start_token: see `BackboneConfig`; by name, None for none.
        pool_start: see `pooling.weights`; None in format 1, which pooled it without instruction only.
        sink: SHA-256 of `sink.safetensors` (`sink.Sink`); None where the start token is like any other.
        template: what texts have around them; None: nothing.
        rescale: SHA-256 of `rescale.safetensors` (`rescale.measure`); None where vectors are states as they are.
        history: how its stages were trained; empty where it was not noted.
    """

    lineage: Lineage
    stage: str
    steps: int
    attention: str
    pooling: str
    max_length: int
    start_token: str | None
    pool_start: bool | None
    sink: str | None
    template: Template | None = None
    rescale: str | None = None
    history: tuple[Training, ...] = ()

    @property
    def prompts(self) -> dict[str, str]:
        """Those of the last stage."""
        return self.history[-1].prompts if self.history else {}

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Matryoshka sizes of the last stage."""
        return self.history[-1].dimensions if self.history else ()

    @property
    def keep_sink(self) -> bool:
        """As the setting of `BackboneConfig`."""
        return self.sink is not None

    @property
    def rescaled(self) -> bool:
        """Whether the dimensions of its vectors are rescaled."""
        return self.rescale is not None

    @staticmethod
    def is_at(folder: Path) -> bool:
        """Whether `folder` is an encoder folder."""
        return (folder / CARD).is_file()

    @classmethod
    def read(cls, folder: Path) -> Card:
        """The card of an encoder folder.

        Raises:
            ValueError: it is broken or of another format.
        """
        path = folder / CARD
        try:
            content = json.loads(path.read_text())
            if (found := content.pop("format")) not in range(1, FORMAT + 1):
                raise ValueError(f"its format must be {FORMAT}")
            if found == 1:
                content |= {"start_token": OWN, "pool_start": None}
            if found < 3:
                content["sink"] = None
            if content.get("template") is not None:
                content["template"] = Template(**content["template"])
            history = tuple(Training.read(stage) for stage in content.pop("history", ()))
            lineage = content.pop("lineage")
            merged = tuple(Merged(**{**stage, "folder": _inside(folder, stage)}) for stage in lineage.pop("adapters"))
            return cls(lineage=Lineage(**lineage, adapters=merged), history=history, **content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must describe an encoder, and cannot be read: {error!r}") from error

    def write(self, folder: Path) -> None:
        """Write `encoder.json`; stages' files must lie inside `folder`."""
        content = {"format": FORMAT if self.lineage.trained_whole else PLAIN_FORMAT, **asdict(self)}
        for stage in content["lineage"]["adapters"]:
            if content["format"] == PLAIN_FORMAT:
                del stage["kind"]
            stage["folder"] = stage["folder"] and str(Path(stage["folder"]).relative_to(folder))
        for stage in content["history"]:
            if not stage["parents"]:  # so that older versions read all but averages
                del stage["parents"]
        (folder / CARD).write_text(json.dumps(content, indent=2) + "\n")


def _inside(folder: Path, stage: dict[str, str | None]) -> str | None:
    """Where a stage's files are, by its entry in the card of the encoder folder."""
    return stage["folder"] and str((folder / stage["folder"]).resolve())
