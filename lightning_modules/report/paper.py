"""Published numbers to stand beside ours: "Learning to Look at the Other Side" (arXiv 2510.01652), Tables 4 to 7.

Multilayer perceptrons, last layer, one run each, without intervals. The columns are the variants of `VARIANTS`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from otherside.probing.findings import Cell
from otherside.probing.results import Result, Row
from otherside.probing.scores import Score

VARIANTS = ("uni", "mntp", "simcse", "supervised")  # there: (base), Bi+MNTP, Bi+MNTP+SimCSE, Bi+MNTP+Supervised
SHEARED = """
subject_animacy, 1, accuracy: .547 .976 .995 .988
subject_animacy, 2, accuracy: 1 .976 1 1
subject_animacy, 3, accuracy: .994 .916 .949 .98
subject_animacy, 4, accuracy: .996 .826 .949 .983
subject_animacy, 5, accuracy: .943 .766 .957 .993
verb_causative, 1, accuracy: .611 .958 .993 .998
verb_causative, 2, accuracy: .534 .968 .999 .995
verb_causative, 3, accuracy: 1 .991 1 1
verb_causative, 4, accuracy: .995 .96 .995 .999
verb_causative, 5, accuracy: .987 .939 .997 .999
verb_dynamic, 1, accuracy: .515 .972 .999 1
verb_dynamic, 2, accuracy: .494 .974 1 .999
verb_dynamic, 3, accuracy: 1 .983 1 1
verb_dynamic, 4, accuracy: .998 .954 .997 .999
verb_dynamic, 5, accuracy: .973 .935 .997 .997
object_animacy, 1, accuracy: .539 .85 .944 .993
object_animacy, 2, accuracy: .501 .877 .956 .995
object_animacy, 3, accuracy: .508 .96 .978 .989
object_animacy, 4, accuracy: .507 .995 .996 .999
object_animacy, 5, accuracy: 1 .999 1 1
telicity, word, accuracy: .8235 .7653 .8276 .8265
duration, word, accuracy: .9074 .875 .912 .9198
wic, absolute difference, accuracy: .5679 .5607 .6036 .6214
wic, cosine, accuracy: .575 .5179 .6286 .65
wic, concatenation, accuracy: .5786 .5464 .575 .5714
concreteness, word, pearson: .8219 .7157 .7983 .7958
concreteness, word, spearman: .7946 .7079 .7768 .7795
sensorimotor, word, pearson: .6408 .5788 .6484 .6572
sensorimotor, word, spearman: .5785 .4976 .573 .5798
"""

LLAMA2 = """
subject_animacy, 1, accuracy: .547 .999 .993 1
subject_animacy, 2, accuracy: 1 .998 1 1
subject_animacy, 3, accuracy: .995 .978 .984 .991
subject_animacy, 4, accuracy: .996 .908 .982 .987
subject_animacy, 5, accuracy: .962 .897 .994 .999
verb_causative, 1, accuracy: .611 .979 .998 1
verb_causative, 2, accuracy: .526 .99 1 .999
verb_causative, 3, accuracy: 1 1 1 1
verb_causative, 4, accuracy: 1 .986 .999 .999
verb_causative, 5, accuracy: .997 .978 .999 .999
verb_dynamic, 1, accuracy: .515 .985 .998 1
verb_dynamic, 2, accuracy: .515 .99 1 1
verb_dynamic, 3, accuracy: 1 .996 1 1
verb_dynamic, 4, accuracy: 1 .983 .999 1
verb_dynamic, 5, accuracy: .997 .978 1 .997
object_animacy, 1, accuracy: .544 .901 .991 .983
object_animacy, 2, accuracy: .496 .941 .996 .99
object_animacy, 3, accuracy: .497 .994 .988 .986
object_animacy, 4, accuracy: .51 .999 .996 .999
object_animacy, 5, accuracy: 1 .997 1 1
telicity, word, accuracy: .8388 .7316 .8531 .8531
duration, word, accuracy: .909 .8596 .9306 .9352
wic, absolute difference, accuracy: .5536 .5893 .5786 .5964
wic, cosine, accuracy: .5357 .5821 .6 .6179
wic, concatenation, accuracy: .55 .5964 .5786 .6179
concreteness, word, pearson: .7751 .4616 .7477 .8012
concreteness, word, spearman: .7635 .4503 .7628 .7879
sensorimotor, word, pearson: .6626 .4659 .6806 .6486
sensorimotor, word, spearman: .604 .5179 .6317 .5927
"""


@dataclass(frozen=True)
class Published:
    """One model of the paper.

    Args:
        name: as the paper has it.
        parameters: how many.
        table: a line per number: task, input, metric: values by variant.
    """

    name: str
    parameters: float
    table: str

    @cached_property
    def cells(self) -> dict[Cell, dict[str, float]]:
        """Values by variant of each number."""
        lines = [line.partition(": ") for line in self.table.strip().splitlines()]
        return {
            Cell(*cell.split(", ")): dict(zip(VARIANTS, map(float, values.split()), strict=True))
            for cell, _, values in lines
        }

    def value(self, variant: str, cell: Cell) -> float | None:
        """One number; None if the paper does not have it."""
        return self.cells.get(cell, {}).get(variant)

    def difference(self, variant: str, minus: str, cells: list[Cell]) -> float | None:
        """The mean of `variant - minus` over the cells; None unless the paper has all."""
        pairs = [(self.value(variant, cell), self.value(minus, cell)) for cell in cells]
        found = [one - other for one, other in pairs if one is not None and other is not None]
        return sum(found) / len(found) if found and len(found) == len(pairs) else None

    def result(self, variant: str) -> Result:
        """A variant's numbers as rows, to be drawn as ours are; without rows if the paper has no such variant."""
        rows = [
            Row(*cell[:2], "", 0, "mlp", "context", cell.metric, Score(value[variant], value[variant], value[variant]))
            for cell, value in self.cells.items()
            if variant in value
        ]
        return Result(variant, rows, {"probed": 0})


PUBLISHED = (Published("Sheared-Llama-1.3B", 1.3e9, SHEARED), Published("Llama2-7B", 6.7e9, LLAMA2))


def nearest(parameters: int | None) -> Published:
    """The paper's model that is nearest in size; the smaller one if the size is not known."""
    return min(PUBLISHED, key=lambda model: abs(math.log((parameters or 1) / model.parameters)))
