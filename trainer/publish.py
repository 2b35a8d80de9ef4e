"""Publishing: a trained model to the registry, and its number to `models`.

`prepare` builds the index and gathers the parts, which takes the time; `publish` writes and announces them, in an order
that leaves nothing half done: files, manifest, then the record on `models` that makes engines load the version. Until
that record nobody looks at the files. The record's offset is the activation, so `promote`, which announces a version
once more, is also how to go back.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import kafka
import numpy as np
import structlog
from kafka.errors import KafkaError

from engine.ann.hnsw import HnswIndex
from engine.errors import DamagedVersion, LogError, RegistryUnusable, UnknownVersion
from engine.events import ItemEvent
from engine.model import InterestModel
from engine.model.parts import VersionParts
from engine.model.registry import POPULAR_VERSION, Registry
from engine.settings import Settings
from trainer.log import open_consumer, read_small_topic
from trainer.popular import PopularItems

TOPIC = "models"
MODEL_KEY = b"model"
ACKNOWLEDGE_S = 30.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Announced:
    """One record of `models`."""

    model_version: str
    activation: int
    """The record's offset."""
    announced_at_ms: int


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One version of the registry, for `mindstream models list`."""

    version: str
    created_at_ms: int | None
    items: int
    parent: str | None
    recall_at_50: float | None
    popular_recall_at_50: float | None
    is_current: bool
    problem: str | None = None
    """Why the manifest can't be read; then the figures are empty."""


def prepare(
    model: InterestModel,
    popular: PopularItems,
    *,
    items: Mapping[str, ItemEvent],
    manifest: Mapping[str, Any],
    threads: int,
    seed: int,
) -> VersionParts:
    """Return the parts of a version of *model*, its index built and checked.

    Every item that the model knows is indexed but removed ones: an unavailable item may come back before the next
    training, and lists leave it out meanwhile.

    Args:
        model: the trained model.
        popular: the popular lists of the same log.
        items: the catalog.
        manifest: parent, metrics and training, to be written down.
        threads: how many build a large index.
        seed: of the index's levels.

    Raises:
        ItemIndexError: the item vectors are not finite, or the index can't be saved.
    """
    item_ids, vectors = model.all_item_vectors()
    kept = [row for row, item_id in enumerate(item_ids) if not (item_id in items and items[item_id].removed)]
    vectors = np.ascontiguousarray(vectors[kept], dtype=np.float32)
    index = HnswIndex.build(vectors, threads=threads, seed=seed)
    config, vocabulary, tensors = model.parts()
    return VersionParts(
        popular=popular_json(popular),
        config=config,
        vocabulary=vocabulary,
        tensors=tensors,
        item_ids=[item_ids[row] for row in kept],
        item_vectors=vectors,
        index=index.to_bytes(),
        manifest=plain(manifest),
    )


def publish(settings: Settings, parts: VersionParts, *, now_ms: int) -> Announced:
    """Write *parts* to the registry as the next version, announce it, and delete versions beyond `keep_versions`.

    Raises:
        ModelError: the parts don't fit together, aren't finite, or the registry can't be written.
        LogError: the version is written but could not be announced; `mindstream models promote` does that later.
    """
    registry = Registry(settings.registry)
    version = registry.publish(parts, created_at_ms=now_ms)
    announced = announce(settings, registry, version, now_ms=now_ms)
    # The parent serves until every engine has swapped, and is what a rollback goes back to.
    _prune(registry, keep_last=settings.keep_versions, parent=str(parts.manifest.get("parent")))
    return announced


def _prune(registry: Registry, *, keep_last: int, parent: str) -> None:
    try:
        deleted = registry.prune(keep_last=keep_last, keep=[parent])
    except RegistryUnusable as error:
        log.warning("old_versions_kept", problem=str(error))  # the new one is announced: the run succeeded
        return
    if deleted:
        log.info("versions_deleted", versions=deleted)


def publish_version_zero(settings: Settings, popular: PopularItems, *, now_ms: int) -> Announced:
    """Write version 0000, unless the registry has it, and announce it; raises as `publish` does."""
    registry = Registry(settings.registry)
    parts = VersionParts(popular=popular_json(popular))
    version = registry.publish_popular(parts, created_at_ms=now_ms)
    return announce(settings, registry, version, now_ms=now_ms)


