"""Instructions of training as prompts of sentence-transformers."""

import json
from pathlib import Path

import pytest
import sentence_transformers
from exports import PROMPTS, relative, trained, with_history

from otherside.encoder import Encoder
from otherside.export import export
from otherside.lineage import Card
from otherside.pooling import Pooling

TEXTS = ["the cat sat on the mat.", "a dog barked", "the next meeting"]  # whose first tokens take a space in


@pytest.mark.parametrize("base", ["tiny_llama", "tiny_llama_bos"])
@pytest.mark.parametrize("pooling", ["mean", "last_token"])
def test_those_of_training_give_the_same_vectors(
    base: str, pooling: Pooling, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Even where one ends in a space, which belongs to the first word's token."""
    folder = trained(request.getfixturevalue(base), tmp_path / "encoder", pooling, pool_start=False)
    with_history(folder, PROMPTS)
    export(folder, tmp_path / "out")
    assert ("pools that space" in (tmp_path / "out" / "README.md").read_text()) == (pooling == "mean")
    model = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert model.prompts == PROMPTS
    encoder, unit = Encoder.load(folder), pooling == "mean"
    ours = encoder.encode(TEXTS, instruction=PROMPTS["query"], normalize=unit)
    assert relative(model.encode_query(TEXTS), ours) < 1e-5
    assert relative(model.encode_document(TEXTS), encoder.encode(TEXTS, normalize=unit)) < 1e-5
    assert relative(ours, encoder.encode(TEXTS, normalize=unit)) > 1e-3
    ends_alike = [f"{text} {PROMPTS['query']}" for text in TEXTS]  # only a prompt alone is read without its space
    assert relative(model.encode(ends_alike), encoder.encode(ends_alike, normalize=unit)) < 1e-5


def test_others_may_be_given(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_history(trained(tiny_llama, tmp_path / "encoder"), PROMPTS)
    export(folder, tmp_path / "out", prompts={"query": "Find this:\n"})
    config = json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())
    assert config["prompts"] == {"query": "Find this:\n"}
    assert config["similarity_fn_name"] == "cosine"


def test_a_prompt_that_ends_inside_a_token_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end where a token ends.*query ends inside of one: 'Find n'.*--prompts"):
        export(str(tiny_llama), tmp_path / "out", prompts={"query": "Find n"})


def test_an_encoder_without_history(tiny_llama: Path, tmp_path: Path) -> None:
    """As folders of before are."""
    folder = Path(trained(tiny_llama, tmp_path / "encoder"))
    content = json.loads((folder / "encoder.json").read_text())
    assert content.pop("history")
    (folder / "encoder.json").write_text(json.dumps(content))
    assert Card.read(folder).prompts == {}
    export(str(folder), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config_sentence_transformers.json").read_text())["prompts"] == {}
