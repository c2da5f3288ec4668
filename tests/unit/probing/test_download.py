"""Fetching the published data from a real server on this machine."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest

from otherside.lineage import sha256
from otherside.probing.download import PROBING, WORDS, Published
from otherside.probing.download import fetch as fetch_published


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`; what it does wrong can be set."""

    files: dict[str, bytes]
    cut_after: int | None = None
    asked: list[str]
    published: Published


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = unquote(self.path.removeprefix("/data/"))
        self.server.asked.append(name)
        if name not in self.server.files:
            return self.send_error(404)
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.server.cut_after])
        return None

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    files = {"Task 1/a.txt": b"a" * 3000, "Task 2/b c.txt": b"b" * 50}
    running = Server(("127.0.0.1", 0), Handler)
    running.files, running.asked = files, []
    digests = {}
    for name, content in files.items():
        (tmp_path / "whole").write_bytes(content)
        digests[name] = sha256(tmp_path / "whole")
    address = f"http://127.0.0.1:{running.server_port}/data"
    running.published = Published("--data", "place", address, digests)
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


def fetch(server: Server, folder: Path) -> Path:
    return fetch_published(server.published, folder)


def test_fetches_what_is_missing_or_changed(server: Server, tmp_path: Path) -> None:
    folder = fetch(server, tmp_path / "data")
    for name, content in server.files.items():
        assert (folder / name).read_bytes() == content
    assert len(server.asked) == 2
    fetch(server, folder)
    assert len(server.asked) == 2, "all is there"
    (folder / "Task 2/b c.txt").write_bytes(b"changed")
    fetch(server, folder)
    assert server.asked[2:] == ["Task 2/b c.txt"]
    assert (folder / "Task 2/b c.txt").read_bytes() == server.files["Task 2/b c.txt"]


def test_a_cut_download_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.cut_after = 1000
    with pytest.raises(ConnectionError, match=r"a\.txt cannot be fetched: .*1000 bytes.* Run the same command again"):
        fetch(server, tmp_path)
    assert not list((tmp_path / "Task 1").iterdir())
    server.cut_after = None
    fetch(server, tmp_path)
    assert (tmp_path / "Task 1/a.txt").read_bytes() == server.files["Task 1/a.txt"]


def test_what_was_not_published_is_refused(server: Server, tmp_path: Path) -> None:
    good = server.files["Task 1/a.txt"]
    server.files["Task 1/a.txt"] = b"x" * 3000
    with pytest.raises(ValueError, match=r"a\.txt must have SHA-256 .*…; got .*…: it is not what the authors"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob("*a.txt*"))
    server.files["Task 1/a.txt"] = good
    fetch(server, tmp_path)


def test_no_such_file_and_no_server(server: Server, tmp_path: Path) -> None:
    del server.files["Task 2/b c.txt"]
    with pytest.raises(ConnectionError, match=r"b%20c\.txt cannot be fetched: HTTP Error 404.*name it with --data"):
        fetch(server, tmp_path)
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        fetch_published(replace(server.published, address="http://127.0.0.1:9/data"), tmp_path / "new")


def test_published_digests_are_those_of_the_published_files() -> None:
    from conftest import shared

    folder = shared("data/probing")
    assert len(PROBING.files) == 14 and len(WORDS.files) == 13
    for name, digest in PROBING.files.items():
        assert sha256(folder / name) == digest, name
