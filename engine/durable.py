"""What is on the disk stays there when the power goes: files and directories written through.

A rename is on the disk only once its directory is, so whoever renames into place writes the directory through too.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_through(path: Path, content: bytes) -> None:
    """Write *content* to the new file *path*, down to the disk.

    Raises:
        FileExistsError: there is such a file.
        OSError: it can't be written.
    """
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Bring what was written to the file or directory *path* down to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
