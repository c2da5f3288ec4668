"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def make_folder(folder: Path, option: str) -> None:
    """Make a folder that an option names, if it is not there.

    Raises:
        ValueError: nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{option} must be a folder to write to; {folder}: {error.strerror}") from error


def replace_folder(work: Path, folder: Path) -> None:
    """Put a finished folder in its place by rename, after its files have reached the disk.

    An older folder of this name is moved aside first and removed last.
    """
    for path in [*work.rglob("*"), work]:
        path.chmod(0o755 if path.is_dir() else 0o644)  # temporary folders and safetensors' files are private
        _to_disk(path)
    if folder.exists():
        trash = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.rename(trash / folder.name)
        work.rename(folder)
        shutil.rmtree(trash)
    else:
        work.rename(folder)
    _to_disk(folder.parent)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
