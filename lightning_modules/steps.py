"""The steps of a recipe, as its YAMLs have them: stages and mining, and which reads what another makes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

from lightning_modules import finished
from lightning_modules.finished import ENCODER
from lightning_modules.identity import adapters, given
from lightning_modules.includes import located, merged, with_includes

MINE = "mine"
CLI = ("-m", "lightning_modules.cli")


@dataclass(frozen=True)
class Stage:
    """One stage's YAML: what it reads, where it writes.

    Args:
        file: the YAML.
        model: `backbone.model`.
        root: its run's folder.
        rows: paths of its data's sources.
    """

    file: Path
    model: str
    root: str
    rows: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its YAML."""
        return self.file.stem

    @property
    def reads(self) -> tuple[str, ...]:
        """What must be there before it."""
        return (self.model, *self.rows)

    @property
    def makes(self) -> tuple[str, ...]:
        """Where it writes, first; and what others read there."""
        return (self.root, f"{self.root}/{ENCODER}")

    def command(self, overrides: Sequence[str]) -> list[str]:
        """What Python is to run for it."""
        return [*CLI, "fit", "--config", str(self.file), *overrides]

    def is_finished(self, overrides: Sequence[str] = ()) -> bool:
        """Whether it has run to its end with these settings and on this encoder; said without the seconds of starting a
        process. Where it is in doubt, `lightning fit` finds out, and says what was changed.
        """
        now = given(with_includes(["--config", str(self.file), *overrides]))
        max_steps, max_epochs = now.get("trainer.max_steps"), now.get("trainer.max_epochs")
        note = finished.ended(Path(self.root), max_steps or -1, max_epochs) or {}
        limits = ("trainer.max_steps", "trainer.max_epochs")
        before, now = ({k: v for k, v in values.items() if k not in limits} for values in (note.get("given", {}), now))
        return before == now and note["identity"]["adapters"] == adapters(
            self.model, now.get("model.backbone.revision")
        )


@dataclass(frozen=True)
class Mining:
    """The YAML of a `lightning mine` between two stages.

    Args:
        file: the YAML.
        model: the encoder that mines.
        pairs: what it mines negatives for.
        out: the file with them.
        given: arguments of `lightning mine`, as its report has them.
    """

    file: Path
    model: str
    pairs: str
    out: str
    given: Mapping[str, Any] = field(compare=False)  # may hold what has no hash

    @classmethod
    def of(cls, file: Path, settings: Mapping[str, Any]) -> Mining:
        """From what the YAML has under `mine:`.

        Raises:
            ValueError: a setting is missing, or is none of `lightning mine`.
        """
        # By name, as a YAML has it: data modules and stages never import each other
        known = signature(import_module("datamodules.mining").mine).parameters
        needed = [name for name, parameter in known.items() if parameter.default is Parameter.empty]
        unknown = [str(name) for name in settings if name not in known]
        if unknown or not all(settings.get(name) for name in needed):
            wrong = f"has no {', '.join(unknown)}" if unknown else f"needs {', '.join(needed)}"
            raise ValueError(f"{file}: {MINE} must have arguments of `lightning {MINE}`, which {wrong}; got {settings}")
        model, pairs, out = (str(settings[name]) for name in ("encoder", "pairs", "out"))
        defaults = {name: parameter.default for name, parameter in known.items()}
        return cls(file, model, pairs, out, {**defaults, **settings})

    @property
    def name(self) -> str:
        """Of its YAML."""
        return self.file.stem

    @property
    def reads(self) -> tuple[str, ...]:
        """What must be there before it."""
        return (self.model, self.pairs)

    @property
    def makes(self) -> tuple[str, ...]:
        """What others read."""
        return (self.out,)

    def command(self, overrides: Sequence[str]) -> list[str]:
        """What Python is to run for it; options of stages are none of its."""
        return [*CLI, MINE, "--config", str(self.file)]

    def is_finished(self, overrides: Sequence[str] = ()) -> bool:
        """Whether this was mined by this encoder, as asked. Where it is in doubt, `lightning mine` finds out."""
        try:
            made = json.loads(Path(f"{self.out}.report.json").read_text())
            used = [f"{each['name']} {each['sha256']}" for each in made["settings"]["encoder"]["lineage"]["adapters"]]
            same = all(self.given.get(name) == value for name, value in made["given"].items())
        except (AttributeError, KeyError, OSError, TypeError, ValueError):  # not there, torn, or of an older version
            return False
        return Path(self.out).is_file() and same and used == adapters(self.model)


