"""Recipes of tests, whose steps are never run or, by `end`, have been."""

from __future__ import annotations

import json
from pathlib import Path

from lightning_modules import finished
from lightning_modules.identity import adapters, given


def write(folder: Path, name: str, model: str, root: str, extra: str = "") -> None:
    (folder / f"{name}.yaml").write_text(
        f"model: {{init_args: {{backbone: {{model: {model}}}}}}}\n"
        f"trainer: {{default_root_dir: {root}, max_steps: 2}}\n{extra}"
    )


def end(file: Path, root: Path, model: str = "base", steps: int = 2) -> None:
    """As if `lightning fit --config FILE` had ended there."""
    (root / finished.ENCODER).mkdir(parents=True, exist_ok=True)
    said = given(["--config", str(file)])
    finished.write(root, steps, 1, steps, -1, given=said, identity={"adapters": adapters(model)}, changes=[])


def mines(folder: Path, **settings: object) -> Path:
    """`negatives.yaml`, behind the encoder in runs/f."""
    asked = {"encoder": "runs/f/encoder", "pairs": "pairs.jsonl", "out": "runs/mined.jsonl", **settings}
    (folder / "negatives.yaml").write_text(json.dumps({"mine": asked}))
    return folder / "negatives.yaml"
