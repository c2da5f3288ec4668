"""Fetching the published data from a real server on this machine."""

from __future__ import annotations

import http.server
import re
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
    ranges = True
    asked: list[tuple[str, str | None]]
    published: Published


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = unquote(self.path.removeprefix("/data/")), self.headers.get("Range")
        self.server.asked.append((name, wanted))
        if name not in self.server.files:
            return self.send_error(404)
        content, status = self.server.files[name], 200
        if wanted and self.server.ranges:
            first = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1])  # type: ignore[index]
            if first >= len(content):
                return self.send_error(416)
            content, status = content[first:], 206
        self.send_response(status)
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
    assert server.asked[2:] == [("Task 2/b c.txt", None)]
    assert (folder / "Task 2/b c.txt").read_bytes() == server.files["Task 2/b c.txt"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_is_resumed(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.cut_after, server.ranges = 1000, ranges
    with pytest.raises(ConnectionError, match=r"a\.txt was cut after 1000 of 3000 bytes\. Run the same command again"):
        fetch(server, tmp_path)
    assert not (tmp_path / "Task 1/a.txt").exists()
    server.cut_after = None
    fetch(server, tmp_path)
    assert server.asked[1] == ("Task 1/a.txt", "bytes=1000-")
    assert (tmp_path / "Task 1/a.txt").read_bytes() == server.files["Task 1/a.txt"]
    assert not list(tmp_path.rglob("*.part"))


def test_what_was_not_published_is_refused(server: Server, tmp_path: Path) -> None:
    good = server.files["Task 1/a.txt"]
    server.files["Task 1/a.txt"] = b"x" * 3000
    with pytest.raises(ValueError, match=r"a\.txt must have SHA-256 .*…; got .*…: it is not what the authors"):
        fetch(server, tmp_path)
    assert not list(tmp_path.rglob("*a.txt*")), "neither kept nor gone on with"
    server.files["Task 1/a.txt"] = good
    fetch(server, tmp_path)


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    (tmp_path / "Task 1").mkdir()
    (tmp_path / "Task 1/.a.txt.part").write_bytes(b"z" * 5000)
    with pytest.raises(ConnectionError, match="answers 416"):
        fetch(server, tmp_path)
    fetch(server, tmp_path)


def test_no_such_file_and_no_server(server: Server, tmp_path: Path) -> None:
    del server.files["Task 2/b c.txt"]
    with pytest.raises(ConnectionError, match=r"b%20c\.txt answers 404 .*name it with --data"):
        fetch(server, tmp_path)
    with pytest.raises(ConnectionError, match="cannot be fetched"):
        fetch_published(replace(server.published, address="http://127.0.0.1:9/data"), tmp_path / "new")


def test_published_digests_are_those_of_the_published_files() -> None:
    from conftest import shared

    folder = shared("data/probing")
    assert len(PROBING.files) == 14 and len(WORDS.files) == 13
    for name, digest in PROBING.files.items():
        assert sha256(folder / name) == digest, name
