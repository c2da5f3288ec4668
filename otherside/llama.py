"""Names of the linear layers in a decoder layer of Llama, for adapters and, without loading torch, for their sizes."""

READERS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))  # of one tensor each
PROJECTIONS = tuple(name for group in READERS for name in group)
