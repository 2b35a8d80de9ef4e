"""VersionParts: everything that makes a model version, as values; its bytes, and the checks that it is fit to serve.

`engine/model/registry.py` moves the bytes, this file knows what they mean. The same checks run before a version is
published and after it was loaded. Only JSON and safetensors are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from engine.errors import DamagedVersion, IncompatibleVersion, ModelError

FORMAT = 1
MANIFEST = "manifest.json"
MAX_FILE_BYTES = 8 * 2**30
"""A manifest that announces a larger file is refused before anything is read."""

_MODEL_FILES = ("config.json", "vocabulary.json", "weights.safetensors", "item_vectors.safetensors", "items.json")
INDEX, _POPULAR = "index.hnsw", "popular.json"
_LARGEST = 1e6
"""A weight beyond this comes from a training that blew up."""

Tensors = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class VersionParts:
    """Everything a version consists of; the first six are None or empty in a version of popular lists alone."""

    popular: dict[str, Any]
    """`{"overall": [item id], "by_category": {category: [item id]}}`, most popular first."""
    config: dict[str, Any] | None = None
    vocabulary: dict[str, Any] | None = None
    tensors: Tensors = field(default_factory=dict)
    item_ids: Sequence[str] = ()
    """(N,) the item of each row of `item_vectors`."""
    item_vectors: npt.NDArray[np.float32] | None = None
    """(N, D) float32."""
    index: bytes | None = None
    """A saved graph over `item_vectors`; None also where it was loaded into a file."""
    manifest: dict[str, Any] = field(default_factory=dict)
    """To publish: parent, metrics, training; loaded: the whole manifest."""

    @property
    def has_model(self) -> bool:
        """False for popular lists alone."""
        return self.config is not None


def encode_parts(parts: VersionParts) -> dict[str, bytes]:
    """Return the files of a version by name, the manifest not among them."""
    files = {_POPULAR: _to_json(parts.popular)}
    if parts.has_model and parts.item_vectors is not None:
        vectors = np.ascontiguousarray(parts.item_vectors, dtype=np.float32)
        files |= {
            "config.json": _to_json(parts.config),
            "vocabulary.json": _to_json(parts.vocabulary),
            "weights.safetensors": safetensors.numpy.save(
                {name: np.asarray(tensor, order="C") for name, tensor in sorted(parts.tensors.items())}
            ),
            "item_vectors.safetensors": safetensors.numpy.save({"item_vectors": vectors}),
            "items.json": _to_json(list(parts.item_ids)),
        }
    if parts.index is not None:
        files[INDEX] = parts.index
    return files


def write_manifest(version: str, parts: VersionParts, files: Mapping[str, bytes], created_at_ms: int) -> bytes:
    """Return the manifest that names *files* as those of *version*."""
    described = {key: parts.manifest.get(key) for key in ("parent", "metrics", "training")}
    shape = (0, 0) if parts.item_vectors is None else parts.item_vectors.shape
    return _to_json(
        {
            "format": FORMAT,
            "version": version,
            "created_at_ms": created_at_ms,
            **described,
            "items": shape[0],
            "dimensions": shape[1],
            "files": {
                name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                for name, content in sorted(files.items())
            },
        }
    )


def check_manifest(version: str, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of each file by name; only names this build knows, so that no path leads elsewhere.

    Raises:
        DamagedVersion: the manifest lacks something, or announces a file too large to be one of ours.
        IncompatibleVersion: it is of another format or version, or lists other files.
    """
    for key, expected in (("format", FORMAT), ("version", version)):
        if manifest.get(key) != expected:
            raise IncompatibleVersion(version, part=f"the manifest's {key}", got=manifest.get(key), expected=expected)
    listed = manifest.get("files")
    if not isinstance(listed, dict):
        raise DamagedVersion(version, file=MANIFEST, got="no list of files", expected="one")
    if type(manifest.get("created_at_ms")) is not int:
        raise DamagedVersion(version, file=MANIFEST, got="no created_at_ms", expected="a time in milliseconds")
    names = set(listed) - {INDEX}
    if names != {_POPULAR} and names != {_POPULAR, *_MODEL_FILES}:
        wanted = ", ".join(sorted((_POPULAR, *_MODEL_FILES)))
        raise IncompatibleVersion(version, part="the list of files", got=sorted(listed), expected=wanted)
    for name, entry in listed.items():
        size = entry.get("size") if isinstance(entry, dict) else None
        if type(size) is not int or not isinstance(entry.get("sha256"), str):
            raise DamagedVersion(version, file=MANIFEST, got=f"no size and sha256 of {name}", expected="both")
        if not 0 <= size <= MAX_FILE_BYTES:
            raise DamagedVersion(version, file=name, got=f"{size} bytes", expected=f"at most {MAX_FILE_BYTES} bytes")
    return listed


