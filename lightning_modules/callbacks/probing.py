"""A few probes of word meaning while a stage trains: what words know of their left and their right."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
from typing_extensions import override

from lightning_modules.base import EncoderModule
from lightning_modules.callbacks.undisturbed import leave_out, publish, undisturbed
from otherside import distributed

if TYPE_CHECKING:
    from otherside.encoder import Encoder
    from otherside.probing.run import Material
    from otherside.probing.tasks import Input, Mention, Task

CHOSEN = ["subject_animacy", "object_animacy"]
OF_TEXTS = {"retrieval": "MRR", "similarity": "similarity", "generation": "perplexity"}  # file -> metric
FITTING = 6 * 3600.0  # seconds that ranks wait for rank 0, which fits the probes, longer than a step may take


class Probing(pl.Callback):
    """Logs what linear probes find in words, and what texts are worth, while a stage trains.

    `probe/TASK_WORD` is a probe's accuracy (of ratings, Pearson's correlation) on the last layer,
    `probe/anisotropy_…` are mean cosines, and whole texts are asked if files for it are named: before the first step,
    every n steps and at the end. Training goes on as if nothing had happened: the same random numbers, the same modes.
    `checkpoints.best` and `EarlyStopping` that watch one look at it right after.

    All ranks encode the same texts in the same order, as sharded weights need; rank 0 fits the probes.

    Args:
        every_n_steps: optimizer steps between two measurements.
        tasks: see `lightning probe`; the built-in sentences have subject_animacy and object_animacy.
        words: of tasks that ask every word of a sentence, these; 1 sees the rest of the sentence only with
            bidirectional attention, 5 is behind everything.
        data: builtin, published, or a folder; see `lightning probe`.
        items: train each probe on at most so many sentences, and test it on half as many; of the files below at most so
            many lines are read.
        retrieval: file as of `lightning probe`, for `probe/MRR`.
        similarity: file as of `lightning probe`, for `probe/similarity`.
        generation: file as of `lightning probe`, for `probe/perplexity`: causal, with the adapter on.
    """

    def __init__(
        self,
        every_n_steps: int = 100,
        tasks: list[str] = CHOSEN,
        words: list[int] = [1, 5],  # noqa: B006  # never changed; jsonargparse shows it as the default
        data: str = "builtin",
        items: int = 400,
        retrieval: str | None = None,
        similarity: str | None = None,
        generation: str | None = None,
    ) -> None:
        if every_n_steps < 1 or items < 20:
            raise ValueError(
                f"Probing needs every_n_steps of at least 1 and items of at least 20; got {every_n_steps} and {items}"
            )
        if wrong := [word for word in words if not 1 <= word <= 5]:
            raise ValueError(f"Probing: words must lie in 1 … 5; got {', '.join(map(str, wrong))}")
        self.every_n_steps, self.names, self.words, self.data, self.items = every_n_steps, tasks, words, data, items
        self.files = {"retrieval": retrieval, "similarity": similarity, "generation": generation}
        self._material: Material | None = None
        self._tasks: list[Task] = []
        self._random: list[Mention] = []
        self._measured = -1
        self.logged: list[str] = []  # the metrics' names

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        from otherside.probing.anisotropy import INSIDE, RANDOM, sample
        from otherside.probing.run import Material, load_tasks

        if stage != "fit":
            return
        self._material = Material.read({name: Path(file) for name, file in self.files.items() if file})
        if trainer.is_global_zero:  # it fetches what is missing, once
            load_tasks(self.data, self.names)
        trainer.strategy.barrier()
        self._tasks, random = load_tasks(self.data, self.names)
        self._random = sample(random, self.items)
        words = [f"{task.name}_{name}" for task in self._tasks for name in self._inputs(task)]
        texts = [name for file, name in OF_TEXTS.items() if self.files[file]]
        self.logged = [_metric(name) for name in (*words, f"anisotropy_{RANDOM}", f"anisotropy_{INSIDE}", *texts)]

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:  # a resumed run has been measured here before
            self._measure(trainer, pl_module)
        self._measured = trainer.global_step

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._measure(trainer, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._measure(trainer, pl_module)

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, EncoderModule)
        step = trainer.global_step
        if step == self._measured:  # with accumulated gradients several batches end at the same step
            return
        self._measured, began = step, time.perf_counter()
        found: dict[str, float] | str = "other ranks wait for rank 0"
        try:
            with undisturbed(pl_module):
                vectors, of_texts = self._vectors(pl_module.encoder), self._texts(pl_module.encoder)
                if trainer.is_global_zero:
                    found = {**self._fit(vectors), **of_texts}
        except Exception as error:
            if not trainer.is_global_zero:
                raise  # the watchdog tells the others
            found = f"{type(error).__name__}: {error}"
        distributed.meet(FITTING)
        found = trainer.strategy.broadcast(found)
        if isinstance(found, str):
            raise RuntimeError(
                f"the callback Probing failed at step {step}: {found}. Correct its settings, or leave it out of "
                "trainer.callbacks; the last checkpoint is whole."
            )
        said = "  ".join(f"{name.removeprefix('probe/')} {value:.3f}" for name, value in found.items())
        publish(trainer, found, step, f"probe at step {step}  {said}")
        leave_out(trainer, time.perf_counter() - began)

    def _inputs(self, task: Task) -> dict[str, Input]:
        """What probes of a task read, by name; of numbered words those that were asked for."""
        return {name: read for name, read in task.inputs.items() if not name.isdigit() or int(name) in self.words}

    def _items(self, task: Task) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training and test items."""
        from otherside.probing.tasks import SEED

        random = np.random.default_rng(SEED)  # tables may be sorted
        train, test = (random.permutation(items) for items in task.split(SEED))
        return train[: self.items], test[: self.items // 2]

    def _vectors(self, encoder: Encoder) -> dict[Mention, np.ndarray]:
        """Last-layer vectors of all words needed."""
        from otherside.probing.features import mention_vectors
        from otherside.probing.tasks import Mention, word_spans

        mentions = {
            m: None for task in self._tasks for i in np.concatenate(self._items(task)) for m in task.mentions[i]
        }
        for mention in self._random:
            mentions |= {Mention(mention.text, *span): None for span in [mention[1:], *word_spans(mention.text)]}
        wanted = list(mentions)
        return {wanted[i]: vector for i, [vector] in mention_vectors(encoder, wanted, [encoder.backbone.layers])}

    def _texts(self, encoder: Encoder) -> dict[str, float]:
        """What is asked of whole texts; all ranks come to the same."""
        from otherside.probing.generation import perplexity
        from otherside.probing.retrieval import retrieval
        from otherside.probing.similarity import similarity

        assert self._material is not None
        pairs, rated = self._material.pairs[: self.items], self._material.rated[: self.items]
        texts = self._material.texts[: self.items]
        found = {"probe/MRR": retrieval(encoder, pairs)[0].score.value} if pairs else {}
        found |= {"probe/similarity": similarity(encoder, rated)[0].score.value} if rated else {}
        return found | ({"probe/perplexity": perplexity(encoder, texts)} if texts else {})

    def _fit(self, vectors: dict[Mention, np.ndarray]) -> dict[str, float]:
        from otherside.probing.anisotropy import from_vectors
        from otherside.probing.probes import linear_probe
        from otherside.probing.scores import accuracy, regression

        found: dict[str, float] = {}
        for task in self._tasks:
            parts = self._items(task)
            for name, read in self._inputs(task).items():
                x, z = (read.read(np.stack([[vectors[m] for m in task.mentions[i]] for i in part])) for part in parts)
                predicted, wanted = linear_probe(x, task.targets[parts[0]], z), task.targets[parts[1]]
                metrics = regression(predicted, wanted) if task.regression else accuracy(predicted, wanted)
                value = metrics["pearson" if task.regression else "accuracy"].mean()
                found[_metric(f"{task.name}_{name}")] = float(value)
        for name, value in from_vectors(self._random, vectors).items():
            found[_metric(f"anisotropy_{name}")] = value
        return found


def _metric(name: str) -> str:
    return f"probe/{name.replace(' ', '_')}"
