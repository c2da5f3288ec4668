"""README.md of an exported folder: what it is, how to open it, what to know. A model card for the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from otherside.encoder import Encoder
from otherside.export import origin
from otherside.export.parity import FULL, Kind, Reference
from otherside.hub import data_set
from otherside.lineage import Card, Training
from otherside.tokenizer import start_name

FILE = "README.md"
LIBRARY = {
    "sentence-transformers": "sentence-transformers",
    "merged": "transformers",
    "onnx": "onnx",
    "gguf": "llama.cpp",
}
EIGHT_BITS = ("int8", "q8_0")
KINDS = {"adapter": "an adapter", "weights": "full fine-tuning"}
USE = {
    "sentence-transformers": """from sentence_transformers import SentenceTransformer  # with transformers 5.2 or newer

model = SentenceTransformer("{folder}")
vectors = model.encode(["The cat sat on the mat.", "Rain."])""",
    "merged": """from transformers import AutoModel, AutoTokenizer  # 5.2 or newer; AutoModelForCausalLM for its head

tokenizer, model = AutoTokenizer.from_pretrained("{folder}"), AutoModel.from_pretrained("{folder}")
batch = tokenizer(["The cat sat on the mat.", "Rain."], padding=True, return_tensors="pt")
vectors_of_tokens = model(**batch, use_cache=False).last_hidden_state""",
    "onnx": """import numpy, onnxruntime, tokenizers

folder = "{folder}"
tokenizer = tokenizers.Tokenizer.from_file(f"{{folder}}/tokenizer.json")
tokenizer.encode_special_tokens = True  # what spells a special token is text
session = onnxruntime.InferenceSession(f"{{folder}}/model.onnx")
read = tokenizer.encode_batch(["The cat sat on the mat.", "Rain."])
ids, mask = (numpy.array([getattr(text, name) for text in read], "int64") for name in ("ids", "attention_mask"))
[vectors] = session.run(["sentence_embedding"], {{"input_ids": ids, "attention_mask": mask}})""",
    "gguf": """import json, http.client, xllamacpp  # 2026.10 or newer

folder, length = "{folder}", {length}
settings = xllamacpp.CommonParams()
settings.model.path, settings.embedding, settings.embd_normalize = f"{{folder}}/model.gguf", True, -1
settings.n_ctx, settings.n_batch, settings.n_ubatch = length + 1, length, length
settings.verbosity = 1  # errors
settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED  # has keys in 16 bits
server = xllamacpp.Server(settings)

def tokens(text):  # what spells a special token is text; long ones are cut
    connection = http.client.HTTPConnection(server.listening_address.removeprefix("http://"))
    asked = json.dumps({{"content": text, "add_special": True, "parse_special": False}})
    connection.request("POST", "/tokenize", asked)
    return json.load(connection.getresponse())["tokens"][:length]

read = [tokens(text) for text in ["The cat sat on the mat.", "Rain."]]
vectors = [row["embedding"] for row in server.handle_embeddings({{"input": read}})["data"]]""",
}


def write(
    encoder: Encoder,
    source: str,
    card: Card,
    folder: Path,
    kind: Kind,
    reference: Reference,
    name: str,
    dtype: str = "float32",
) -> None:
    """Write README.md, and the base's licence beside it.

    Args:
        encoder: what was exported.
        source: where it is, with the scores that its run measured.
        card: its description.
        folder: with the export.
        kind: of export.
        reference: the encoder's vectors and settings.
        name: of the folder when it is in its place.
        dtype: of the weights when it is. Scores are of the encoder, and no metadata of one in 8 bits.
    """
    place = origin.base_folder(card.lineage)
    origin.pass_on(place, folder)
    evaluation = origin.evaluated(source, card)
    scores = origin.scores(evaluation)
    base = base_name(card.lineage.base)
    data = {found for stage in card.history for path in stage.data if (found := data_set(path))}
    header = ModelCardData(
        model_name=name,
        base_model=base if is_hub_id(card.lineage.base) else None,
        library_name=LIBRARY[kind],
        pipeline_tag="sentence-similarity",
        tags=["feature-extraction", "sentence-similarity", "bidirectional-attention"],
        datasets=sorted(data) or None,
        eval_results=[found for task in scores.values() for found in task if dtype not in EIGHT_BITS] or None,
        **origin.licence(place),  # type: ignore[arg-type]
    )
    about = {
        "base": f"{base}{f', revision {card.lineage.revision}' if card.lineage.revision else ''}",
        "attention": encoder.backbone.attention,
        "vector": f"{encoder.backbone.hidden_size} dimensions, pooled by {encoder.pooling}, compared by cosine",
        **({"may be cut to": f"{', '.join(map(str, card.dimensions))} dimensions"} if card.dimensions else {}),
        "weights": dtype if dtype == "float32" else f"{dtype}, so vectors are close to the encoder's, not equal",
        "longest text": f"{encoder.max_length} tokens",
        "start token": f"`{start}`, {pooled(reference)}" if (start := start_name(encoder.tokenizer)) else "none",
    }
    lines = [
        f"---\n{header.to_yaml()}\n---\n",
        f"# {name}\n",
        f"A text encoder made from {base} by otherside.\n",
        *table(["", ""], [list(row) for row in about.items()]),
        "```python",
        USE[kind].format(folder=name, length=encoder.max_length),
        "```\n",
        *(f"- {said}" for said in [*notes(kind, encoder, reference), *differences(kind, reference)]),
        *prompts(kind, card.prompts if kind != "sentence-transformers" else reference.prompts),
        *stages(card),
        *measured(scores, evaluation.told if evaluation else "", dtype),
    ]
    (folder / FILE).write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a table, and an empty one."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]] + [""]


def prompts(kind: Kind, offered: Mapping[str, str]) -> list[str]:
    """Instructions by name, and how to ask for them."""
    if not offered:
        return []
    how = ": `model.encode_query(texts)`, `model.encode_document(texts)` or `model.encode(texts, prompt_name=NAME)`"
    said = f"Prompts, which texts had before them in training{how if kind == 'sentence-transformers' else ''}:"
    return ["", said, "", *table(["name", "text"], [[name, f"`{text!r}`"] for name, text in offered.items()])]


def stages(card: Card) -> list[str]:
    """How the base became the encoder."""
    adapters = card.lineage.adapters
    known = [None] * len(adapters) + list(card.history)
    rows = []
    for merged, told in zip(adapters, known[len(known) - len(adapters) :], strict=True):
        read = [path if data_set(path) else path.rpartition("/")[2] for path in told.data] if told else []
        steps = str(told.steps) if told else "not noted"
        trained = averaged(told) if told and told.parents else KINDS[merged.kind]
        rows.append([merged.name, trained, steps, ", ".join(read) or "not noted", f"`{merged.sha256}`"])
    names = ["stage", "trained", "steps", "data", "SHA-256 of its weights"]
    return ["", "Stages:", "", *table(names, rows)] if rows else []


def averaged(told: Training) -> str:
    """Of which encoders a stage is the average."""
    parents = [f"{p.share:g} × {p.name}{f' `{p.sha256[:12]}…`' if p.sha256 else ''}" for p in told.parents]
    return f"not: the average {' + '.join(parents)}"


def measured(scores: Mapping[str, Sequence[EvalResult]], how: str, dtype: str) -> list[str]:
    """Main scores of MTEB's tasks, as the run measured them."""
    how += "" if dtype == "float32" else f", before weights were rounded to {dtype}"
    means = {task: sum(result.metric_value for result in found) / len(found) for task, found in scores.items()}
    rows = [[task, scores[task][0].metric_name or "", f"{value:.4f}"] for task, value in means.items()]
    return ["", f"MTEB, measured by the run {how}:", "", *table(["task", "measure", "score"], rows)] if rows else []


