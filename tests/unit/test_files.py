"""Files and folders that appear whole or not at all. Folders made once: `test_conversion.py`."""

import os
from pathlib import Path

import pytest

from otherside.files import atomic_folder


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_a_folder_has_the_rights_that_its_user_gives(umask: int, folder: int, file: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "out") as work:
            (work / "inside").mkdir()
            (work / "inside" / "weights").touch(0o600)  # as safetensors does
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    found = [tmp_path / "out", tmp_path / "out" / "inside", tmp_path / "out" / "inside" / "weights"]
    assert [path.stat().st_mode & 0o777 for path in found] == [folder, folder, file]
