"""Variants side by side in a plot, from what `lightning probe` measured.

python examples/compare.py runs/quickstart plot.png
"""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt

folder, out = sys.argv[1:]
TASK, METRIC = "retrieval", "MRR"
with (Path(folder) / "results.csv").open() as file:
    rows = [row for row in csv.DictReader(file) if (row["task"], row["metric"]) == (TASK, METRIC)]
values, lows, highs = ([float(row[name]) for row in rows] for name in ("value", "low", "high"))
down, up = ([abs(a - b) for a, b in zip(values, ends, strict=True)] for ends in (lows, highs))
plt.bar([row["variant"] for row in rows], values, yerr=[down, up], capsize=4)
plt.ylabel(f"{TASK}, {METRIC}")
plt.savefig(out, bbox_inches="tight")
