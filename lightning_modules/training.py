"""LightningCLI with this project's defaults: what `lightning fit | validate | test | predict` run."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
import transformers
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_modules.base import EncoderModule
from lightning_modules.callbacks import EncoderFolder, ProgressLines, RunProgressBar, Throughput
from lightning_modules.checkpoints import FolderCheckpointIO, newest
from lightning_modules.finished import is_finished


@dataclass
class Checkpoints:
    """When checkpoints are written, into `<trainer.default_root_dir>/checkpoints`.

    Args:
        every_n_steps: optimizer steps between two.
        keep: how many of the newest stay. At least 2, so that a torn one has one before it.
    """

    every_n_steps: int = 100
    keep: int = 2

    def __post_init__(self) -> None:
        if self.every_n_steps < 1 or self.keep < 2:
            raise ValueError(
                f"checkpoints.every_n_steps must be at least 1 and checkpoints.keep at least 2; got "
                f"{self.every_n_steps} and {self.keep}"
            )


class TrainingCLI(LightningCLI):
    """One run, one folder: `trainer.default_root_dir` holds its logs, checkpoints, settings and encoder."""

    @classmethod
    def run(cls, arguments: list[str]) -> None:
        """Parse and run one of `fit`, `validate`, `test`, `predict`."""
        _quieten()
        quiet = {"exit_on_error": False}  # a wrong option is one line, not pages of usage
        cls(
            EncoderModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=arguments,
            seed_everything_default=42,
            parser_kwargs=quiet | {command: quiet for command in cls.subcommands()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,  # the data plan does the sharding
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "enable_model_summary": False,  # its table of one row says less than our line
            },
        )

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--include", type=str | list[str] | None, help="YAML files read before this one")
        parser.add_class_arguments(Checkpoints, "checkpoints")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("model.tokenizer", "data.init_args.tokenizer", apply_on="instantiate")

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    @override
    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        if trainer["default_root_dir"] is None:
            raise ValueError("trainer.default_root_dir must name the run's folder, such as runs/my-recipe/mntp")
        if self.subcommand == "fit" and is_finished(self.root, trainer["max_steps"], trainer["max_epochs"]):
            print(f"{self.root} is finished: its encoder is in {self.root / 'encoder'}. Nothing to do.")
            sys.exit(0)
        if self.subcommand == "fit" and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            self.lock = lock(self.root)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["enable_progress_bar"] = config["enable_progress_bar"] is not False and sys.stderr.isatty()
        config["plugins"] = [*_as_list(config["plugins"]), FolderCheckpointIO()]
        if config["logger"] is None:
            config["logger"] = TensorBoardLogger(self.root, name="", version="tensorboard")
        return self._instantiate_trainer(config, self._callbacks(config["enable_progress_bar"]))

    def _callbacks(self, bar: bool) -> list[Callback]:
        settings: Checkpoints = self._get(self.config_init, "checkpoints")
        progress = RunProgressBar() if bar else ProgressLines()
        checkpoint = ModelCheckpoint(
            dirpath=self.root / "checkpoints",
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=settings.keep,
            every_n_train_steps=settings.every_n_steps,
            save_on_train_epoch_end=False,
        )
        return [progress, Throughput(), checkpoint, EncoderFolder()]

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        options = super()._prepare_subcommand_kwargs(subcommand)
        if options.get("ckpt_path") in (None, "last"):
            options["ckpt_path"] = newest(self.root / "checkpoints")
            done = f"resumes from {options['ckpt_path']}" if options["ckpt_path"] else "no checkpoint yet"
            print(f"{subcommand} in {self.root}: {done}", file=sys.stderr)
        return options


def _quieten() -> None:
    """Leave out what Lightning and transformers say to somebody else: adverts, hints, bars of a second."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    adverts = ("The `srun` command is", "Total length of `list`", "You have overridden `on_before_batch", ".*LeafSpec")
    for said in adverts:
        warnings.filterwarnings("ignore", message=said)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # we resume there
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()
        datasets.disable_progress_bars()


def lock(root: Path) -> IO[str]:
    """A lock on a run's folder, held until this process ends, however it ends.

    Raises:
        RuntimeError: another process trains there.
    """
    root.mkdir(parents=True, exist_ok=True)
    file = (root / ".lock").open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise RuntimeError(
            f"one process at a time may train in {root}; another one does. Wait for it, end it, or choose another "
            "trainer.default_root_dir."
        ) from error
    return file


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def with_includes(arguments: list[str]) -> list[str]:
    """Put the files that a YAML's `include:` names before it, as `--config` options of their own.

    `include` is a path or a list of paths, relative to the YAML that names them. Later files override earlier ones.
    """
    expanded: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        flag, equals, value = argument.partition("=")
        if flag in ("--config", "-c"):
            path = value if equals else next(rest, "")
            expanded += [option for file in includes(Path(path)) for option in ("--config", str(file))]
        else:
            expanded.append(argument)
    return expanded


def includes(path: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """`path` and, before it, the files that it includes.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is no YAML mapping, or includes itself.
    """
    if not path.is_file():
        asked = f", which {above[-1]} includes," if above else ""
        raise FileNotFoundError(f"--config must name a YAML file; {path}{asked} does not exist")
    if path in above:
        raise ValueError(f"include: {path} includes itself")
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} must be YAML: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings by name (a YAML mapping); got {type(content).__name__}")
    named = _as_list(content.get("include"))
    inner = [file for name in named for file in includes(Path(os.path.normpath(path.parent / name)), (*above, path))]
    return [*inner, path]
