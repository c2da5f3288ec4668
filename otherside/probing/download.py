"""Fetches published data, checked by SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from otherside import weights
from otherside.files import atomic
from otherside.lineage import sha256

GITHUB = "https://raw.githubusercontent.com"
TIMEOUT = 30  # seconds without a byte


@dataclass(frozen=True)
class Published:
    """Files that can be fetched.

    Args:
        option: of `lightning probe` that names them.
        place: folder in the cache; another version has another.
        address: of their folder.
        files: SHA-256 by path in it.
    """

    option: str
    place: str
    address: str
    files: dict[str, str]

    @property
    def by_hand(self) -> str:
        """What can be done where they cannot be fetched."""
        return (
            "Run the same command again to go on, or put the published files into a folder and name it with "
            f"{self.option}."
        )


_FILES = {
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


PROBING = Published(
    "--data",
    "probing/474ec8d048ee",
    f"{GITHUB}/Zhaoxin-Feng/semantic-probing-2025/474ec8d048eebf31a5ff5906eb995469d8fa4b41/data",
    _FILES,
)
_WORDS = {
    "EN-MC-30.txt": "33ee05911496ff83d95cac351d0746c6f63b9181b605cb7d307f4daa8864511b",
    "EN-MEN-TR-3k.txt": "888b13580faa362c7b11da0a670258cf1b1eb4bf0ecbcd418918729a3bd3f43a",
    "EN-MTurk-287.txt": "a9ae3a9decb75a9700fe0cf18b048c1344774d9f40e0196baf8e34d4cd9d1ce5",
    "EN-MTurk-771.txt": "04dc297c9e86b6fa7cf8ef0e4ba2e2c8d3399ec68d92fb7a53c0b4aae27198b5",
    "EN-RG-65.txt": "c243f3a91c3f5d8cf67f21a67f6fb80bde8b6bb060851a6a48e6f2d68ec98c9f",
    "EN-RW-STANFORD.txt": "5108d54dfc746f44f9c3d7e31d2857c37cf71430bc1594175a61a3b89bb0ae1f",
    "EN-SIMLEX-999.txt": "405394ffb7d25f6d0e3c041f87c9f27d29dc6b047506769953e85c4523b11685",
    "EN-SimVerb-3500.txt": "9d84274e7ad029fd3cf69dd0516e9ade624bbef9bd4e2050f6cc1fa01471e0f5",
    "EN-VERB-143.txt": "7259e19961c81912aa4c72de0102e480b2ad2bb9f4ce97d036fbde8e1a403001",
    "EN-WS-353-ALL.txt": "ce12919b240af45bdf46d243601eaca2b6212b159b5e7e9b435ee7ee40c5619c",
    "EN-WS-353-REL.txt": "66a7c88100624d0a391605ff61ce84e11d11ee620d51ec0298da49592838f8fa",
    "EN-WS-353-SIM.txt": "f1da938998863c94e53f72f984a5c6e215f0b46c323aae8f0f4930703a339107",
    "EN-YP-130.txt": "7643fdbc6158c3424061e2cba450c71285767266ff9f3db947bfc1f1f5ce67ab",
}
WORDS = Published(
    "--words",
    "words/94b3dd9fdbac",
    f"{GITHUB}/mfaruqui/eval-word-vectors/94b3dd9fdbac7ed08dbee7179cd5ee464acf0594/data/word-sim",
    _WORDS,
)


def fetch(published: Published, folder: Path | None = None) -> Path:
    """The folder with all published files, fetching those that are missing or not what was published.

    Args:
        published: which.
        folder: where they go; None: the user's cache ($OTHERSIDE_CACHE).

    Raises:
        ConnectionError: a file cannot be had, or was cut; the next call goes on with it.
        ValueError: a file is not what was published.
    """
    folder = folder or weights.cache_folder() / published.place
    for name, digest in published.files.items():
        path = folder / name
        if not path.is_file() or sha256(path) != digest:
            path.parent.mkdir(parents=True, exist_ok=True)
            _fetch(published, f"{published.address}/{urllib.parse.quote(name)}", path, digest)
    return folder


def _fetch(published: Published, url: str, path: Path, digest: str) -> None:
    asked, by_hand = f"{published.option}=published", published.by_hand
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"{asked}: {url} cannot be fetched: {error}. {by_hand}") from error
    if (found := hashlib.sha256(content).hexdigest()) != digest:
        raise ValueError(
            f"{asked}: {url} must have SHA-256 {digest[:12]}…; got {found[:12]}…: it is not what the authors "
            f"published, or was changed on the way. {by_hand}"
        )
    with atomic(path) as temporary:
        temporary.write_bytes(content)
