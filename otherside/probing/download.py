"""Fetches the published probing data: checked by SHA-256, resumed where a download was cut."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from otherside import weights
from otherside.lineage import sha256

COMMIT = "474ec8d048eebf31a5ff5906eb995469d8fa4b41"
ADDRESS = f"https://raw.githubusercontent.com/Zhaoxin-Feng/semantic-probing-2025/{COMMIT}/data"
TIMEOUT = 30  # seconds without a byte
BY_HAND = "Run the same command again to go on, or put the published files into a folder and name it with --data."
FILES = {
    "Task1_Context-probes/object_animacy/test.txt": "32fb776531d083900e62b22c8cf9fe22b2cef8c19dc40457880cbedad6594f8f",
    "Task1_Context-probes/object_animacy/train.txt": "2392a0c921d1c4180e3549fb85f1d14b48ea2dbca671b29280947e3c4cceb154",
    "Task1_Context-probes/subject_animacy/test.txt": "cc766c2b02c21520b238cb4d5cf3639c7ce7a05da3f2fcb2d748be014030315b",
    "Task1_Context-probes/subject_animacy/train.txt": (
        "903b00d857796eb2d1295b8167de9ac17f954295db179f4ccb91cf8add1805e7"
    ),
    "Task1_Context-probes/verb_causative/test.txt": "c4313deb2d27c69e5f4e517fde197061c7c3a55d47b2caf9f2111b01bdd60e94",
    "Task1_Context-probes/verb_causative/train.txt": "d9d573571efc6b6d0f34c83520ed56da1cf2311f7ef9d87e33387ac0fca82225",
    "Task1_Context-probes/verb_dynamic/test.txt": "22ed540044518a01453bb499347ce8eae1814a869629becc987cbdd6f9de127e",
    "Task1_Context-probes/verb_dynamic/train.txt": "fa827149a92755d6e0d794a7444a15d4ec164f695c4acdf7c42f4fb8347ba7c4",
    "Task2_Lexical aspect binary classification/duration_train.txt": (
        "2df882c3ff88c11a51aef964accea8c016823d7452a167b51e856927d87f5547"
    ),
    "Task2_Lexical aspect binary classification/telicity_train.txt": (
        "4271fc9ea990329e723d4ecaf4f9ffe2aef3a060d659f085d798241ae8e256b0"
    ),
    "Task3_CONcreTEXT/CONcreTEXT_test_EN.txt": "6716baf9af44d8decc03d2ee152b3b79af5f2bf9de7b6b46637bcbdffc76fb74",
    "Task4_Sensorimotor norms/contextualized_sensorimotor_norms_with_ls.txt": (
        "464257a98a3d56e6d5a0f1873022ed03c606150a998da86cba73616baf2e1e7f"
    ),
    "Task5_Word-in-context/test.data.txt": "28befe601f5bdbc8e452e9538f6d3582a164647ad5949a9808a74908e70031f7",
    "Task5_Word-in-context/test.gold.txt": "a69386c579762d9ddf988a61896a2e912f402410185f5e8316007093799b341f",
}


def fetch(folder: Path | None = None, address: str = ADDRESS) -> Path:
    """The folder with all published files, fetching those that are missing or not what was published.

    Args:
        folder: where they go; None: the user's cache ($OTHERSIDE_CACHE).
        address: of the published folder.

    Raises:
        ConnectionError: a file cannot be had, or was cut; what came is kept, and the next call goes on behind it.
        ValueError: a file is not what was published.
    """
    folder = folder or weights.cache_folder() / "probing" / COMMIT[:12]
    for name, digest in FILES.items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(f"{address}/{urllib.parse.quote(name)}", path, digest)
    return folder


def _fetch(url: str, path: Path, digest: str) -> None:
    part = path.with_name(f".{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            goes_on = answer.status == http.client.PARTIAL_CONTENT
            with part.open("ab" if goes_on else "wb") as file:
                while block := answer.read1(1 << 16):
                    file.write(block)
                come, due = file.tell(), (have if goes_on else 0) + int(answer.headers.get("Content-Length", 0))
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # longer than the file
        raise ConnectionError(f"--data=published: {url} answers {error.code} {error.reason}. {BY_HAND}") from error
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"--data=published: {url} cannot be fetched: {error}. {BY_HAND}") from error
    if come < due:
        raise ConnectionError(f"--data=published: {url} was cut after {come} of {due} bytes. {BY_HAND}")
    if (found := sha256(part)) != digest:
        part.unlink()
        raise ValueError(
            f"--data=published: {url} must have SHA-256 {digest[:12]}…; got {found[:12]}…: it is not what the authors "
            f"published, or was changed on the way. {BY_HAND}"
        )
    part.replace(path)
