from __future__ import annotations

from pathlib import Path

import pytest

from engine.durable import sync, write_through


def test_content_is_written_whole_and_never_over_another_file(tmp_path: Path) -> None:
    write_through(tmp_path / "new", b"whole")

    assert (tmp_path / "new").read_bytes() == b"whole"
    with pytest.raises(FileExistsError):
        write_through(tmp_path / "new", b"another")
    assert (tmp_path / "new").read_bytes() == b"whole"


def test_files_and_directories_are_synced_and_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    sync(tmp_path / "file")
    sync(tmp_path)

    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "nothing")
