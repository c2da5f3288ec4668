"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` when the block ends well, see `replace_folder`."""
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent)).resolve()
    try:
        yield work
        replace_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


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


def check_out(out: Path, encoder: str, force: bool) -> None:
    """Whether a command may write OUT, which it makes from an encoder.

    Raises:
        FileExistsError: OUT is a file, or has something in it and `force` is not set.
        ValueError: OUT contains the encoder.
    """
    source = Path(encoder)
    if source.exists() and source.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"OUT must not contain the encoder, whose place it would take; got {out} for {encoder}")
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"OUT must be a folder; {out} is a file")
    if out.exists() and any(out.iterdir()) and not force:
        raise FileExistsError(f"OUT must be new or empty; {out} is not. Name another, or replace it by --force=true.")


def replace_folder(work: Path, folder: Path) -> None:
    """Put a finished folder in its place by rename, after its files have reached the disk.

    An older folder of this name is moved aside first and removed last.
    """
    _finish(work)
    if folder.exists():
        trash = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        folder.rename(trash / folder.name)
        work.rename(folder)
        shutil.rmtree(trash, ignore_errors=True)  # on NFS a file that somebody reads stays until then
    else:
        work.rename(folder)
    _to_disk(folder.parent)


def keep_parts(folder: Path, settings: Any) -> bool:
    """Keep a folder with the parts of a run that was cut, if they were made with these settings; else make it anew.

    Args:
        folder: of parts; it says in `settings.json` what they were made with.
        settings: as JSON has them.

    Returns:
        Whether it was kept.
    """
    note = folder / "settings.json"
    with suppress(OSError, ValueError):
        if json.loads(note.read_text()) == settings:
            return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with atomic(note) as temporary:
        temporary.write_text(json.dumps(settings))
    return False


def tidy(folder: Path, name: str) -> None:
    """Remove what a killed process left in `folder` beside what it wrote whole. An older folder that was moved aside
    for one that did not come returns. Nobody else may be writing there.

    Args:
        folder: may be missing.
        name: of the folders that are written there, as a pattern.
    """
    for older in folder.glob(f".{name}-old-*/{name}"):
        if not (folder / older.name).exists():
            older.rename(folder / older.name)
    for left in folder.glob(f".{name}[.-]*"):
        shutil.rmtree(left, ignore_errors=True)


def made_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, which `make` fills if it is not there yet; of several processes one does, and the others wait.

    It appears whole or not at all. Where the file system knows no locks each process makes its own, and one stays.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.parent):
        if folder.exists():
            return folder
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            make(work)
            _finish(work)
            work.rename(folder)
        except OSError:
            if not folder.exists():  # another process was faster
                raise
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder's own lock, so that no file is left; without one where the file system has none."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _finish(work: Path) -> None:
    """Give a temporary folder the rights that the umask leaves, as safetensors' files are without them, and bring it to
    the disk.
    """
    umask = os.umask(0o077)  # it can be read only by setting it
    os.umask(umask)
    for path in [*work.rglob("*"), work]:
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)
        _to_disk(path)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
