"""What of the hub was brought here before."""

from __future__ import annotations

from contextlib import suppress


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