def notes(kind: Kind, encoder: Encoder, reference: Reference) -> list[str]:
    """What its users must know in any case."""
    said = []
    if kind == "gguf":
        length = encoder.max_length
        said.append(f"In a server: `llama-server -m model.gguf --embeddings -c {length + 1} -ub {length} -fa off`.")
        said.append(
            "Asked for vectors of texts, the server reads what spells a special token as that token, and refuses texts "
            "that are too long. The lines above read it as text, and cut."
        )
    if kind in ("sentence-transformers", "merged") and encoder.backbone.attention == "bidirectional":
        said.append("Only transformers 5.2 and newer run it with its bidirectional attention; earlier ones are causal.")
    if kind == "sentence-transformers" and (commands := servers(encoder, reference)):
        said.append(f"In servers: {'; '.join(commands)}.")
    if kind == "onnx":
        said.append("Texts are padded on the right. The tokenizer cuts long ones, and puts the start token first.")
        said.append("`token_embeddings` are the tokens' vectors, to pool behind an instruction, for instance.")
    return said


def servers(encoder: Encoder, reference: Reference) -> list[str]:
    """What starts the servers that compute what the encoder does: Llamas only, as far as was read (docs/serving.md)."""
    config = encoder.backbone.lm.config
    if config.model_type != "llama" or encoder.pooling == "weighted_mean" or reference.unit:
        return []
    commands = ["`vllm serve FOLDER --runner pooling`"]
    if config.rope_parameters["rope_type"] == "default":
        commands.append("`text-embeddings-router --model-id FOLDER`")
    return commands


def differences(kind: Kind, reference: Reference) -> list[str]:
    """Where its users get other vectors than the encoder's own."""
    said = []
    if kind == "sentence-transformers" and (why := reference.unequal_prompts):
        said.append(f"With a prompt sentence-transformers gives other vectors than the encoder: {why}.")
    elif kind == "sentence-transformers" and not reference.counted[FULL].all():
        said.append(
            "Behind a prompt that ends in a space, sentence-transformers pools that space, too, before texts whose "
            "first token does not take it in, such as digits in many tokenizers: other vectors than the encoder's."
        )
    if kind == "sentence-transformers":
        where = "An empty text behind a prompt" if reference.has_start else "An empty text"
        said.append(f"{where} is a vector of zeros in sentence-transformers, which pools no token of it.")
    if kind == "gguf" and not reference.has_start:
        said.append("llama.cpp has no vector of an empty text, which has no token.")
    if kind == "gguf" and reference.pooling == "mean":
        said.append(
            "What stands before a text is pooled with it: an instruction gives other vectors than the encoder's."
        )
    if kind == "sentence-transformers" and reference.unit:
        said.append("sentence-transformers gives vectors of length 1.")
        said.append(
            "vLLM pools the start token all the same, so its vectors are others; text-embeddings-inference refuses."
        )
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