Step = Stage | Mining


def told(step: Step) -> str:
    """A step, for people."""
    return f"{step.file} ({step.model} -> {step.makes[0]})"


def stages(folder: Path) -> list[Stage]:
    """The stages among the steps of a recipe, in order; raises as `steps`."""
    return [step for step in steps(folder) if isinstance(step, Stage)]


def steps(folder: Path) -> list[Step]:
    """The steps of a recipe, each behind those whose encoder or rows it reads.

    Raises:
        FileNotFoundError: the folder has no stage.
        ValueError: a YAML is broken, two steps write to one place, or steps wait for each other.
    """
    folder = located(folder)
    if not folder.is_dir():
        alone = f"{folder} is a file. One stage: lightning fit --config {folder}"
        got = alone if folder.is_file() else f"there is no folder {folder}"
        raise FileNotFoundError(f"a recipe must be a folder with a YAML per stage; {got}")
    found = [step for file in sorted(folder.glob("*.yaml")) if (step := read(file))]
    if not found:
        raise FileNotFoundError(f"a recipe must be a folder with a YAML per stage; {folder} has none")
    by_place = {resolved(step.makes[0]): step for step in found}
    for step in found:
        if (other := by_place[resolved(step.makes[0])]) is not step:
            raise ValueError(
                f"each stage of {folder} must have a trainer.default_root_dir of its own, and each {MINE} an out; "
                f"{step.file.name} and {other.file.name} share {step.makes[0]}"
            )
    try:
        return list(TopologicalSorter({step: behind(step, found) for step in found}).static_order())
    except CycleError as error:
        names = " and ".join(dict.fromkeys(step.file.name for step in error.args[1][:2]))
        raise ValueError(
            f"steps of {folder} wait for each other: {names}. See what they read: backbone.model and data.sources, or "
            f"encoder and pairs of {MINE}."
        ) from error


def behind(step: Step, among: Iterable[Step]) -> list[Step]:
    """The steps that make what this one reads."""
    return [other for other in among if any(matches(path, made) for path in step.reads for made in other.makes)]


def matches(path: str, made: str) -> bool:
    """Whether a path or glob that a step reads is what another makes, however the two are written."""
    return resolved(made) == resolved(path) or resolved(made).match(str(resolved(path)))


def resolved(path: str) -> Path:
    """The same for all ways to write it."""
    return Path(path).expanduser().resolve()


def read(file: Path) -> Step | None:
    """The step in a YAML; None if it only holds settings that others include.

    Raises:
        ValueError: it mines, and lacks what to mine, has what mining does not know, or is a stage, too.
    """
    content = merged(file)
    if MINE in content:
        if "model" in content:
            raise ValueError(f"{file} must be a stage or mine; it has model: and {MINE}:. Make two files of it.")
        return Mining.of(file, content[MINE] if isinstance(content[MINE], dict) else {})
    try:
        model = content["model"]["init_args"]["backbone"]["model"]
        root = content["trainer"]["default_root_dir"]
    except (KeyError, TypeError):
        return None
    return Stage(file, str(model), str(root), _rows(content))


def _rows(content: dict[str, Any]) -> tuple[str, ...]:
    """Paths of what a stage trains on and is validated with; `lightning fit` says what is wrong with them."""
    try:
        data = content["data"]["init_args"]
        paths = [row["path"] for row in [*data["sources"], *(data.get("val_sources") or [])]]
    except (AttributeError, KeyError, TypeError):
        return ()
    return tuple(str(one) for path in paths for one in (path if isinstance(path, list) else [path]))
