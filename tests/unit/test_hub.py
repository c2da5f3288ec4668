"""What is asked of the hub, by its own library, of a server that answers as it does."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants

from otherside import llm2vec, modules, weights


class Hub(BaseHTTPRequestHandler):
    """A base model, without any of the files asked for."""

    def do_HEAD(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
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


def test_a_hub_that_does_not_answer_is_no_base_model(hub: ThreadingHTTPServer) -> None:
    stop(hub)
    for _ in range(2):  # it is asked again
        with pytest.raises(FileNotFoundError, match=r"org/llama: .*Without a network set HF_HUB_OFFLINE=1"):
            weights.card_of("org/llama")


def test_what_it_said_before_is_known_without_it(hub: ThreadingHTTPServer) -> None:
    assert weights.card_of("org/llama").stage == "base"
    stop(hub)
    forget()
    assert weights.card_of("org/llama").stage == "base"


def test_switched_off_what_is_not_here_is_left_to_loading(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert weights.card_of("org/llama").stage == "base"


def test_no_id_of_the_hub_is_left_to_loading(hub: ThreadingHTTPServer) -> None:
    assert weights.card_of("org/no--llama").stage == "base"
