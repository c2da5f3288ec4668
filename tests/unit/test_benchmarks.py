"""What scripts in `benchmarks/` say of their numbers; nothing is measured here."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Loads a script as `python` does, but for its main."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: runpy.run_path(str(BENCHMARKS / f"{name}.py"))


class TestGPU:
    def test_nan_is_not_right(self, script: Any) -> None:
        all_below = script("gpu")["all_below"]
        assert all_below(0.1, {"kernel": "sdpa", "vectors": 0.01, "gradient": 0.02})
        assert not all_below(0.1, {"kernel": "sdpa", "vectors": 0.01, "gradient": float("nan")})

    def test_rows_are_kept_when_the_next_fails(
        self, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def rows(settings: Any) -> Iterator[tuple[str, dict[str, Any]]]:
            yield "fast", {"task": "mntp", "GB": 1.0}
            raise RuntimeError("the device is lost")

        main = script("gpu")["main"]
        main.__globals__["rows"] = rows
        monkeypatch.setattr(sys, "argv", ["benchmarks/gpu.py", "--device", "cpu", "--out", str(tmp_path)])
        with pytest.raises(RuntimeError, match="lost"):
            main()
        [kept], [text] = tmp_path.glob("*.json"), tmp_path.glob("*.md")
        assert json.loads(kept.read_text())["fast"] == [{"task": "mntp", "GB": 1.0}]
        assert f"Command: `python benchmarks/gpu.py --device cpu --out {tmp_path}`" in text.read_text()

    def test_a_peer_that_is_not_installed_is_a_note(self, script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        peer = script("gpu")["peer"]
        monkeypatch.setitem(sys.modules, "sentence_transformers", None)
        [row] = peer(None, "tiny", "contrastive", None, "torch.float32", None)
        assert row["memory"] == "sentence-transformers is not installed"


def test_contrastive_says_how_far_first_losses_are_apart(script: Any) -> None:
    loaded = script("contrastive")

    def case(*losses: float) -> Any:
        rounds = {str(i): [{"loss": loss}, {"loss": 9.0}] for i, loss in enumerate(losses)}
        return loaded["Comparison"]("a case", rounds | {"out of memory": []}, {})

    said = loaded["first_losses"]
    assert "at most 25.0%" in said([case(2.0, 2.5), case(2.0, 1.9), case(1.0)])
    assert "nan" in said([case(2.0, 2.5), case(2.0, float("nan"))])


@pytest.mark.parametrize(
    ("left", "printed", "where"),
    [
        ((), "", "settings and data"),
        ((), "fit in run: no checkpoint yet\n", "loading"),
        (("checkpoints/step=1.ckpt",), "fit in run\nstep 1/8\n", "training"),
        (("checkpoints/step=1.ckpt", "checkpoints/.step=2.ckpt.tmp"), "fit in run\nstep 2/8\n", "inside a save"),
        (("checkpoints/step=8.ckpt", ".encoder-a1"), "\nstep 8/8\n", "writing the encoder"),
        (("checkpoints/step=8.ckpt", "encoder"), "\nstep 8/8\n", "behind the encoder"),
    ],
)
def test_kills_says_where_a_run_was(
    left: tuple[str, ...], printed: str, where: str, script: Any, tmp_path: Path
) -> None:
    for folder in left:
        (tmp_path / folder).mkdir(parents=True)
    assert script("kills")["phase"](tmp_path, printed) == where
