"""A disk that fails under one process: a library of ours stands before libc's writes; Linux and a C compiler needed."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
_CONTROL = struct.Struct("qqqq")  # left, errno, for ever, failed


class FailingDisk:
    """Changes below *folder* by processes with `environment`, which succeed until it is told to fail."""

    def __init__(self, folder: Path, *, build_dir: Path) -> None:
        """Build the library and the file that it is ruled by.

        Raises:
            OSError: there is no C compiler here.
            CalledProcessError: it refuses the source.
        """
        build_dir.mkdir(parents=True, exist_ok=True)
        library = build_dir / "failing_disk.so"
        compiler = shutil.which("cc")
        if compiler is None:
            raise OSError("no C compiler (cc) here; install one, gcc for example")
        command = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
        control = build_dir / "failing_disk.control"
        control.write_bytes(bytes(_CONTROL.size))
        with control.open("r+b") as file:
            self._control = mmap.mmap(file.fileno(), _CONTROL.size)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAILING_DISK_UNDER": f"{folder}{os.sep}",
            "FAILING_DISK_CONTROL": str(control),
        }

    def fail(self, error: int, *, after: int = 1, for_ever: bool = False) -> None:
        """Have the change number *after* from now fail with this errno, and with *for_ever* all that follow it."""
        self._control[:] = _CONTROL.pack(after, error, for_ever, 0)

    @property
    def failed(self) -> int:
        """How many changes have failed since it was told to."""
        return int(_CONTROL.unpack(self._control[:])[3])
