"""The drawn pictures: `python docs/site/figures.py` writes docs/pictures/*.svg, for light and for dark pages."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

PICTURES = Path(__file__).parents[1] / "pictures"
STYLE = """
svg{--page:#fff;--ink:#1f2430;--soft:#5b6472;--line:#8b93a1;--plain:#eef0f4;--one:#dbe4ff;--two:#d3f0e0;--three:#ffe3c7}
@media(prefers-color-scheme:dark){svg{--page:#1e2129;--ink:#eceff4;--soft:#aab2c0;--line:#7b8494;--plain:#2c313c;
--one:#2f3f73;--two:#1f5140;--three:#6b4420}}
text{font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink);text-anchor:middle}
.soft{fill:var(--soft)}.left{text-anchor:start}.bold{font-weight:600}
rect{stroke:var(--line)}.page{fill:var(--page);stroke:none}.none{fill:none;stroke-dasharray:4 3}
.plain{fill:var(--plain)}.one{fill:var(--one)}.two{fill:var(--two)}.three{fill:var(--three)}
path{fill:none;stroke:var(--line);stroke-width:1.5}.tip{fill:var(--line);stroke:none}
.see{stroke:#5c7cfa;stroke-width:2}.new{stroke:#2f9e6b;stroke-width:2}
"""


class Picture:
    """Boxes, words and arrows."""

    def __init__(self, width: int, height: int, says: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" width="{width}">'
            f"<title>{escape(says)}</title><style>{''.join(STYLE.splitlines())}</style>"
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
            f'<rect class="page" width="{width}" height="{height}" rx="8"/>'
        )
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, kind: str = "", size: int = 15) -> None:
        """A line of words, in the middle of x unless `left`."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" font-size="{size}" class="{kind}">{escape(words)}</text>')

    def box(self, x: float, y: float, w: float, h: float, *lines: str, kind: str = "plain", size: int = 15) -> None:
        """A box with lines of words, the first bold if there are several."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" class="{kind}"/>')
        step = size + 5
        top = y + h / 2 - step * (len(lines) - 1) / 2 + size * 0.35
        for i, line in enumerate(lines):
            first = i == 0 and len(lines) > 1
            self.text(
                x + w / 2, top + i * step, line, "bold" if first else "", size if first or len(lines) == 1 else 13
            )

    def arrow(self, x: float, y: float, to_x: float, to_y: float) -> None:
        """A straight arrow."""
        self.parts.append(f'<path d="M{x:g} {y:g}L{to_x:g} {to_y:g}" marker-end="url(#tip)"/>')

    def arc(self, x: float, to_x: float, y: float, kind: str) -> None:
        """An arc above a line of words: one looks at the other."""
        top = y - 14 - 0.32 * abs(to_x - x)
        self.parts.append(f'<path class="{kind}" d="M{x:g} {y:g}C{x:g} {top:g} {to_x:g} {top:g} {to_x:g} {y:g}"/>')

    def write(self, name: str) -> None:
        """Into docs/pictures."""
        (PICTURES / f"{name}.svg").write_text(self.head + "\n".join(self.parts) + "</svg>\n")


def idea() -> Picture:
    """The project in one picture."""
    picture = Picture(860, 430, "A causal Llama's word sees only its left; opened and trained, it sees both sides")
    words = ["She", "sat", "on", "the", "bank", "of", "the", "river"]
    for left, title, open_ in ((20, "a Llama: causal attention", False), (440, "an encoder: open attention", True)):
        centres = [left + 25 + 50 * i for i in range(8)]
        picture.text(left + 200, 32, title, "bold", 17)
        for i, (x, word) in enumerate(zip(centres, words, strict=True)):
            if i < 4 or (open_ and i > 4):
                picture.arc(centres[4], x, 146, "see" if i < 4 else "new")
            picture.box(x - 23, 148, 46, 32, word, kind="one" if i == 4 else "plain")
        says = (
            "“bank” knows what is to its left and its right" if open_ else "“bank” knows only what was said before it"
        )
        picture.text(left + 200, 206, says, "soft")
    picture.text(430, 256, "what makes one of the other, stage by stage", "bold", 17)
    stages = [
        ("plain", "uni", "the Llama"),
        ("one", "bi", "attention opened"),
        ("two", "mntp", "guess hidden words"),
        ("three", "simcse", "one sentence twice"),
        ("three", "supervised", "pairs of texts"),
    ]
    for i, (kind, name, what) in enumerate(stages):
        picture.box(20 + 168 * i, 276, 148, 56, name, what, kind=kind)
        if 0 < i < 4:
            picture.arrow(20 + 168 * i - 19, 304, 20 + 168 * i - 2, 304)
    picture.text(682, 308, "or", "soft", 13)
    for i, retrieval in enumerate((".33", ".68", ".76", ".89", ".95")):
        picture.text(94 + 168 * i, 362, retrieval, "bold", 18)
    picture.text(
        430,
        390,
        "finding the first sentences of 200 unseen articles by their descriptions (mean reciprocal rank)",
        "soft",
        14,
    )
    picture.text(430, 412, "a Llama of 135M parameters after minutes of training on two CPU cores", "soft", 14)
    return picture


def stages() -> Picture:
    """What starts from what."""
    picture = Picture(
        860, 260, "uni, bi, mntp, then simcse and supervised: each stage starts from the encoder of an earlier one"
    )
    picture.box(20, 100, 130, 60, "uni", "the base, causal")
    picture.box(205, 100, 150, 60, "bi", "attention opened", kind="one")
    picture.box(410, 100, 150, 60, "mntp", "hidden tokens", kind="two")
    picture.box(640, 30, 200, 60, "simcse", "sentences, no labels", kind="three")
    picture.box(640, 170, 200, 60, "supervised", "pairs, hard negatives", kind="three")
    picture.arrow(150, 130, 203, 130)
    picture.arrow(355, 130, 408, 130)
    picture.arrow(560, 118, 638, 66)
    picture.arrow(560, 142, 638, 194)
    picture.arrow(740, 90, 740, 168)
    picture.text(768, 135, "or", "soft")
    picture.text(178, 200, "nothing is trained", "soft", 14)
    picture.text(485, 200, "one LoRA adapter a stage", "soft", 14)
    return picture


def packing() -> Picture:
    """Padding against packing."""
    picture = Picture(860, 300, "Texts of different lengths: padded to the longest, or packed end to end with borders")
    lengths, colours = (9, 3, 6, 2), ("one", "two", "three", "plain")
    picture.text(20, 34, "padded: 36 places for 20 tokens", "left bold")
    for row, (length, colour) in enumerate(zip(lengths, colours, strict=True)):
        for i in range(9):
            picture.box(20 + 28 * i, 50 + 28 * row, 24, 24, "", kind=colour if i < length else "none")
    picture.text(330, 34, "packed: 20 places, and where each text begins", "left bold")
    x = 330
    for length, colour in zip(lengths, colours, strict=True):
        picture.arrow(x + 12, 82, x + 12, 54)
        for _ in range(length):
            picture.box(x, 86, 22, 24, "", kind=colour)
            x += 25
    picture.text(330, 138, "attention is told the borders: no text sees another", "left soft")
    picture.text(20, 206, "chunks: any batch in the memory of one chunk", "left bold")
    for i in range(4):
        picture.box(20 + 120 * i, 222, 108, 36, f"chunk {i + 1}", kind=colours[i])
    picture.arrow(502, 240, 556, 240)
    picture.box(560, 222, 120, 36, "all vectors")
    picture.arrow(682, 240, 726, 240)
    picture.box(730, 222, 110, 36, "one loss")
    picture.text(20, 284, "backward computes each chunk again instead of keeping its activations", "left soft")
    return picture


def plan() -> Picture:
    """From (seed, step) to the rows of a rank."""
    picture = Picture(860, 250, "A step's source, rows and shares of the ranks follow from seed and step alone")
    picture.box(20, 90, 130, 60, "seed, step", "nothing else", kind="one")
    picture.box(200, 90, 160, 60, "which source", "by its weight", kind="two")
    picture.box(410, 90, 170, 60, "which rows", "the global batch", kind="three")
    for x, to in ((150, 198), (360, 408)):
        picture.arrow(x, 120, to, 120)
    for i in range(4):
        picture.box(680, 24 + 52 * i, 160, 40, f"rank {i}: its share")
        picture.arrow(580, 120, 678, 44 + 52 * i)
    picture.text(20, 196, "every rank and every worker computes the same plan,", "left soft")
    picture.text(20, 218, "so 4 ranks and 2 see the same batch, and a resumed run goes on in the middle", "left soft")
    return picture


def sink() -> Picture:
    """The start token's state."""
    picture = Picture(
        860, 250, "The start token's state grows in a causal Llama, not in open attention, unless it is kept"
    )
    panels = [
        ("causal", "sees only itself: its state grows,", "attention rests on it", (1, 1, 10, 10), "one"),
        ("opened", "sees the text: its state stays small,", "what attention rests on is lost", (1, 1, 1, 1), "plain"),
        (
            "opened, sink kept",
            "enters with the state just before it grows:",
            "attention rests on it again",
            (1, 1, 10, 10),
            "two",
        ),
    ]
    for i, (title, first, second, sizes, kind) in enumerate(panels):
        left = 20 + 280 * i
        picture.text(left + 130, 32, title, "bold", 17)
        for layer, size in enumerate(sizes):
            height = 9 * size
            picture.box(left + 40 + 48 * layer, 150 - height, 34, height, "", kind=kind)
        picture.text(left + 130, 172, "layers →", "soft", 13)
        picture.text(left + 130, 202, first, "soft", 13)
        picture.text(left + 130, 222, second, "soft", 13)
    return picture


def lineage() -> Picture:
    """What is in which folder."""
    picture = Picture(860, 300, "A run's folder holds checkpoints to go on from and an encoder folder to use")
    picture.box(20, 20, 390, 260, "", kind="none")
    picture.text(36, 46, "runs/R/supervised: a run's folder", "left bold")
    picture.box(
        40,
        64,
        350,
        90,
        "checkpoints/step=100.ckpt",
        "adapter, optimizer, counters, identity",
        "goes on from here",
        kind="one",
    )
    picture.box(
        40,
        170,
        350,
        90,
        "encoder/",
        "adapters, tokenizer, pooling, encoder.json",
        "opens, exports, starts the next stage",
        kind="two",
    )
    picture.text(640, 46, "what an encoder is made of", "bold")
    for i, (words, kind) in enumerate(
        (("base model, never copied", "plain"), ("+ adapter of mntp", "two"), ("+ adapter of supervised", "three"))
    ):
        picture.box(500, 64 + 54 * i, 280, 42, words, kind=kind)
    picture.text(640, 246, "each adapter with the SHA-256 of its weights:", "soft", 14)
    picture.text(640, 266, "one that was changed is refused", "soft", 14)
    return picture


def words() -> Picture:
    """From a sentence to a probe."""
    picture = Picture(860, 250, "A word's vector is the mean of its tokens; a linear probe asks what the vector knows")
    tokens = ["<s>", "the", "dog", "chew", "ed", "the", "bone"]
    for i, token in enumerate(tokens):
        picture.box(20 + 64 * i, 30, 56, 34, token, kind="none" if i == 0 else "one" if i in (3, 4) else "plain")
    picture.text(20, 92, "start token: read, but no word", "left soft", 13)
    picture.arrow(240, 66, 268, 108)
    picture.arrow(304, 66, 276, 108)
    picture.box(190, 110, 164, 40, "vector of “chewed”", kind="one")
    picture.text(272, 172, "the mean of its tokens' vectors at one layer", "soft", 13)
    picture.arrow(356, 130, 470, 130)
    picture.box(474, 104, 150, 52, "linear probe", "new words in the test", kind="two", size=15)
    picture.arrow(626, 130, 690, 130)
    picture.box(694, 104, 146, 52, "is the subject", "animate?", kind="three")
    picture.text(
        20, 216, "The first word of a causal model cannot know what comes behind it: .50, chance.", "left soft"
    )
    picture.text(
        20,
        238,
        "In open attention it does: .92 on its subject, .81 on its object (quickstart, before training).",
        "left soft",
    )
    return picture


DRAWN = {each.__name__.replace("_", "-"): each for each in (idea, stages, packing, plan, sink, lineage, words)}

if __name__ == "__main__":
    for name, draw in DRAWN.items():
        draw().write(name)
