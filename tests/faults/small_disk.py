"""A small file system in memory in a folder's place, which can be filled to the last byte; Linux, and root, alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE_MB = 256


class SmallDisk:
    """While it is entered the folder, with what it holds, lies on a disk of its own; afterwards where it was."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._aside = folder, folder.with_name(f"{folder.name}-aside")
        self._ballast = folder / "ballast"
        self.is_mounted = False
        """False where this machine doesn't let us: the folder is as it was."""

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._folder.rename(self._aside)
        self._folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "small-disk", str(self._folder)]
        self.is_mounted = subprocess.run(command, capture_output=True).returncode == 0
        shutil.copytree(self._aside, self._folder, dirs_exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.make_room()
        shutil.rmtree(self._aside)
        shutil.copytree(self._folder, self._aside)
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
        shutil.rmtree(self._folder)
        self._aside.rename(self._folder)

    def fill(self) -> None:
        """Leave no room."""
        with self._ballast.open("ab", buffering=0) as ballast, contextlib.suppress(OSError):
            while ballast.write(b"\0" * 4096):
                pass

    def make_room(self) -> None:
        """Take back what `fill` took."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._ballast)
