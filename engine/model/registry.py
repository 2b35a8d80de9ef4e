"""Registry: model versions as directories of plain files, published whole and checked before use.

    versions/0007/  weights.safetensors config.json vocabulary.json item_vectors.safetensors items.json index.hnsw
                    popular.json manifest.json

The trainer publishes, engines and query services load. The manifest holds size and sha256 of every file and is written
last; without it there is no version. In a local directory a version is written beside its place and renamed into it; in
an object store its number is first claimed by creating a marker that only one publisher can create. Only JSON and
safetensors are read, never pickle. Each file is opened once: the bytes that are hashed are the bytes that are used.

Version 0000 is popular lists alone, and answers until a model has been trained.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import fsspec

from engine.durable import sync, write_through
from engine.errors import ConfigError, DamagedVersion, RegistryUnusable, UnknownVersion
from engine.model.parts import (
    INDEX,
    MANIFEST,
    VersionParts,
    check_manifest,
    check_parts,
    decode_parts,
    encode_parts,
    parse_json,
    write_manifest,
)

POPULAR_VERSION = "0000"
"""Popular lists alone; the only version that is written by name."""

_VERSION = re.compile(r"[0-9]{4,9}")
_CLAIM, _UNFINISHED = "claim", ".publishing-"
_MAX_MANIFEST_BYTES = 1_000_000
_ABANDONED_AFTER_S = 86_400.0


class Registry:
    """The model versions under one address."""

    def __init__(self, url: str) -> None:
        """Open the registry at *url*, a directory or any address that fsspec knows; nothing is created yet.

        Raises:
            ConfigError: fsspec knows no such kind of address, or lacks its driver.
        """
        self.url = url
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            expected = f"a directory, or an address that fsspec can open here ({error})"
            raise ConfigError("MINDSTREAM_REGISTRY_URL", got=url, expected=expected) from error
        self._root = f"{root.rstrip('/')}/versions"
        self._is_local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)

    def list_versions(self) -> list[str]:
        """Return the published versions, oldest first; directories without a manifest are none."""
        with self._usable():
            return [version for version in self._directories() if self._fs.exists(self._path(version, MANIFEST))]

    def publish(self, parts: VersionParts, *, created_at_ms: int) -> str:
        """Write *parts* as the next version and return its number.

        Whoever is killed meanwhile leaves nothing that a reader takes for a version.

        Raises:
            IncompatibleVersion: the parts don't fit one another.
            DamagedVersion: a part holds numbers that aren't finite.
            RegistryUnusable: it can't be written to, or is full.
        """
        check_parts("(new)", parts)
        files = encode_parts(parts)
        with self._usable():
            while True:
                version = f"{max((int(name) for name in self._directories()), default=0) + 1:04d}"
                if self._write(version, files, write_manifest(version, parts, files, created_at_ms)):
                    return version

    def publish_popular(self, parts: VersionParts, *, created_at_ms: int) -> str:
        """Write version 0000 from the popular lists of *parts*, unless it exists, and return its number."""
        alone = VersionParts(popular=parts.popular, manifest=parts.manifest)
        check_parts(POPULAR_VERSION, alone)
        files = encode_parts(alone)
        with self._usable():
            if not self._fs.exists(self._path(POPULAR_VERSION, MANIFEST)):
                self._write(POPULAR_VERSION, files, write_manifest(POPULAR_VERSION, alone, files, created_at_ms))
        return POPULAR_VERSION

    def load(self, version: str, *, manifest_sha256: str | None = None, index_file: Path | None = None) -> VersionParts:
        """Return the parts of *version*, every byte and number of them checked.

        Args:
            version: its number, as `list_versions` spells it.
            manifest_sha256: what the announcement says of the manifest; None: not checked.
            index_file: where the saved graph, the largest part, is written instead of being held in memory; it stays
                absent where the version has none.

        Raises:
            UnknownVersion: there is no such version.
            DamagedVersion: a file is not what the manifest says, or can't be parsed.
            IncompatibleVersion: the parts don't fit one another, or another format was written.
            RegistryUnusable: it can't be read.
        """
        manifest, digest = self._manifest(version)
        if manifest_sha256 is not None and digest != manifest_sha256:
            raise DamagedVersion(version, file=MANIFEST, got=f"sha256 {digest}", expected=f"sha256 {manifest_sha256}")
        listed = check_manifest(version, manifest)
        with self._usable():
            if index_file is not None and INDEX in listed:
                self._copy_checked(version, INDEX, listed.pop(INDEX), index_file)
            files = {name: self._read_checked(version, name, listed[name]) for name in sorted(listed)}
        parts = decode_parts(version, files, manifest)
        check_parts(version, parts)
        return parts

    def manifest(self, version: str) -> dict[str, Any]:
        """Return the manifest of *version*; raises as `load` does."""
        return self._manifest(version)[0]

    def manifest_sha256(self, version: str) -> str:
        """Return the sha256 of the manifest of *version*, for its announcement."""
        return self._manifest(version)[1]

    def prune(self, *, keep_last: int, keep: Collection[str] = (), now_s: float | None = None) -> list[str]:
        """Delete all but the last *keep_last* versions, version 0000 and those in *keep*; return what was deleted.

        What killed publishers left behind goes too, once it is a day old (local directories only).
        """
        models = [version for version in self.list_versions() if version != POPULAR_VERSION]
        doomed = [version for version in models[: max(0, len(models) - keep_last)] if version not in keep]
        with self._usable():
            for version in doomed:
                self._fs.rm(self._path(version, MANIFEST))  # first: from here on it is no version
                self._fs.rm(self._path(version), recursive=True)
            if self._is_local:
                _remove_abandoned(Path(self._root), now_s=time.time() if now_s is None else now_s)
        return doomed

    @contextmanager
    def _usable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RegistryUnusable(self.url, cause=error) from error

    def _path(self, version: str, name: str = "") -> str:
        return f"{self._root}/{version}/{name}".rstrip("/")

    def _directories(self) -> list[str]:
        self._fs.invalidate_cache()
        if not self._fs.isdir(self._root):
            return []
        names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in self._fs.ls(self._root, detail=False)}
        return sorted(filter(_is_version, names), key=int)

    def _write(self, version: str, files: Mapping[str, bytes], manifest: bytes) -> bool:
        """Write one version; False if its number is another publisher's."""
        if self._is_local:
            return self._write_locally(version, {**files, MANIFEST: manifest})
        if version != POPULAR_VERSION and not self._claim(version):
            return False
        for name, content in files.items():
            self._fs.pipe_file(self._path(version, name), content)
        self._fs.pipe_file(self._path(version, MANIFEST), manifest)
        return True

    def _write_locally(self, version: str, files: Mapping[str, bytes]) -> bool:
        unfinished = Path(self._root) / f"{_UNFINISHED}{version}-{uuid.uuid4().hex}"
        unfinished.mkdir(parents=True)
        try:
            for name, content in files.items():
                write_through(unfinished / name, content)
            sync(unfinished)
            # Renaming onto a directory that holds something fails: only one publisher gets a number.
            unfinished.rename(self._path(version))
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            if Path(self._path(version)).exists():
                return False
            raise
        sync(Path(self._root))
        return True

    def _claim(self, version: str) -> bool:
        """Create the marker of *version*; of several publishers one succeeds.

        Stores that can create a file only if it is absent do so; of the others the last writer holds the number.
        """
        path, token = self._path(version, _CLAIM), uuid.uuid4().hex.encode()
        try:
            self._fs.pipe_file(path, token, mode="create")
        except FileExistsError:
            return False
        return bool(self._fs.cat_file(path) == token)

    def _manifest(self, version: str) -> tuple[dict[str, Any], str]:
        if not _is_version(version):
            raise UnknownVersion(version, registry=self.url)
        with self._usable():
            try:
                raw = self._read(version, MANIFEST, _MAX_MANIFEST_BYTES)
            except FileNotFoundError as error:
                raise UnknownVersion(version, registry=self.url) from error
        manifest = parse_json(version, MANIFEST, raw)
        if not isinstance(manifest, dict):
            raise DamagedVersion(version, file=MANIFEST, got=type(manifest).__name__, expected="a JSON object")
        return manifest, hashlib.sha256(raw).hexdigest()

    def _read_checked(self, version: str, name: str, listed: Mapping[str, Any]) -> bytes:
        with _found(version, name, listed):
            content = self._read(version, name, listed["size"])
        _compare(version, name, listed, size=len(content), sha256=hashlib.sha256(content).hexdigest())
        return content

    def _copy_checked(self, version: str, name: str, listed: Mapping[str, Any], path: Path) -> None:
        with _found(version, name, listed):
            self._copy(version, name, listed["size"], path)
        with path.open("rb") as copied:  # what is hashed is what will be used
            sha256 = hashlib.file_digest(copied, "sha256").hexdigest()
        _compare(version, name, listed, size=path.stat().st_size, sha256=sha256)

    def _read(self, version: str, name: str, limit: int) -> bytes:
        """Return the content of a file, refusing one beyond *limit* bytes unread, a link, and anything not a file."""
        path = self._path(version, name)
        if self._is_local:
            with _open_regular(version, Path(path), limit) as file:
                return file.read(limit + 1)
        self._check_size(version, name, limit)
        return bytes(self._fs.cat_file(path))

    def _copy(self, version: str, name: str, limit: int, to: Path) -> None:
        """Write the content of a file to *to*, a part at a time; refuses what `_read` does."""
        path = self._path(version, name)
        if self._is_local:
            with _open_regular(version, Path(path), limit) as file, to.open("xb") as copied:
                shutil.copyfileobj(file, copied)
        else:
            self._check_size(version, name, limit)
            self._fs.get_file(path, str(to))

    def _check_size(self, version: str, name: str, limit: int) -> None:
        size = self._fs.size(self._path(version, name))
        if size is None or size > limit:
            raise DamagedVersion(version, file=name, got=f"{size} bytes", expected=f"at most {limit} bytes")


