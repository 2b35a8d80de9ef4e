"""ServingSnapshot: all parts of one model version in memory; SnapshotHolder: the one in service.

`load_snapshot` makes a snapshot from the registry and lets nothing through that could not serve: the registry checks
bytes and numbers, the index is checked in a child process, and canary windows must find items. `engine/hotswap.py`
calls it when a version is announced; the refresh loop and the query service take `SnapshotHolder.current` once per
micro-batch or query, so nothing ever mixes two versions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import structlog

from engine import metrics
from engine.ann import ItemIndex
from engine.ann.calibration import backend_of, choose
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex, private_folder
from engine.ann.index import Rows, Vectors
from engine.ann.live import Base, Build, with_room
from engine.ann.memory import keep_large_pieces_apart
from engine.ann.selection import top_places
from engine.errors import IncompatibleVersion
from engine.model.device import choose_device, use_threads
from engine.model.features import UserInput
from engine.model.mind import InterestModel
from engine.model.parts import INDEX, VersionParts
from engine.model.registry import Registry
from engine.settings import Settings

_CANARIES, _CANARY_TASTES, _CLICKS_OF_A_TASTE, _CANARY_ITEMS = 16, 3, 4, 10
_CANARY_SEED = 20_190_417
_SEEDS_AT_ONCE = 8

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class PopularLists:
    """The popular items of a version, most popular first."""

    overall: Sequence[str] = ()
    by_category: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class ServingSnapshot:
    """One version's parts in memory; immutable, shared by all threads."""

    model_version: str
    activation: int
    """Offset of the record on `models` that made this version current; greater is newer, also for a rollback."""
    trained_at_ms: int
    model: InterestModel | None
    """None in a version of popular lists alone."""
    index: Base | None
    """None in a version of popular lists alone, and where somebody has taken it over."""
    item_ids: Sequence[str]
    """(N,) the item of each row that the index answers with."""
    popular: PopularLists
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What the trainer measured of this version."""
    room: Vectors | None = None
    """(R, D) what begins with the index's vectors and has room for new items: for the one who takes the index over."""

    def without_index(self) -> ServingSnapshot:
        """Return the snapshot for whoever has taken the index over: it is then his, to replace and to let go."""
        return dataclasses.replace(self, index=None, room=None)

    def activated(self, activation: int) -> ServingSnapshot:
        """Return the same parts under another activation: the version was announced again."""
        return dataclasses.replace(self, activation=activation)


class SnapshotHolder:
    """The snapshot in service, None until the first is loaded; replacing it is one assignment."""

    def __init__(self, current: ServingSnapshot | None = None) -> None:
        self._current = current

    @property
    def current(self) -> ServingSnapshot | None:
        """The snapshot in service. Take it once per batch or query, and use nothing else throughout."""
        return self._current

    def swap(self, successor: ServingSnapshot) -> ServingSnapshot | None:
        """Serve *successor* from now on and return the snapshot it retires.

        Readers take `current` once per batch or query, so none sees two versions.
        """
        retired, self._current = self._current, successor
        return retired


def check_registry(settings: Settings) -> None:
    """Return if the registry's address can be opened here; whether a version is there is asked later.

    Raises:
        ConfigError: it can't, and so no version ever could be loaded.
    """
    Registry(settings.registry)


def load_snapshot(
    settings: Settings, version: str, activation: int, *, manifest_sha256: str | None = None
) -> ServingSnapshot:
    """Return the snapshot of *version*, checked and ready to serve; takes seconds, so call it off the event loop.

    Args:
        settings: where the registry is, which index to use, on which device.
        version: the version's number.
        activation: offset of the record on `models` that announced it.
        manifest_sha256: what that record says of the manifest.

    Raises:
        ModelError: the version is unknown, damaged, doesn't fit together, or fails its canaries.
        ItemIndexError: its index is damaged, or is not the index of its vectors.
    """
    use_threads(settings.torch_threads)
    keep_large_pieces_apart()
    with private_folder() as folder:
        file = folder / INDEX
        parts = Registry(settings.registry).load(version, manifest_sha256=manifest_sha256, index_file=file)
        model = _load_model(settings, version, parts)
        room = None if parts.item_vectors is None else with_room(parts.item_vectors)
        # Before the index comes: the model has its own tensors, and the vectors have moved.
        parts = dataclasses.replace(parts, tensors={}, item_vectors=None)
        index = None
        if room is not None:
            vectors = room[: len(parts.item_ids)]
            queries = None if model is None else canary_interests(version, model, parts.item_ids, vectors)
            index = _load_index(settings, version, vectors, queries, file)
            if queries is not None:
                _ask_canaries(version, queries, index)
    return ServingSnapshot(
        model_version=version,
        activation=activation,
        trained_at_ms=parts.manifest["created_at_ms"],
        model=model,
        index=index,
        item_ids=tuple(parts.item_ids),
        popular=PopularLists(parts.popular["overall"], parts.popular["by_category"]),
        metrics=parts.manifest.get("metrics") or {},
        room=room,
    )


