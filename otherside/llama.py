"""What is known of a decoder from its config.json, without loading torch: names of its linear layers, its limits."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}  # one layer, in a Phi-3
READERS = (*FUSED.values(), *((name,) for name in ("o_proj", "down_proj", *FUSED)))  # of one tensor each
KINDS = ("full_attention", "sliding_attention")  # of layers


def fused(targets: Iterable[str], names: Collection[str]) -> list[str]:
    """LoRA's targets, where a model whose layers have these names has one of them for several targets."""
    found = list(targets)
    for layer, parts in FUSED.items():
        if layer in names and set(parts) <= set(found):
            found = [layer if name == parts[0] else name for name in found if name not in parts[1:]]
    return found


def fills_in(model_type: str | None) -> bool:
    """Whether models of this type were trained to fill in masked words, bidirectional from the start, as BERT. Imports
    torch.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def check_decoder(config: PreTrainedConfig) -> None:
    """Raise a ValueError where what a model is made of cannot be turned; its attention itself is asked when it runs."""
    why = ""
    if config.get_text_config() is not config:
        why = "reads more than texts. Use the family's text-only model (of Gemma 3: gemma-3-270m or gemma-3-1b)"
    elif others := sorted({kind for kind in getattr(config, "layer_types", None) or () if kind not in KINDS}):
        why = f"has layers of {', '.join(others)}, which cannot be turned. Use another backbone.model"
    elif getattr(config, "use_bidirectional_attention", None) and getattr(config, "is_causal", None) is not False:
        why = "with use_bidirectional_attention is an encoder already, with windows of its own. Use its decoder"
    elif fills_in(config.model_type):
        why = "is an encoder, bidirectional from the start (`lightning probe` compares it). Use a Llama"
    if why:
        raise ValueError(
            f"backbone.model must be a decoder of texts with attention in all layers; a {config.model_type} {why}."
        )


def check_whole(missing: Iterable[str], base: str) -> None:
    """Raise a ValueError where a checkpoint lacks more than the head: transformers puts random weights in its place."""
    if lacks := sorted(name for name in missing if not name.startswith("lm_head.")):
        raise ValueError(
            f"a checkpoint must have all weights of its model; {base} lacks {len(lacks)}, as {', '.join(lacks[:3])}, "
            "and random ones would take their place. Download it again; see whether its config belongs to it."
        )


def positions(config: PreTrainedConfig | SimpleNamespace) -> tuple[int, str] | None:
    """Most tokens of a text, and why; None where the model sets no limit.

    RoPE of type dynamic or longrope takes the frequencies of all texts from the longest one, once that is longer than
    the original length: packed, a short text would depend on its company.
    """
    longest: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    limits: list[tuple[int, str]] = []
    for part in (rope, *(part for part in rope.values() if isinstance(part, dict))):
        if (kind := part.get("rope_type")) in ("dynamic", "longrope"):
            original = int(part.get("original_max_position_embeddings") or longest or 0)
            limits.append((original, f"behind which {kind} RoPE makes a text depend on the others of its batch"))
    if longest:
        limits.append((longest, f"the positions of a {(config.architectures or ['model'])[0]}"))
    return min(limits, key=lambda limit: limit[0], default=None)


def within(length: int, config: PreTrainedConfig) -> int:
    """At most `length` tokens, and no more than the model can read."""
    limit = positions(config)
    return min(length, limit[0]) if limit else length


def check_length(what: str, length: int, config: PreTrainedConfig, remedy: str = "") -> None:
    """Raise a ValueError where texts of so many tokens are too long for a model; `what` names the requirement."""
    limit = positions(config)
    if limit and length > limit[0]:
        raise ValueError(f"{what} at most {limit[0]} tokens, {limit[1]}; got {length}. {remedy}".rstrip())
