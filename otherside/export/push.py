"""An export on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from otherside.export.readme import FILE

BLOCK = re.compile(r"```python\n.*?```", re.DOTALL)
# The folder's name, as it was when `readme.USE` was written; it may have been moved since
OPENS = re.compile(r'(?:SentenceTransformer\(|from_pretrained\(|\nfolder.* = )(".*?")')


def push(export: Path, repo: str, private: bool = False, dry_run: bool = False) -> None:
    """Upload an exported folder to the hub, as one commit. Log in before by `hf auth login`.

    Args:
        export: folder that `lightning export` wrote.
        repo: ORG/NAME; made if it is not there.
        private: make it a private one.
        dry_run: only show what would go.

    Raises:
        FileNotFoundError: EXPORT is no exported folder.
        ValueError: no repository can have this name.
        ConnectionError: the hub does not take it.
    """
    if not (export / FILE).is_file() or not ModelCard.load(export / FILE).data.library_name:
        raise FileNotFoundError(f"push needs a folder that `lightning export` wrote; {export} has no {FILE} of one")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"the repository must be ORG/NAME; got {repo!r}: {error}") from error
    if "/" not in repo:
        raise ValueError(f"the repository must be ORG/NAME; got {repo!r}")
    files = sorted(file for file in export.rglob("*") if file.is_file())
    for file in files:
        print(f"{file.stat().st_size / 1e6:10.2f} MB  {file.relative_to(export)}")
    print(f"{sum(file.stat().st_size for file in files) / 1e6:10.2f} MB  {len(files)} files")
    if dry_run:
        print(f"{repo}: nothing was sent")
        return
    said = opened_there((export / FILE).read_text(), repo)
    parts = {file.relative_to(export).as_posix(): said.encode() if file == export / FILE else file for file in files}
    operations = [CommitOperationAdd(name, content) for name, content in parts.items()]
    try:
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        done = api.create_commit(repo, operations, commit_message="Upload an encoder")
    except (HfHubHTTPError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConnectionError(f"the hub must take {repo}, and does not: {first} Log in by `hf auth login`.") from error
    print(done.commit_url)


def opened_there(said: str, repo: str) -> str:
    """A README whose code opens the export on the hub: what takes no repository's name, from a copy of it."""
    for block in BLOCK.finditer(said):
        if opens := OPENS.search(block[0]):
            code, there = block[0], f'"{repo}"'
            if "{folder}" in code:
                code = code.replace("\n", "\nfrom huggingface_hub import snapshot_download\n", 1)
                there = f"snapshot_download({there})"
            return said[: block.start()] + code.replace(opens[1], there) + said[block.end() :]
    return said
