"""Checkpoints: copies of partition stores in a directory or an object store, for whoever takes a partition over.

    <cluster>/<topic>/<topic id>-<partitions>/<partition>/manifests/00000000000000012345-1f0c9a77b2d4.json
                                                          files/<sha256 of the content>

A manifest names the files of one checkpoint, the store's header and its applied offset; it is written last, so that a
writer that is killed leaves no checkpoint, only files. A file that is there already is not sent again: RocksDB's tables
never change, so a checkpoint costs what was written since the one before.

Several workers may write and prune the same partition at once, a zombie beside the new owner. Nobody overwrites, and a
file goes only after one process has seen it unnamed for `UNNAMED_FOR_S`: longer than a checkpoint is under way.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, BinaryIO
from urllib.parse import quote

import fsspec
import msgspec
import structlog

from engine.durable import sync
from engine.errors import CheckpointsUnusable, ConfigError, DamagedCheckpoint
from engine.store.header import StoreHeader, first_difference

FORMAT = 1
"""Format of the manifest."""
UNNAMED_FOR_S = 3_600.0
"""A file that no manifest names goes after so long."""

_MANIFEST = re.compile(r"[0-9]{20}-[0-9a-f]{12}\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_MANIFEST_BYTES = 16_000_000
_CHUNK_BYTES = 1 << 20

log = structlog.get_logger()


class CheckpointFile(msgspec.Struct, frozen=True):
    """One file of a checkpoint: its name in the store's directory, and what its content must be."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z")]
    size: Annotated[int, msgspec.Meta(ge=0)]
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a manifest says."""

    applied_offset: int
    created_at_ms: int
    worker: str
    files: tuple[CheckpointFile, ...]
    path: str
    """Where the manifest is."""
    erasures_done: int = -1
    """Place on the topic `erasures` up to which users were erased from it."""

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(file.size for file in self.files)


class Checkpoints:
    """The checkpoints under one address; any method may be called from any thread, one at a time."""

    def __init__(
        self, url: str, *, worker: str = "", keep: int = 3, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        """Open the checkpoints at *url*, a directory or any address that fsspec knows; nothing is created yet.

        Args:
            url: where they are.
            worker: name of this process in the manifests that it writes.
            keep: how many of a partition pruning leaves.
            clock_s: seconds that go on steadily.

        Raises:
            ConfigError: fsspec knows no such kind of address, or lacks its driver.
        """
        self.url, self._worker, self._keep, self._clock_s = url, worker, keep, clock_s
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            expected = f"a directory, or an address that fsspec can open here ({error})"
            raise ConfigError("MINDSTREAM_CHECKPOINT_URL", got=url, expected=expected) from error
        self._root = root.rstrip("/")
        self._is_local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)
        self._digests: dict[tuple[str, int, int], str] = {}
        self._unnamed_since_s: dict[str, float] = {}

    # --- reading

    def find(self, header: StoreHeader) -> list[Checkpoint]:
        """Return the checkpoints made for *header*, the greatest offset first; a manifest that is none is passed over.

        Raises:
            CheckpointsUnusable: the place can't be read.
        """
        place = self._place(header)
        with self._usable():
            names = sorted(self._names(f"{place}/manifests"), reverse=True)
            found = [self._read_manifest(f"{place}/manifests/{name}", header) for name in names]
        readable = [checkpoint for checkpoint in found if checkpoint is not None]
        return sorted(readable, key=lambda checkpoint: checkpoint.applied_offset, reverse=True)

    def fetch(self, checkpoint: Checkpoint, folder: Path) -> None:
        """Copy the files of *checkpoint* into *folder*, which must not exist, each compared with its size and sha256.

        A file that differs is deleted where it was, so that the next checkpoint sends it again.

        Raises:
            DamagedCheckpoint: a file is missing, or is not what the manifest says.
            CheckpointsUnusable: the place can't be read, or *folder* not written.
        """
        files_at = f"{checkpoint.path.rsplit('/', 2)[0]}/files"
        with self._usable():
            folder.mkdir(parents=True)
            for file in checkpoint.files:
                self._fetch_file(checkpoint, f"{files_at}/{file.sha256}", file, folder / file.name)
            sync(folder)

    def verify(self, checkpoint: Checkpoint) -> None:
        """Read every file of *checkpoint* and compare it with the manifest; nothing is changed.

        Raises:
            DamagedCheckpoint: a file is missing, or is not what the manifest says.
            CheckpointsUnusable: the place can't be read.
        """
        files_at = f"{checkpoint.path.rsplit('/', 2)[0]}/files"
        with self._usable():
            for file in checkpoint.files:
                with self._open(checkpoint, f"{files_at}/{file.sha256}", file) as source:
                    _compare(checkpoint, file, *_digest(source, limit=file.size))

    def _fetch_file(self, checkpoint: Checkpoint, path: str, file: CheckpointFile, target: Path) -> None:
        with self._open(checkpoint, path, file) as source, target.open("xb") as copy:
            size, sha256 = _digest(source, copy, limit=file.size)
            copy.flush()
            os.fsync(copy.fileno())
        try:
            _compare(checkpoint, file, size, sha256)
        except DamagedCheckpoint:
            self._fs.rm(path)
            raise

    @contextmanager
    def _open(self, checkpoint: Checkpoint, path: str, file: CheckpointFile) -> Iterator[BinaryIO]:
        try:
            source = self._fs.open(path, "rb")
        except FileNotFoundError as error:
            raise DamagedCheckpoint(checkpoint.path, file=file.name, got="no file", expected="one") from error
        with source:
            yield source

    def _read_manifest(self, path: str, header: StoreHeader) -> Checkpoint | None:
        try:
            with self._fs.open(path, "rb") as file:
                raw = file.read(_MAX_MANIFEST_BYTES + 1)
            return _decode(raw, header, path)
        except FileNotFoundError:
            return None  # pruned by another worker since we listed it
        except (ValueError, RecursionError) as error:
            log.warning("checkpoint_manifest_refused", path=path, error=str(error))
            return None

    # --- writing

    def write(
        self, folder: Path, header: StoreHeader, *, applied_offset: int, created_at_ms: int, erasures_done: int = -1
    ) -> Checkpoint:
        """Send the files in *folder*, a copy of a store at *applied_offset*, then the manifest that names them.

        Args:
            folder: nothing but the copy.
            header: what the store was made for.
            applied_offset: of the copy.
            created_at_ms: wall time.
            erasures_done: place on the topic `erasures` up to which users are erased from it.

        Raises:
            CheckpointsUnusable: the place can't be written, or *folder* not read.
        """
        place = self._place(header)
        with self._usable():
            present = self._sizes(f"{place}/files")
            files = []
            for path in sorted(folder.iterdir()):
                file = self._describe(path)
                if present.get(file.sha256) != file.size:
                    self._put(path, f"{place}/files/{file.sha256}")
                files.append(file)
            name = f"{applied_offset:020d}-{uuid.uuid4().hex[:12]}.json"
            path_of_manifest = f"{place}/manifests/{name}"
            made = Checkpoint(
                applied_offset, created_at_ms, self._worker, tuple(files), path_of_manifest, erasures_done
            )
            manifest = folder.with_name(f"{folder.name}-{name}")
            try:
                manifest.write_bytes(_encode(made, header))
                self._put(manifest, path_of_manifest)
            finally:
                manifest.unlink(missing_ok=True)
        return made

    def prune(self, header: StoreHeader, *, erasures_done: int = -1) -> int:
        """Delete the surplus checkpoints of *header*'s partition, then long unnamed files; return how many of those.

        Checkpoints in which users still are that erasures up to *erasures_done* erased are surplus, however new.

        Raises:
            CheckpointsUnusable: the place can't be read or written.
        """
        place, now_s = self._place(header), self._clock_s()
        kept = self.find(header)
        with self._usable():
            wanted = [checkpoint for checkpoint in kept if checkpoint.erasures_done >= erasures_done][: self._keep]
            for surplus in kept:
                if surplus not in wanted:
                    self._remove(surplus.path)
            named = {file.sha256 for checkpoint in kept for file in checkpoint.files}
            unnamed = {f"{place}/files/{name}" for name in self._sizes(f"{place}/files") if name not in named}
            for path in [
                path for path in self._unnamed_since_s if path.startswith(f"{place}/") and path not in unnamed
            ]:
                del self._unnamed_since_s[path]
            doomed = [p for p in unnamed if now_s - self._unnamed_since_s.setdefault(p, now_s) >= UNNAMED_FOR_S]
            for path in doomed:
                self._remove(path)
                del self._unnamed_since_s[path]
        return len(doomed)

    def _describe(self, path: Path) -> CheckpointFile:
        status = path.stat()
        if path.suffix != ".sst":
            return CheckpointFile(path.name, *_digest_file(path))
        # A table is a link to the store's own, and never changes: its content is read once in its life.
        known = (path.name, status.st_ino, status.st_size)
        if known not in self._digests:
            self._digests[known] = _digest_file(path)[1]
        return CheckpointFile(path.name, status.st_size, self._digests[known])

    def _put(self, source: Path, target: str) -> None:
        if not self._is_local:
            self._fs.put_file(str(source), target)
            return
        place = Path(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        unfinished = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
        try:
            with source.open("rb") as reader, unfinished.open("xb") as writer:
                shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
                writer.flush()
                os.fsync(writer.fileno())
            unfinished.rename(place)
        finally:
            unfinished.unlink(missing_ok=True)
        sync(place.parent)

    def _remove(self, path: str) -> None:
        with suppress(FileNotFoundError):  # another worker was first
            self._fs.rm(path)

    # --- places

    def _place(self, header: StoreHeader) -> str:
        epoch = f"{header.topic_id}-{header.partitions}"
        parts = (header.cluster_id, header.topic, epoch, str(header.partition))
        return "/".join([self._root, *(quote(part, safe="").replace(".", "%2E") for part in parts)])

    def _names(self, folder: str) -> list[str]:
        return [name for name in self._sizes(folder) if _MANIFEST.fullmatch(name)]

    def _sizes(self, folder: str) -> dict[str, int]:
        """Return the files in *folder*, each with its size; nothing where there is no such folder."""
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(folder, detail=True)
        except FileNotFoundError:
            return {}
        files = {str(entry["name"]).rsplit("/", 1)[-1]: entry["size"] for entry in entries if entry["type"] == "file"}
        return {name: int(size) for name, size in files.items() if _MANIFEST.fullmatch(name) or _SHA256.fullmatch(name)}

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except (DamagedCheckpoint, CheckpointsUnusable):
            raise
        except Exception as error:  # every driver of fsspec raises what it likes
            raise CheckpointsUnusable(self.url, cause=f"{type(error).__name__}: {error}") from error


class _Manifest(msgspec.Struct, frozen=True):
    """The content of a manifest."""

    format: int
    header: dict[str, str | int]
    applied_offset: Annotated[int, msgspec.Meta(ge=0)]
    created_at_ms: int
    worker: str
    files: tuple[CheckpointFile, ...]
    erasures_done: int = -1


def _encode(made: Checkpoint, header: StoreHeader) -> bytes:
    manifest = _Manifest(
        FORMAT,
        asdict(header),
        made.applied_offset,
        made.created_at_ms,
        made.worker,
        made.files,
        made.erasures_done,
    )
    return msgspec.json.format(msgspec.json.encode(manifest), indent=1)


def _decode(raw: bytes, header: StoreHeader, path: str) -> Checkpoint | None:
    """Return the checkpoint; None where it was made for another header, ValueError where it is none."""
    if len(raw) > _MAX_MANIFEST_BYTES:
        raise ValueError(f"longer than {_MAX_MANIFEST_BYTES} bytes")
    found = msgspec.json.decode(raw, type=_Manifest)
    if found.format != FORMAT:
        raise ValueError(f"format {found.format}, this build reads {FORMAT}")
    if len({file.name for file in found.files}) < len(found.files):
        raise ValueError("a file is named twice")
    if first_difference(found.header, header) is not None:
        return None
    return Checkpoint(found.applied_offset, found.created_at_ms, found.worker, found.files, path, found.erasures_done)


def _compare(checkpoint: Checkpoint, file: CheckpointFile, size: int, sha256: str) -> None:
    if (size, sha256) != (file.size, file.sha256):
        got, expected = f"{size} bytes, sha256 {sha256}", f"{file.size} bytes, sha256 {file.sha256}"
        raise DamagedCheckpoint(checkpoint.path, file=file.name, got=got, expected=expected)


def _digest_file(path: Path) -> tuple[int, str]:
    with path.open("rb") as source:
        return _digest(source)


def _digest(source: BinaryIO, copy: BinaryIO | None = None, *, limit: int | None = None) -> tuple[int, str]:
    """Read *source*, into *copy* if there is one, to its end or just beyond *limit*; return the size and sha256."""
    digest, size = hashlib.sha256(), 0
    while (limit is None or size <= limit) and (chunk := source.read(_CHUNK_BYTES)):
        digest.update(chunk)
        size += len(chunk)
        if copy is not None:
            copy.write(chunk)
    return size, digest.hexdigest()
