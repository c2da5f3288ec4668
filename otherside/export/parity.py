"""Whether a folder gives the encoder's vectors: it is opened as its user will, and the vectors of many texts compared.

Shapes: N texts, L tokens of the longest, D hidden size.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from otherside import pooling
from otherside.batching import Packed, Tokens
from otherside.encoder import Encoder
from otherside.export import llama_cpp
from otherside.sink import silent
from otherside.template import Template, set_template, template_of
from otherside.tokenising import tokenise
from otherside.tokenizer import start_id

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

Kind = Literal["sentence-transformers", "merged", "onnx", "gguf"]
# Relative differences of vectors in float32. What is wrong for all texts shows in the median, however small it is; what
# is wrong for some, in the largest: a text cut a token early differs by 6e-3. Rounding alone is 1e-6, but up to 7e-5 in
# texts of a few words, in any order of sums and in the encoder itself (SmolLM2-135M, against float64): the state of a
# Llama's start token is 13,000 long, the last layers take that away again, and its rounding stays.
MEDIAN, LARGEST = 1e-5, 1e-3
BATCH = 8

# Mixed lengths, so that batches are padded; scripts, emoji, code, spaces; one longer than max_length. None begins with
# a space: it would join the end of the prompt, and sentence-transformers counts the prompt's tokens without the text.
TEXTS = [
    "",
    "a",
    ".",
    "Rain.",
    "42",
    "Snow fell.",
    "The cat sat on the mat.",
    "the cat sat on the mat",
    "Water boils at one hundred degrees Celsius at sea level.",
    "Paris is the capital of France, and Lyon its third-largest city.",
    "Die Würde des Menschen ist unantastbar. Straße, Öl, Äpfel, größer.",
    "Où est passée la naïveté de l'été ? Ça, c'est une question.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "東京は日本の首都であり、世界最大の都市圏を形成している。",
    "القاهرة هي عاصمة جمهورية مصر العربية وأكبر مدنها.",
    "नमस्ते दुनिया, आज मौसम अच्छा है।",
    "안녕하세요, 만나서 반갑습니다.",
    "Emoji: 👩‍🔬🏳️‍🌈 and a combining e\u0301 and a\u00a0no-break space.",
    "two spaces  between, three   and a tab\there",
    "def f(x):\n    return x ** 2  # squares\n",
    "https://example.org/path?query=value&other=1#fragment",
    "She opened the window and looked at the other side of the street, where nobody had lived for years.",
    "A dog barked at the postman all morning long, as dogs do; the postman, for his part, barked back.",
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20",
    "The committee could not agree on a date for the next meeting. " * 6,
    "A text that spells <|endoftext|>, <s>, </s> and <|begin_of_text|> is text all the same.",
    "One long text that every encoder has to cut somewhere, after as many tokens as it may take. " * 400,
]
FULL = np.array([bool(text) for text in TEXTS])
# Ends in a line break, because a space would join the text's first word
PROMPT = "Find a text that says the same:\n"


class ParityError(RuntimeError):
    """What was exported does not give the encoder's vectors."""