def announce(settings: Settings, registry: Registry, version: str, *, now_ms: int) -> Announced:
    """Make *version* current for every engine and query service: write its record to `models`.

    Raises:
        UnknownVersion: the registry has no such version.
        LogError: the broker did not acknowledge it.
    """
    record = {
        "model_version": version,
        "manifest_sha256": registry.manifest_sha256(version),
        "announced_at_ms": now_ms,
    }
    topic, producer = settings.topic(TOPIC), None
    try:
        producer = kafka.KafkaProducer(**settings.kafka_client_options(), acks="all", allow_auto_create_topics=False)
        sent = producer.send(topic, key=MODEL_KEY, value=json.dumps(record).encode())
        offset = int(sent.get(timeout=ACKNOWLEDGE_S).offset)
    except (KafkaError, OSError) as error:
        raise LogError(
            f"topic {topic}",
            problem=f"did not take version {version}: {error!r}",
            remedy=f"run `mindstream models promote {version}` when the broker is back",
        ) from error
    finally:
        if producer is not None:
            producer.close(timeout=5)
    return Announced(version, offset, now_ms)


def read_announced(settings: Settings) -> list[Announced]:
    """Return what `models` holds, oldest first; records that aren't announcements are left out.

    Raises:
        LogError: the log can't be reached, or has no such topic.
    """
    announced = []
    with open_consumer(settings) as consumer:
        for record in read_small_topic(consumer, settings.topic(TOPIC)):
            try:
                content = json.loads(record.value or b"")
                version, at_ms = str(content["model_version"]), int(content["announced_at_ms"])
            except (ValueError, TypeError, KeyError):
                continue
            announced.append(Announced(version, record.offset, at_ms))
    return announced


def list_models(settings: Settings) -> list[ModelRow]:
    """Return the published versions, oldest first; the one announced last is current.

    Raises:
        LogError: the log can't be reached.
        RegistryUnusable: the registry can't be read.
    """
    registry, announced = Registry(settings.registry), read_announced(settings)
    current = announced[-1].model_version if announced else None
    rows = []
    for version in registry.list_versions():
        manifest, problem = dict[str, Any](), None
        try:
            manifest = registry.manifest(version)
        except (UnknownVersion, DamagedVersion) as error:
            problem = str(error)
        metrics = manifest.get("metrics") or {}
        rows.append(
            ModelRow(
                version=version,
                created_at_ms=manifest.get("created_at_ms"),
                items=manifest.get("items", 0),
                parent=manifest.get("parent"),
                recall_at_50=metrics.get("recall_at_50"),
                popular_recall_at_50=metrics.get("popular_recall_at_50"),
                is_current=version == current,
                problem=problem,
            )
        )
    return rows


def promote(settings: Settings, version: str, *, now_ms: int) -> Announced:
    """Announce a published version once more, so that it serves: a rollback, or a second try.

    Raises:
        ModelError: the registry has no such version, or its files fail the checks.
        LogError: the broker did not acknowledge it.
    """
    registry = Registry(settings.registry)
    registry.load(version)
    return announce(settings, registry, version, now_ms=now_ms)


def current_version(settings: Settings) -> str | None:
    """Return the version announced last, None before the first; raises LogError where the log can't be reached."""
    announced = read_announced(settings)
    return announced[-1].model_version if announced else None


def current_manifest(settings: Settings) -> dict[str, Any] | None:
    """Return the manifest of the trained version announced last; None where there is none, or none to be read.

    Raises:
        LogError: the log can't be reached.
        RegistryUnusable: the registry can't be read.
    """
    version = current_version(settings)
    if version is None or version == POPULAR_VERSION:
        return None
    try:
        return Registry(settings.registry).manifest(version)
    except (UnknownVersion, DamagedVersion) as error:
        log.warning("current_version_unreadable", version=version, problem=str(error))
        return None


def popular_json(popular: PopularItems) -> dict[str, Any]:
    """Return *popular* as a version keeps it."""
    return {"overall": list(popular.overall), "by_category": {k: list(v) for k, v in popular.by_category.items()}}


def plain(values: Any) -> Any:
    """Return *values* as JSON can hold them: NaN and infinity become None."""
    if isinstance(values, Mapping):
        return {str(key): plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [plain(value) for value in values]
    if isinstance(values, float) and not math.isfinite(values):
        return None
    return values
