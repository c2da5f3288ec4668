"""Names that may be meant; the whole command is tested in `tests/test_bad_input.py`."""

import pytest

from lightning_modules.suggestions import like


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("chunk_token", "chunk_tokens"),
        ("trainer.max_step", "max_steps"),
        ("checkpoint.every_n_steps", "checkpoints"),  # of sections, not of settings, which have a `checkpoint`, too
        ("SimSCE", "SimCSE"),
        ("alhpa", "alpha"),  # of `Lora | None`
        ("temprature", "temperature"),  # of `Distillation | None`, in the loss
    ],
)
def test_the_name_most_like_it(path, meant):
    assert like(path) == f"; did you mean {meant!r}?"


@pytest.mark.parametrize("path", ["xyzzy", "trainer.xyzzy", "trainer.max_steps", "Xyzzy"])
def test_none_where_none_is_like_it(path):
    assert like(path) == ""