@dataclass(frozen=True)
class Reference:
    """What an export must reproduce.

    Args:
        plain: (N, D) vectors of `TEXTS`.
        prompted: (N, D) vectors of `TEXTS` with `prompt` before them.
        prompt: the first of the encoder's own, else `PROMPT`.
        counted: (N,) whether as many tokens stand before a text as sentence-transformers leaves out, which takes one
            number for all texts, whether a space at the prompt's end joins the first word or not. Never before an
            empty text, of which it leaves nothing.
        pooling: the encoder's.
        max_length: the encoder's.
        pool_start: the encoder's; None where it has no start token.
        has_start: whether it has one, so that an empty text has a token.
        template: the encoder's.
        prompts: that are offered by name.
    """

    plain: np.ndarray
    prompted: np.ndarray
    prompt: str
    counted: np.ndarray
    pooling: pooling.Pooling
    max_length: int
    pool_start: bool | None
    has_start: bool = True
    template: Template | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, encoder: Encoder, prompts: Mapping[str, str]) -> Reference:
        """Encode the texts, behind the first of the encoder's prompts, too."""
        prompt = next(filter(None, prompts.values()), PROMPT)
        plain, prompted = encoder.encode(TEXTS), encoder.encode(TEXTS, instruction=prompt)
        before = np.array([text.skip for text in tokenise(encoder.tokenizer, TEXTS, encoder.max_length, prompt)])
        counted = FULL & ((before == before[FULL].min()) | (encoder.pooling == "last_token"))
        has_start = start_id(encoder.tokenizer) is not None
        read = (encoder.pooling, encoder.max_length, encoder.pool_start if has_start else None, has_start)
        return cls(plain, prompted, prompt, counted, *read, template_of(encoder.tokenizer), prompts)

    @property
    def unequal_prompts(self) -> str:
        """Why sentence-transformers pools behind a prompt otherwise than the encoder; empty: it does not."""
        if self.pooling == "weighted_mean":
            return "it weights positions from the prompt on, not from the text"
        if self.pooling == "mean" and self.pool_start:
            return "it leaves the start token out of the mean together with the prompt"
        return ""

    def compared(self, prompt: str, kind: Kind, as_user: bool) -> np.ndarray:
        """Numbers of the texts whose vectors the tool can give."""
        if as_user and prompt:
            return np.flatnonzero(self.counted)
        needs_token = not self.has_start and not prompt and (as_user or kind == "gguf")
        return np.flatnonzero(FULL) if needs_token else np.arange(len(TEXTS))

    @property
    def unit(self) -> bool:
        """Whether the vectors exported have length 1, as leaving out the start token makes necessary."""
        return self.pooling == "mean" and self.pool_start is False


def check_parity(folder: Path, reference: Reference, kind: Kind) -> tuple[float, float]:
    """Open an exported folder as its user will and compare vectors, in float32, with and without a prompt.

    Where sentence-transformers cannot give equal vectors behind a prompt (`Reference.unequal_prompts`, `counted`),
    those are not compared; nor where llama.cpp pools the prompt, too.

    Returns:
        Median and largest relative difference of a vector.

    Raises:
        ParityError: they exceed `MEDIAN` or `LARGEST`.
    """
    as_user = kind == "sentence-transformers" and importlib.util.find_spec("sentence_transformers") is not None
    vectors = by_sentence_transformers if as_user else OWN_READERS.get(kind, by_transformers)
    prompts = {"": reference.plain, reference.prompt: reference.prompted}
    if (as_user and reference.unequal_prompts) or (kind == "gguf" and reference.pooling == "mean"):
        del prompts[reference.prompt]
    worst = (0.0, 0.0)
    for prompt, found in zip(prompts, vectors(folder, list(prompts), reference), strict=True):
        expected = prompts[prompt]
        if as_user and reference.unit:
            expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        if found.shape != expected.shape:
            raise ParityError(f"exported vectors must have shape {expected.shape}; got {found.shape}")
        rows = reference.compared(prompt, kind, as_user)
        sizes = np.linalg.norm(expected, axis=1).clip(np.finfo(np.float32).tiny)  # an unused token's may be 0
        differences = (np.linalg.norm(found - expected, axis=1) / sizes)[rows]
        differences = np.nan_to_num(differences, nan=np.inf)
        median, largest = float(np.median(differences)), float(differences.max())
        if median > MEDIAN or largest > LARGEST:
            text = TEXTS[rows[differences.argmax()]]
            raise ParityError(
                f"exported vectors must equal the encoder's to {MEDIAN:.0e} in the median and {LARGEST:.0e} each "
                f"(relative); with prompt {prompt!r} the median is {median:.1e}, and that of {text[:40]!r} differs by "
                f"{largest:.1e}. Nothing was exported. Use the tested versions (constraints.txt); if they are in use, "
                "please report it."
            )
        worst = max(worst[0], median), max(worst[1], largest)
    return worst


