"""An export sent to a stand-in of the hub, which listens on this machine, by the real command."""

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from exports import trained

from otherside.export import export, readme
from otherside.export.push import opened_there, push

REPO = "someone/encoder"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload needs: files in the commit, and large ones in LFS."""

    asked: list[tuple[str, str]]
    created: dict[str, object]
    files: dict[str, bytes]
    refuse = False

    def answer(self, content: object, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/vnd.git-lfs+json" if "lfs" in self.path else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]))

    def do_POST(self) -> None:
        said = self.body()
        self.asked.append(("POST", self.path))
        root = f"http://{self.headers['Host']}"
        if self.refuse:
            self.answer({"error": "You may not."}, 403)
        elif self.path == "/api/repos/create":
            type(self).created = json.loads(said)
            self.answer({"url": f"{root}/{REPO}"})
        elif "/preupload/" in self.path:
            modes = [(file["path"], file["path"].endswith(".safetensors")) for file in json.loads(said)["files"]]
            files = [{"path": p, "uploadMode": "lfs" if big else "regular", "shouldIgnore": False} for p, big in modes]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(said)["objects"]
            here = [{**o, "actions": {"upload": {"href": f"{root}/lfs/{o['oid']}"}}} for o in objects]
            self.answer({"transfer": "basic", "objects": here})
        elif "/commit/" in self.path:
            for line in (json.loads(line) for line in said.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.files[value["path"]] = self.files.pop(value["oid"])
            self.answer({"success": True, "commitOid": "abc", "commitUrl": f"{root}/{REPO}/commit/abc"})
        else:
            self.answer({})

    def do_PUT(self) -> None:
        self.asked.append(("PUT", self.path))
        self.files[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_GET(self) -> None:
        self.asked.append(("GET", self.path))
        self.answer({"id": REPO, "sha": "abc"})

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[type[Hub], str]]:
    handler = type("OneHub", (Hub,), {"asked": [], "files": {}, "created": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="module")
def exported(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    export(trained(tiny_llama, folder / "encoder"), folder / "out")
    return folder / "out"


def command(endpoint: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    line = [sys.executable, "-m", "lightning_modules.cli", "push", *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


def test_one_commit_has_all_files(hub: tuple[type[Hub], str], exported: Path, tmp_path: Path) -> None:
    received, endpoint = hub
    exported = shutil.copytree(exported, tmp_path / "renamed since")
    ran = command(endpoint, str(exported), REPO, "--private")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.endswith(f"{REPO}/commit/abc\n")
    assert received.created["visibility"] == "private"
    assert sum("/commit/" in path for _, path in received.asked) == 1
    sent = {file.relative_to(exported).as_posix(): file.read_bytes() for file in exported.rglob("*") if file.is_file()}
    assert b'SentenceTransformer("someone/encoder")' in received.files["README.md"]
    for name in sent.keys() - {"README.md"}:
        assert received.files[name] == sent[name], name
    assert received.files.keys() == sent.keys()


@pytest.mark.parametrize("kind", readme.USE)
def test_what_the_readme_says_there(kind: str) -> None:
    own = '```python\nprint("of the user", "out")\n```\n'
    said = opened_there(f"{own}```python\n{readme.USE[kind].format(folder='out', length=64)}\n```", REPO)
    assert said.startswith(own)
    said = said.removeprefix(own)
    assert REPO in said and '"out' not in said
    assert ("snapshot_download" in said) == (kind in ("onnx", "gguf"))
    compile(said.split("```python\n")[1].split("```")[0], "README.md", "exec")


def test_a_dry_run_sends_nothing(hub: tuple[type[Hub], str], exported: Path) -> None:
    received, endpoint = hub
    ran = command(endpoint, str(exported), REPO, "--dry_run")
    assert ran.returncode == 0, ran.stderr
    assert not received.asked
    size = (exported / "model.safetensors").stat().st_size / 1e6
    assert f"{size:10.2f} MB  model.safetensors\n" in ran.stdout
    assert ran.stdout.endswith(f"{REPO}: nothing was sent\n")


def test_a_refusal_is_one_line(hub: tuple[type[Hub], str], exported: Path) -> None:
    received, endpoint = hub
    received.refuse = True
    ran = command(endpoint, str(exported), REPO)
    assert ran.returncode != 0
    assert ran.stderr.splitlines()[-1].startswith(f"error: the hub must take {REPO}, and does not: 403")


def test_bad_arguments(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"needs a folder that `lightning export` wrote"):
        push(tmp_path, REPO)
    for name in ("alone", "a/b/c", "some one/encoder"):
        with pytest.raises(ValueError, match="the repository must be ORG/NAME"):
            push(exported, name)
