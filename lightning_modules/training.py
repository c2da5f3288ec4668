"""LightningCLI with this project's defaults: what `lightning fit | validate | test | predict` run."""

from __future__ import annotations

import argparse
import errno
import fcntl
import logging
import os
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import datasets
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import (
    LSFEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

import lightning_modules.strategies  # noqa: F401  # their names in trainer.strategy
from lightning_modules import signals, suggestions, wandb
from lightning_modules.base import EncoderModule
from lightning_modules.callbacks import (
    MTEB,
    Best,
    Embeddings,
    EncoderFolder,
    Environment,
    Identity,
    Monitors,
    MTEBSettings,
    Probing,
    ProgressLines,
    Requeue,
    RunProgressBar,
    Throughput,
    Watchdog,
)
from lightning_modules.callbacks.monitors import validates
from lightning_modules.checkpoints import FolderCheckpointIO, by_step, going_on, newest
from lightning_modules.identity import given, settings
from lightning_modules.includes import with_includes
from lightning_modules.options import Exact
from otherside.files import tidy
from otherside.lineage import ENCODER
from otherside.waits import quiet_libraries

AFTERLIFE = 60.0  # seconds in which a requeued job's first life may still be ending, on a node that SLURM gave up
USAGE = "lightning {} --config STAGE.yaml [OPTIONS]"
UNTRAINED = "no checkpoint yet, so the adapter is untrained"


@dataclass
class Checkpoints:
    """When checkpoints are written, into `<trainer.default_root_dir>/checkpoints`.

    Args:
        every_n_steps: optimizer steps between two.
        keep: how many of the newest stay. At least 2, so that a torn one has one before it.
        best: a metric such as mteb/mean or val/loss; the checkpoint where it is best (a loss, perplexity or
            anisotropy: lowest) stays in `best/`, and `encoder/` is of that one. None: of the last step.
    """

    every_n_steps: int = 100
    keep: int = 2
    best: str | None = None

    def __post_init__(self) -> None:
        if self.every_n_steps < 1 or self.keep < 2:
            raise ValueError(
                f"checkpoints.every_n_steps must be at least 1 and checkpoints.keep at least 2; got "
                f"{self.every_n_steps} and {self.keep}"
            )


class HelpFormatter(argparse.RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of descriptions."""


class Parser(LightningArgumentParser, Exact):
    """Lightning's, without abbreviations."""


class TrainingCLI(LightningCLI):
    """One run, one folder: `trainer.default_root_dir` holds its logs, checkpoints, settings and encoder.

    Args:
        command: one of `fit`, `validate`, `test`, `predict`.
        arguments: what stands behind it.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        _quieten()
        self.command = command
        quiet: dict[str, Any] = {"exit_on_error": False}  # a wrong option is one line, not pages of usage
        quiet |= {"description": classes(), "formatter_class": HelpFormatter}
        super().__init__(
            EncoderModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=[command, *arguments],
            parser_class=Parser,
            seed_everything_default=42,
            parser_kwargs=quiet | {command: quiet | {"usage": USAGE.format(command)}},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            save_config_callback=SaveConfig if command == "fit" else None,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={
                "use_distributed_sampler": False,  # the data plan does the sharding
                "log_every_n_steps": 10,
                "num_sanity_val_steps": 0,
                "inference_mode": False,  # weights that are sharded are gathered in validation as in training
                "enable_model_summary": False,  # its table of one row says less than our line
            },
        )

    @override
    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning's is static
        """The one that runs; a parser of each would take a second."""
        return {self.command: super().subcommands()[self.command]}

    @override
    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--include", type=str | list[str] | None, help="YAML files read before this one")
        parser.add_class_arguments(Checkpoints, "checkpoints")
        parser.add_class_arguments(MTEBSettings, "mteb")
        parser.link_arguments("seed_everything", "model.init_args.seed")
        parser.link_arguments("seed_everything", "data.init_args.seed")
        parser.link_arguments("model.tokenizer", "data.init_args.tokenizer", apply_on="instantiate")
        parser.link_arguments("model.max_length", "data.init_args.predict_max_length", apply_on="instantiate")

    @property
    def root(self) -> Path:
        """The run's folder."""
        return Path(self._get(self.config, "trainer")["default_root_dir"])

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config, self.given = parser.parse_args(args), given(args[1:])

    @override
    def before_instantiate_classes(self) -> None:
        trainer = self._get(self.config, "trainer")
        if self.subcommand == "test" and not self._get(self.config, "mteb")["tasks"]:
            raise ValueError(
                "mteb.tasks must name what `lightning test` evaluates; got none. Set mteb.tasks: sts-fast."
            )
        if trainer["num_nodes"] > 1 and not trainer["plugins"] and not is_launched():
            raise ValueError(
                f"trainer.num_nodes must be 1 without a launcher that starts this command on each node; got "
                f"{trainer['num_nodes']}. Use slurm/submit or torchrun, or set MASTER_ADDR and NODE_RANK on each node."
            )
        if trainer["default_root_dir"] is None:
            raise ValueError("trainer.default_root_dir must name the run's folder, such as runs/my-recipe/mntp")
        if self.subcommand == "fit":
            signals.grace()  # refused now, not when the job is preempted
            if 0 in (trainer["max_steps"], trainer["max_epochs"]):
                raise ValueError("trainer.max_steps and max_epochs must be at least 1, or -1 for no limit; got 0")
        if self.subcommand == "fit" and signals.is_first():  # whose places Lightning hands to the other ranks
            self.lock = lock(self.root)
            for folder, name in (("checkpoints", "*.ckpt"), ("best", "*.ckpt"), (".", ENCODER)):
                tidy(self.root / folder, name)  # behind the lock: nobody else saves there
            wandb.at_home(trainer["logger"], self.root)

    @override
    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = {**self._get(self.config_init, "trainer", default={}), **kwargs}
        config["enable_progress_bar"] = config["enable_progress_bar"] is not False and sys.stderr.isatty()
        config["plugins"] = [*_as_list(config["plugins"]), FolderCheckpointIO()]
        if SLURMEnvironment.detect() and not TorchElasticEnvironment.detect():
            config["plugins"].append(SLURMEnvironment(auto_requeue=False))  # the callback Requeue does it, safely
        if self.subcommand in ("validate", "predict"):
            config["logger"] = False  # Lightning would log at step 0, whatever the checkpoint's
        elif config["logger"] is None:
            config["logger"] = TensorBoardLogger(self.root, name="", version="tensorboard")
        return self._instantiate_trainer(config, self._callbacks(config["enable_progress_bar"]))

    def _callbacks(self, bar: bool) -> list[Callback]:
        saving: Checkpoints = self._get(self.config_init, "checkpoints")
        progress = RunProgressBar() if bar else ProgressLines()
        checkpoint = LastToo(
            dirpath=self.root / "checkpoints",
            filename="{step}",
            monitor="step",
            mode="max",
            save_top_k=saving.keep,
            every_n_train_steps=saving.every_n_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )
        best = Best(self.root / "best", saving.best) if saving.best else None
        mteb: MTEBSettings = self._get(self.config_init, "mteb")
        evaluation = [MTEB(mteb)] if mteb.tasks else []
        self.identity = Identity(settings(self.config[self.subcommand].as_dict()), self.given)
        notes = [Environment(), EncoderFolder(self.identity, best)]
        checkpoints = [*([best] if best else []), checkpoint, Requeue()]
        return [Watchdog(), self.identity, progress, Throughput(), *evaluation, Monitors(), *checkpoints, *notes]

    @override
    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        options = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "predict":
            options["return_predictions"] = False  # they go to disk, however many they are
        if options.get("ckpt_path") in (None, "last"):
            best = subcommand != "fit" and self._get(self.config_init, "checkpoints").best
            found = options["ckpt_path"] = newest(self.root / ("best" if best else "checkpoints"))
            if subcommand != "fit" and signals.is_first():
                print(f"{subcommand} in {self.root}: {f'reads {found}' if found else UNTRAINED}", file=sys.stderr)
        elif subcommand == "fit":
            options["ckpt_path"] = going_on(Path(options["ckpt_path"]), self.root / "checkpoints")
        found = self.identity.checkpoint = options["ckpt_path"]
        self.trainer.callbacks.append(Embeddings(found))  # type: ignore[attr-defined]
        return options


class SaveConfig(SaveConfigCallback):
    """Writes the settings once `Identity`, which stands before it, has taken the run for what it was."""

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Not yet: some of what is compared is known only when the base is loaded."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().setup(trainer, pl_module, "fit")


class ParsedError(Exception):
    """Settings are in order; nothing was made of them."""


class Dry(TrainingCLI):
    """Reads settings as `lightning fit` does, and ends there."""

    @override
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        raise ParsedError


def check_settings(arguments: list[str]) -> None:
    """Raise, as `lightning fit ARGUMENTS` would, if a setting is not there or of another type. Loads no model."""
    with suppress(ParsedError):
        Dry("fit", with_includes(arguments))


class LastToo(ModelCheckpoint):
    """`ModelCheckpoint`, and a checkpoint of the last step, whatever its number: the weights of `encoder/`.

    Where a validation is due it is written behind that: a run that goes on does not make it up, and what is decided by
    it would be lost. Of all that are in the folder the newest stay. Lightning counts those of this life only, and
    spares the one that it resumed from: each resume would leave one.
    """

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self._every_n_train_steps == 0 and validates(trainer):
            self._defer_save_until_validation = True
        else:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):  # it is there already
            self._save_topk_checkpoint(trainer, self._monitor_candidates(trainer))

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        if trainer.is_global_zero:
            for older in by_step(Path(filepath).parent)[: -self.save_top_k]:
                trainer.strategy.remove_checkpoint(older)


def classes() -> str:
    """What a YAML may name, a line each, for the help; once imported, they are known by their short names too."""
    bases: dict[str, Any] = {
        "--model": LightningModule,
        "--data": LightningDataModule,
        "--trainer.callbacks+": Probing,
    }
    lines = [
        f"  {option} {kind.__name__:11} {str(kind.__doc__).splitlines()[0]}"
        for option, base in bases.items()
        for kind in suggestions.classes()
        if issubclass(kind, base)
    ]
    return "\n".join(["Stages, data and callbacks:", *lines, "", "--model.help NAME, and so on, list settings."])


def is_launched() -> bool:
    """Whether something, or somebody, has said which of several nodes this is."""
    by_hand = any(name in os.environ for name in ("MASTER_ADDR", "NODE_RANK", "GROUP_RANK"))
    environments = (SLURMEnvironment, TorchElasticEnvironment, LSFEnvironment)
    return by_hand or any(environment.detect() for environment in environments)


def _quieten() -> None:
    """Leave out what Lightning and transformers say to somebody else: adverts, hints, bars of a second."""
    for teller in ("pytorch.utilities.rank_zero", "fabric.utilities.seed"):  # adverts; the seed
        logging.getLogger(f"lightning.{teller}").setLevel(logging.WARNING)
    adverts = ("The `srun` command is", "Total length of `list`", ".*LeafSpec")
    for said in adverts:
        warnings.filterwarnings("ignore", message=said)
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor. is deprecated")  # its successor is too new
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # we resume there
    quiet_libraries()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def lock(root: Path) -> IO[str]:
    """A lock on a run's folder, held until this process ends, however it ends.

    Raises:
        RuntimeError: another process trains there.
        ValueError: nothing can be written there.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        file = (root / ".lock").open("w")
    except OSError as error:
        raise ValueError(f"trainer.default_root_dir must be a folder to write to; {root}: {error.strerror}") from error
    deadline = time.monotonic() + (AFTERLIFE if os.environ.get("SLURM_RESTART_COUNT") else 0)
    while not _locked(file):
        if time.monotonic() >= deadline:
            raise RuntimeError(
                f"one process at a time may train in {root}; another one does. Wait for it, end it, or choose another "
                "trainer.default_root_dir."
            )
        time.sleep(1)
    return file


def _locked(file: IO[str]) -> bool:
    try:  # not flock, which the loader workers of a killed run would hold for seconds: they inherit it
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        rank_zero_warn(f"{file.name} cannot be locked ({error.strerror}): see that one process at a time trains there")
    return True


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
