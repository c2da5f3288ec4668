"""LLM2Vec's MNTP training: its bidirectional Llama and head, in the trainer and with the collator of its `run_mntp`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from gate import SETTINGS, TASK, Gate

gate = Gate()

import torch
from datasets import Dataset
from llm2vec.models import LlamaBiForMNTP
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class MNTPTrainer(Trainer):
    """Counts what it reads."""

    tokens = 0

    def get_train_dataloader(self) -> Any:
        self._train_batch_size = SETTINGS["batch"]
        return super().get_train_dataloader()

    def _get_train_sampler(self) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        self.tokens = int(inputs["attention_mask"].sum())
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        self.seen = float(loss)
        return loss


class Rounds(TrainerCallback):
    """A round is what lies between the ends of two steps."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        gate.ready()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        gate.done(trainer.tokens, loss=trainer.seen)


def old_tokenizer(file: Path) -> PreTrainedTokenizerFast:
    """Written by newer tokenizers: merges were strings once."""
    content = json.loads(file.read_text())
    content["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in content["model"]["merges"]]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="_", pad_token="<|im_end|>")


def mntp() -> None:
    global trainer
    torch.manual_seed(42)
    tokenizer = old_tokenizer(Path(SETTINGS["merged"]) / "tokenizer.json")
    model = LlamaBiForMNTP.from_pretrained(
        SETTINGS["merged"], torch_dtype=getattr(torch, SETTINGS["dtype"]), attn_implementation="sdpa"
    )
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=SETTINGS["dropout"], target_modules=PROJECTIONS)
    model.model = get_peft_model(model.get_model_for_peft(), lora)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    lines = [line for line in Path(SETTINGS["texts"]).read_text().splitlines() if line]
    size = SETTINGS["max_length"]
    if SETTINGS["lines"]:
        ids = tokenizer(lines, truncation=True, max_length=size, return_special_tokens_mask=True)
        rows = [{key: ids[key][i] for key in ids} for i in range(len(lines))]
    else:
        tokens = [token for line in lines for token in tokenizer(line)["input_ids"]]
        rows = [
            {"input_ids": tokens[i : i + size], "attention_mask": [1] * size}
            for i in range(0, len(tokens) - size, size)
        ]
    with tempfile.TemporaryDirectory() as folder:
        trainer = MNTPTrainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=SETTINGS["steps"],
                per_device_train_batch_size=SETTINGS["batch"],
                learning_rate=5e-5,
                use_cpu=True,
                report_to="none",
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=DataCollatorForLanguageModeling(tokenizer=tokenizer, mlm_probability=0.2),
            callbacks=[Rounds()],
        )
        trainer.train()


globals()[TASK]()