@contextmanager
def _found(version: str, name: str, listed: Mapping[str, Any]) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DamagedVersion(version, file=name, got="no content", expected=f"{listed['size']} bytes") from error


def _compare(version: str, name: str, listed: Mapping[str, Any], *, size: int, sha256: str) -> None:
    if size != listed["size"]:
        raise DamagedVersion(version, file=name, got=f"{size} bytes", expected=f"{listed['size']} bytes")
    if sha256 != listed["sha256"]:
        raise DamagedVersion(version, file=name, got=f"sha256 {sha256}", expected=f"sha256 {listed['sha256']}")


def _is_version(name: str) -> bool:
    """True for a number as `publish` spells it; nothing else ever becomes part of a path."""
    return _VERSION.fullmatch(name) is not None and f"{int(name):04d}" == name


@contextmanager
def _open_regular(version: str, path: Path, limit: int) -> Iterator[BinaryIO]:
    if path.is_symlink() or path.parent.is_symlink():
        raise DamagedVersion(version, file=path.name, got="a link in its way", expected="a regular file")
    # Non-blocking, or opening a named pipe would wait for its writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DamagedVersion(version, file=path.name, got="no regular file", expected="a regular file")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > limit:
            got, expected = f"{status.st_size} bytes", f"at most {limit} bytes"
            raise DamagedVersion(version, file=path.name, got=got, expected=expected)
        yield file


def _remove_abandoned(root: Path, *, now_s: float) -> None:
    for left in root.glob(f"{_UNFINISHED}*"):
        if left.stat().st_mtime < now_s - _ABANDONED_AFTER_S:
            shutil.rmtree(left)
