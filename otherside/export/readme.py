"""README.md of an exported folder: what it is, how to open it, what to know. A model card for the hub."""

from __future__ import annotations

import re
from pathlib import Path

from otherside.encoder import Encoder
from otherside.export.parity import Kind, Reference
from otherside.lineage import Card
from otherside.tokenizer import start_name

FILE = "README.md"
LIBRARY = {"sentence-transformers": "sentence-transformers", "merged": "transformers", "onnx": "onnx"}
USE = {
    "sentence-transformers": """from sentence_transformers import SentenceTransformer  # with transformers 5.2 or newer

model = SentenceTransformer("{folder}")
vectors = model.encode(["The cat sat on the mat.", "Rain."])""",
    "merged": """from transformers import AutoModel, AutoTokenizer  # 5.2 or newer; AutoModelForCausalLM for its head

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModel.from_pretrained("{folder}")
batch = tokenizer(["The cat sat on the mat.", "Rain."], padding=True, return_tensors="pt")
vectors_of_tokens = model(**batch, use_cache=False).last_hidden_state""",
    "onnx": """import numpy, onnxruntime, tokenizers

tokenizer = tokenizers.Tokenizer.from_file("{folder}/tokenizer.json")
tokenizer.encode_special_tokens = True  # what spells a special token is text
session = onnxruntime.InferenceSession("{folder}/model.onnx")
read = tokenizer.encode_batch(["The cat sat on the mat.", "Rain."])
ids, mask = (numpy.array([getattr(text, name) for text in read]) for name in ("ids", "attention_mask"))
[vectors] = session.run(["sentence_embedding"], {{"input_ids": ids, "attention_mask": mask}})""",
}


def write(encoder: Encoder, card: Card, folder: Path, kind: Kind, reference: Reference, name: str) -> None:
    """Write README.md.

    Args:
        encoder: what was exported.
        card: its description.
        folder: with the export.
        kind: of export.
        reference: the encoder's vectors and settings.
        name: of the folder when it is in its place.
    """
    stages = [merged.name for merged in card.lineage.adapters]
    base = base_name(card.lineage.base)
    about = {
        "base": f"{base}{f', revision {card.lineage.revision}' if card.lineage.revision else ''}",
        "stages": " → ".join(stages) or "none",
        "attention": encoder.backbone.attention,
        "vector": f"{encoder.backbone.hidden_size} dimensions, pooled by {encoder.pooling}",
        "longest text": f"{encoder.max_length} tokens",
        "start token": f"`{start}`, {pooled(reference)}" if (start := start_name(encoder.tokenizer)) else "none",
    }
    lines = [
        "---",
        f"library_name: {LIBRARY[kind]}",
        "pipeline_tag: sentence-similarity",
        *([f"base_model: {base}"] if is_hub_id(card.lineage.base) else []),
        "tags: [feature-extraction, sentence-similarity, bidirectional-attention]",
        "---",
        "",
        f"# {name}",
        "",
        f"A text encoder made from {base} by otherside.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {key} | {value} |" for key, value in about.items()),
        "",
        "```python",
        USE[kind].format(folder=name),
        "```",
        "",
        *(f"- {said}" for said in [*notes(kind, encoder), *differences(kind, reference)]),
        *(f"- Weights of {merged.name}: SHA-256 `{merged.sha256}`" for merged in card.lineage.adapters),
    ]
    (folder / FILE).write_text("\n".join(lines) + "\n")


def notes(kind: Kind, encoder: Encoder) -> list[str]:
    """What its users must know in any case."""
    said = ["Vectors are compared by cosine."]
    if kind != "onnx" and encoder.backbone.attention == "bidirectional":
        said.append("Only transformers 5.2 and newer run it with its bidirectional attention; earlier ones are causal.")
    if kind == "onnx":
        said.append("Texts are padded on the right. The tokenizer cuts long ones, and puts the start token first.")
        said.append("`token_embeddings` are the tokens' vectors, to pool behind an instruction, for instance.")
    return said


def differences(kind: Kind, reference: Reference) -> list[str]:
    """Where its users get other vectors than the encoder's own."""
    said = []
    if kind == "sentence-transformers" and (why := reference.unequal_prompts):
        said.append(f"With a prompt sentence-transformers gives other vectors than the encoder: {why}.")
    elif kind == "sentence-transformers" and not reference.counted.all():
        said.append(
            "Behind a prompt that ends in a space, sentence-transformers pools that space, too, before texts whose "
            "first token does not take it in, such as digits in many tokenizers: other vectors than the encoder's."
        )
    if kind == "sentence-transformers" and reference.unit:
        said.append("sentence-transformers gives vectors of length 1.")
    if (template := reference.template) is not None:
        said.append(f"Vectors are of texts in this template, pooled from the text on: `{template.form!r}`.")
    return said


def pooled(reference: Reference) -> str:
    """Whether the start token is."""
    return "not pooled" if reference.pool_start is False else "pooled with the text"


def is_hub_id(base: str) -> bool:
    """Whether a base is named as on the hub, and is nothing here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", base) is not None and not Path(base).exists()


def base_name(base: str) -> str:
    """A base model's name without the place where it lies here."""
    return base if is_hub_id(base) else base.removesuffix("/").rpartition("/")[2]
