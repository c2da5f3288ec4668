"""What is known of a decoder from its config.json, without loading torch: names of its linear layers, its limits."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

READERS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # of one tensor each
PROJECTIONS = tuple(name for group in READERS for name in group)


def positions(config: PreTrainedConfig) -> tuple[int, str] | None:
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


def check_length(what: str, length: int, config: PreTrainedConfig, remedy: str = "") -> None:
    """Raise a ValueError where texts of so many tokens are too long for a model; `what` names the requirement."""
    limit = positions(config)
    if limit and length > limit[0]:
        raise ValueError(f"{what} at most {limit[0]} tokens, {limit[1]}; got {length}. {remedy}".rstrip())