def _load_model(settings: Settings, version: str, parts: VersionParts) -> InterestModel | None:
    if parts.config is None or parts.vocabulary is None:
        return None
    device = choose_device(settings.device)
    return InterestModel.load_parts(parts.config, parts.vocabulary, parts.tensors, device=device, version=version)


def _load_index(settings: Settings, version: str, vectors: Vectors, queries: Vectors | None, file: Path) -> Base:
    if settings.index_backend == "exact":
        return _shown(ExactIndex(vectors, device=choose_device(settings.device)))
    if not file.exists():
        raise IncompatibleVersion(version, part="index.hnsw", got="absent", expected="present, or index_backend exact")
    graph = HnswIndex.load(file, vectors, ef=settings.index_ef, threads=settings.torch_threads)
    if settings.index_backend == "hnsw" or queries is None or not len(queries):
        return _shown(graph)
    return _shown(_choose_index(settings, version, graph, queries))


def _choose_index(settings: Settings, version: str, graph: HnswIndex, queries: Vectors) -> HnswIndex | ExactIndex:
    exact = ExactIndex(graph.vectors, device=choose_device(settings.device))
    choice = choose(
        graph,
        exact,
        queries,
        k=min(max(settings.candidates, settings.index_ef), graph.size),
        target=settings.recall_target,
        most=settings.index_ef_max,
    )
    log.info(
        "index_chosen",
        version=version,
        backend=choice.backend,
        items=graph.size,
        ef=choice.ef,
        graph_recall=round(choice.recall, 4),
        graph_ms=round(choice.graph_ms, 3),
        exact_ms=round(choice.exact_ms, 3),
        half_recall=None if choice.half_recall is None else round(choice.half_recall, 4),
        half_ms=None if choice.half_ms is None else round(choice.half_ms, 3),
    )
    return choice.index


def _shown(index: HnswIndex | ExactIndex) -> HnswIndex | ExactIndex:
    metrics.show_index(backend_of(index))
    return index


def builder_of(settings: Settings, like: ItemIndex | None = None) -> Build:
    """Return what makes an index as *like* is, without holding on to that one; None: as *settings* say.

    A large graph takes minutes.
    """
    is_graph = settings.index_backend != "exact" if like is None else isinstance(like, HnswIndex)
    if not is_graph:
        is_half = isinstance(like, ExactIndex) and like.is_half
        return partial(ExactIndex, device=choose_device(settings.device), is_half=is_half)
    ef = like.ef if isinstance(like, HnswIndex) else settings.index_ef
    return partial(HnswIndex.build, ef=ef, threads=settings.torch_threads)


def canary_interests(version: str, model: InterestModel, item_ids: Sequence[str], vectors: Vectors) -> Vectors:
    """Return the (Q, D) interests of seeded windows, each of a few tastes: an item and those nearest to it.

    Users' interests lie where items are. Those of items drawn at random lie between clusters, where a graph finds less:
    it would be searched more widely than users need.

    Raises:
        IncompatibleVersion: there is nothing to make windows of, or what the model makes of them is not finite.
    """
    if not item_ids:
        raise IncompatibleVersion(version, part="the number of items", got=0, expected="at least 1")
    seeds = np.random.default_rng(_CANARY_SEED).integers(len(item_ids), size=_CANARIES * _CANARY_TASTES)
    clicks = min(_CLICKS_OF_A_TASTE, len(item_ids))
    parts = (seeds[start : start + _SEEDS_AT_ONCE] for start in range(0, len(seeds), _SEEDS_AT_ONCE))
    tastes = np.concatenate([_nearest(vectors, part, clicks) for part in parts])
    windows = tastes.reshape(_CANARIES, -1).tolist()
    found = model.interests([UserInput([item_ids[row] for row in window]) for window in windows])
    if not np.isfinite(found.vectors).all() or not found.mask.any(axis=1).all():
        raise IncompatibleVersion(
            version, part="a canary window's interests", got="NaN or none", expected="finite ones"
        )
    used: Vectors = found.vectors[found.mask]
    return used


def _nearest(vectors: Vectors, seeds: Rows, count: int) -> Rows:
    """Return (S, count) rows of the items with the greatest cosines with those in (S,) *seeds*, in no order."""
    lengths = np.maximum(np.sqrt(np.vecdot(vectors, vectors)), np.finfo(np.float32).tiny)
    return top_places((vectors[seeds] @ vectors.T) / lengths, count)


def _ask_canaries(version: str, queries: Vectors, index: ItemIndex) -> None:
    """Check that the interests of seeded windows find items."""
    if not index.size:
        raise IncompatibleVersion(version, part="the number of items", got=0, expected="at least 1")
    rows, scores = index.search(queries, min(_CANARY_ITEMS, index.size))
    if (rows < 0).any() or not np.isfinite(scores).all():
        raise IncompatibleVersion(version, part="a canary search", got="short or not finite", expected="items")