def by_sentence_transformers(folder: Path, prompts: Sequence[str], _: Reference) -> list[np.ndarray]:
    """(N, D) vectors of `TEXTS` behind each prompt, as `SentenceTransformer` gives them."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return [model.encode(TEXTS, prompt=prompt or None, batch_size=BATCH, show_progress_bar=False) for prompt in prompts]


@torch.no_grad()
def by_transformers(folder: Path, prompts: Sequence[str], reference: Reference) -> list[np.ndarray]:
    """(N, D) vectors of `TEXTS` behind each prompt: padded, with the attention that config.json asks for."""
    from transformers import AutoModel, AutoTokenizer

    with silent():  # about a head that is not read
        model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    set_template(tokenizer, reference.template)
    found = []
    for prompt in prompts:
        rows = []
        for batch in batches():
            texts = tokenise(tokenizer, batch, reference.max_length, prompt)
            padded = tokenizer.pad({"input_ids": [text.ids for text in texts]}, return_tensors="pt")
            hidden_NLD = model(**padded, use_cache=False).last_hidden_state
            rows.append(pooled(hidden_NLD, padded["attention_mask"], texts, reference))
        found.append(np.concatenate(rows))
    return found


def by_onnxruntime(folder: Path, prompts: Sequence[str], reference: Reference) -> list[np.ndarray]:
    """(N, D) vectors of `TEXTS` behind each prompt, without torch: the graph pools texts, and its token vectors can be
    pooled behind a prompt.
    """
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    session = InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    found = []
    for prompt in prompts:
        rows = []
        for batch in batches():
            read = tokenizer.encode_batch([prompt + text for text in batch])
            mask = np.array([text.attention_mask for text in read])
            fed = {"input_ids": np.array([text.ids for text in read]), "attention_mask": mask}
            vectors, hidden_NLD = session.run(["sentence_embedding", "token_embeddings"], fed)
            if prompt:
                texts = [behind(text, len(prompt)) for text in read]
                vectors = pooled(torch.from_numpy(hidden_NLD), torch.from_numpy(mask), texts, reference)
            rows.append(vectors)
        found.append(np.concatenate(rows))
    return found


def by_llama_cpp(folder: Path, prompts: Sequence[str], reference: Reference) -> list[np.ndarray]:
    """(N, D) vectors of `TEXTS` behind each prompt, which llama.cpp pools with the text."""
    filler = "" if reference.has_start else "a"  # it has no vector of no token
    texts = [prompt + text or filler for prompt in prompts for text in TEXTS]
    _, vectors = llama_cpp.embed(folder / "model.gguf", texts, reference.max_length, torch.get_num_threads())
    return np.split(np.array(vectors, dtype=np.float32), len(prompts))


OWN_READERS = {"onnx": by_onnxruntime, "gguf": by_llama_cpp}


def behind(read: Encoding, characters: int) -> Tokens:
    """What the `tokenizers` library read, without padding; its first characters are a prompt."""
    start = read.special_tokens_mask[0]
    skip = start + sum(1 for _ in takewhile(lambda place: place[1] <= characters, read.offsets[start:]))
    ids = read.ids[: sum(read.attention_mask)]
    return Tokens(ids, min(skip, len(ids) - 1), start)


def batches() -> Iterator[list[str]]:
    """`TEXTS` in order."""
    return (TEXTS[first : first + BATCH] for first in range(0, len(TEXTS), BATCH))


def pooled(hidden_NLD: torch.Tensor, mask_NL: torch.Tensor, texts: list[Tokens], reference: Reference) -> np.ndarray:
    """(N, D) vectors of padded texts as the encoder pools them."""
    packed = Packed.from_tokens(texts)
    return pooling.pool(hidden_NLD[mask_NL.bool()], packed, reference.pooling, reference.pool_start).numpy()
