"""What is asked of the hub, by its own library, of a server that answers as it does."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from otherside import llm2vec, modules, weights

REVISION = "v1"
COMMITS = {"main": "0" * 40, REVISION: "1" * 40}  # of all models
FILES = {  # of org/embedder since v1; org/llama has none of those that are asked for
    "modules.json": [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ],
    "1_Pooling/config.json": {"pooling_mode": "lasttoken"},
    "config.json": {"is_causal": False},
    "tokenizer_config.json": {"model_max_length": 300},
    "sentence_bert_config.json": {"max_seq_length": 200},
    "config_sentence_transformers.json": {"truncate_dim": 16},
    "modeling.py": None,
}


class Hub(BaseHTTPRequestHandler):
    """The part of its interface that downloads use."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        _, *parts = self.path.partition("?")[0].removeprefix("/api/models").split("/", 5)
        commit = COMMITS.get(parts[3], parts[3])
        content, error = self.found(parts, commit)
        self.send_response(404 if error else 200)
        self.send_header("X-Repo-Commit", commit)
        self.send_header("X-Error-Code" if error else "ETag", error or f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def found(self, parts: list[str], commit: str) -> tuple[bytes, str]:
        if parts[:2] not in (["org", "embedder"], ["org", "llama"]):
            return b"", "RepoNotFound"
        if commit not in COMMITS.values():
            return b"", "RevisionNotFound"
        files = FILES if parts[1] == "embedder" and commit == COMMITS[REVISION] else {}
        if parts[2] == "revision":
            return json.dumps({"id": "/".join(parts[:2]), "sha": commit, "siblings": []}).encode(), ""
        if parts[2] == "tree":
            return json.dumps([{"type": "file", "path": f, "size": 9, "oid": f} for f in files]).encode(), ""
        return (json.dumps(files[parts[4]]).encode(), "") if parts[4] in files else (b"", "EntryNotFound")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    pattern = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", pattern)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # before it asks again
    forget()
    yield server
    stop(server)
    forget()


def forget() -> None:
    llm2vec.downloaded.cache_clear()
    modules.downloaded.cache_clear()


def stop(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


def test_an_encoder_is_opened_by_all_that_it_says_without_its_code(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="truncate_dim: 16"):
        weights.card_of("org/embedder", REVISION)
    folder = tmp_path / "models--org--embedder" / "snapshots" / COMMITS[REVISION]
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert found == FILES.keys() - {"modeling.py"}
    (folder / "config_sentence_transformers.json").unlink()
    card = weights.card_of("org/embedder", REVISION)
    assert (card.attention, card.pooling, card.max_length) == ("bidirectional", "last_token", 200)
    assert weights.card_of("org/embedder").pooling == "mean", "its main was a base model yet"


def test_a_hub_that_does_not_answer_is_no_base_model(hub: ThreadingHTTPServer) -> None:
    stop(hub)
    for _ in range(2):  # it is asked again
        with pytest.raises(FileNotFoundError, match=r"org/llama: .*Without a network set HF_HUB_OFFLINE=1"):
            weights.card_of("org/llama")


@pytest.mark.parametrize("revision", [None, REVISION])
def test_what_it_said_before_is_known_without_it(hub: ThreadingHTTPServer, revision: str | None) -> None:
    assert weights.card_of("org/llama", revision).stage == "base"
    stop(hub)
    forget()
    assert weights.card_of("org/llama", revision).stage == "base"


def test_a_revision_that_is_none_is_named(hub: ThreadingHTTPServer) -> None:
    with pytest.raises(FileNotFoundError, match=r"(?s)org/llama: .*Revision Not Found"):
        weights.card_of("org/llama", "v2")


def test_switched_off_what_is_not_here_is_left_to_loading(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.card_of("org/llama").stage == "base"


@pytest.mark.parametrize("model", ["org/no--llama", "org/nothing"])
def test_what_is_none_of_its_models_is_left_to_loading(hub: ThreadingHTTPServer, model: str) -> None:
    assert weights.card_of(model).stage == "base"