def decode_parts(version: str, files: Mapping[str, bytes], manifest: dict[str, Any]) -> VersionParts:
    """Return the parts that *files*, already checked against the manifest, hold.

    Raises:
        DamagedVersion: a file can't be parsed.
        IncompatibleVersion: a file holds something else.
    """
    popular = parse_json(version, _POPULAR, files[_POPULAR])
    if "config.json" not in files:
        return VersionParts(popular=popular, manifest=manifest)
    vectors = _tensors(version, "item_vectors.safetensors", files["item_vectors.safetensors"])
    if list(vectors) != ["item_vectors"]:
        part = "the content of item_vectors.safetensors"
        raise IncompatibleVersion(version, part=part, got=sorted(vectors), expected=["item_vectors"])
    config = parse_json(version, "config.json", files["config.json"])
    if not isinstance(config, dict):
        raise IncompatibleVersion(version, part="config", got=type(config).__name__, expected="a JSON object")
    return VersionParts(
        popular=popular,
        config=config,
        vocabulary=parse_json(version, "vocabulary.json", files["vocabulary.json"]),
        tensors=_tensors(version, "weights.safetensors", files["weights.safetensors"]),
        item_ids=parse_json(version, "items.json", files["items.json"]),
        item_vectors=vectors["item_vectors"],
        index=files.get(INDEX),
        manifest=manifest,
    )


def check_parts(version: str, parts: VersionParts) -> None:
    """Check that *parts* fit one another and that every number is one to compute with.

    Raises:
        DamagedVersion: a tensor holds NaN, infinity, nothing but zeros, or numbers beyond reason.
        IncompatibleVersion: a part has another type, shape or length than the others demand.
    """
    _check_popular(version, parts.popular)
    if not parts.has_model:
        return
    if not isinstance(parts.vocabulary, dict):
        got = type(parts.vocabulary).__name__
        raise IncompatibleVersion(version, part="vocabulary", got=got, expected="a JSON object")
    vectors, dimensions = parts.item_vectors, (parts.config or {}).get("dimensions")
    if vectors is None or vectors.dtype != np.float32 or vectors.ndim != 2 or vectors.shape[1] != dimensions:
        shape = None if vectors is None else f"{vectors.dtype} of shape {vectors.shape}"
        expected = f"float32 of shape (N, {dimensions}), as the config says"
        raise IncompatibleVersion(version, part="item_vectors", got=shape, expected=expected)
    for part, value in (("items", len(vectors)), ("dimensions", dimensions)):
        if parts.manifest.get(part, value) != value:
            said = parts.manifest[part]
            raise IncompatibleVersion(
                version, part=f"the number of {part}", got=value, expected=f"the manifest's {said}"
            )
    _check_ids(version, parts.item_ids, len(vectors))
    for name, tensor in {**parts.tensors, "item_vectors": vectors}.items():
        _check_numbers(version, name, tensor)
    weights = [tensor for tensor in parts.tensors.values() if tensor.dtype.kind == "f"]
    if not any(tensor.any() for tensor in weights) or (len(vectors) and not vectors.any()):
        raise DamagedVersion(version, file="weights.safetensors", got="nothing but zeros", expected="trained weights")


def _check_popular(version: str, popular: object) -> None:
    if isinstance(popular, dict) and set(popular) == {"overall", "by_category"}:
        by_category = popular["by_category"]
        lists = [popular["overall"], *(by_category.values() if isinstance(by_category, dict) else [None])]
        if all(isinstance(ids, list) and all(isinstance(item, str) for item in ids) for ids in lists):
            return
    raise IncompatibleVersion(
        version, part=_POPULAR, got="something else", expected="lists of item ids, overall and by_category"
    )


def _check_ids(version: str, item_ids: object, items: int) -> None:
    if not isinstance(item_ids, Sequence) or not all(isinstance(item, str) and item for item in item_ids):
        raise IncompatibleVersion(version, part="items.json", got="something else", expected="a list of item ids")
    if len(item_ids) != items or len(set(item_ids)) != items:
        got = f"{len(item_ids)} ids, {len(set(item_ids))} of them distinct"
        raise IncompatibleVersion(version, part="items.json", got=got, expected=f"{items} distinct ids, one a vector")


def _check_numbers(version: str, name: str, tensor: npt.NDArray[Any]) -> None:
    if tensor.dtype.kind not in "fi":
        raise IncompatibleVersion(version, part=f"tensor {name}", got=str(tensor.dtype), expected="numbers")
    if tensor.dtype.kind == "i":  # rows; the model checks them against its tables
        return
    if not np.isfinite(tensor).all():
        raise DamagedVersion(version, file=f"tensor {name}", got="NaN or infinity", expected="finite numbers")
    if tensor.size and np.abs(tensor).max() > _LARGEST:
        raise DamagedVersion(
            version, file=f"tensor {name}", got=f"{np.abs(tensor).max():g}", expected=f"at most {_LARGEST:g}"
        )


def _tensors(version: str, name: str, content: bytes) -> Tensors:
    try:
        return dict(safetensors.numpy.load(content))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DamagedVersion(version, file=name, got=f"no tensors: {error}", expected="safetensors") from error


def parse_json(version: str, name: str, content: bytes) -> Any:
    """Return the value in *content*, the file *name* of *version*; raises DamagedVersion where there is none."""
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DamagedVersion(version, file=name, got=f"no JSON: {error}", expected="valid JSON") from error


def _refuse_constant(word: str) -> object:
    raise ValueError(f"{word} is not a JSON number")


def _to_json(value: object) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise ModelError(f"a model version can't be written: {error}; train it again") from error
