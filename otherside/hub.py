"""What of the hub is here, or is brought here."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

DATA = {".jsonl", ".ndjson", ".json", ".txt", ".csv", ".tsv", ".parquet"}  # that are read as training data


def snapshot(model: str, revision: str | None, mark: str, files: Sequence[str]) -> Path | None:
    """The folder in the hub's cache with some files of a model; None where it has no file `mark`, or the hub cannot be
    asked for it: loading the model says then what is wrong.

    Args:
        model: a hub id.
        revision: of it.
        mark: name of a file.
        files: patterns of what is brought here.

    Raises:
        FileNotFoundError: the hub did not answer.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        HFValidationError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        hf_hub_download(model, mark, revision=revision)
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except OSError as error:  # taken for a base, an encoder would be another model, on one rank perhaps
        said = try_to_load_from_cache(model, mark, revision=revision)
        if isinstance(error.__cause__, OfflineModeIsEnabled) or said is _CACHED_NO_EXIST:
            return None
        raise FileNotFoundError(
            f"backbone.model must be here or on the hub; {model}: {error} Without a network set HF_HUB_OFFLINE=1."
        ) from error
    return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))


def downloaded(name: str, revision: str | None) -> str | None:
    """Where `hf download --repo-type dataset` has put a hub dataset; None if it has not, or the hub can be asked.

    With the hub switched off `datasets` looks among its own tables only, not among downloaded files.
    """
    import datasets
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not datasets.config.HF_HUB_OFFLINE:
        return None
    with suppress(LocalEntryNotFoundError):
        return snapshot_download(name, repo_type="dataset", revision=revision, local_files_only=True)
    return None


def data_set(source: str) -> str | None:
    """The hub's name of a data set that a stage read, `org/name` of `org/name:configuration`; None: a file, wherever
    it is. All that can be read from files says so by its suffix.
    """
    name = source.partition(":")[0]
    suffixes = {suffix.lower() for suffix in Path(name).suffixes}
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not suffixes & DATA else None


def read_json(path: Path) -> Any:
    """Content of a file; nothing where there is none."""
    try:
        return json.loads(path.read_text()) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} must be JSON; {error}. Download it again.") from error
