"""The topics: what each must be like, how they are made, and how a cluster's differ from it.

`mindstream topics` and every first start make what is missing; what exists is never changed, because a partition count
or a clean-up policy that changes under a running system loses order or data. A difference that matters is an error that
names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import structlog

from engine.errors import LogError
from engine.log import Admin
from engine.settings import Settings

DAY_MS = 24 * 3_600_000
CRITICAL = ("cleanup.policy", "message.timestamp.type")
"""Configs whose difference breaks a promise; others, such as segment sizes, are the operator's business."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """One topic of the contract."""

    name: str
    """Without the prefix."""
    per_click_partition: bool
    """Whether it has as many partitions as `clicks`; else one."""
    purpose: str
    configs: Mapping[str, str] = field(default_factory=dict)

    def partitions(self, settings: Settings) -> int:
        """Return how many partitions the topic is made with."""
        return settings.clicks_partitions if self.per_click_partition else 1


@dataclass(frozen=True, slots=True)
class TopicRow:
    """One topic as the cluster has it; `partitions` is None where it is missing."""

    name: str
    purpose: str
    expected_partitions: int
    partitions: int | None
    differences: tuple[str, ...]

    @property
    def is_right(self) -> bool:
        """Whether the topic exists and differs in nothing that matters."""
        return self.partitions is not None and not self.differences


TOPICS: tuple[TopicSpec, ...] = (
    TopicSpec(
        "clicks",
        per_click_partition=True,
        purpose="every click; the truth that all state is folded from",
        # Kept for ever: stores are rebuilt from it, and freshness is measured from the time of its appending.
        configs={
            "cleanup.policy": "delete",
            "retention.ms": "-1",
            "retention.bytes": "-1",
            "message.timestamp.type": "LogAppendTime",
        },
    ),
    TopicSpec(
        "items",
        per_click_partition=False,
        purpose="the catalog; the last record of an item wins",
        configs={"cleanup.policy": "compact"},
    ),
    TopicSpec(
        "models",
        per_click_partition=False,
        purpose="announced model versions; the last record is current",
        configs={"cleanup.policy": "compact"},
    ),
    TopicSpec(
        "erasures",
        per_click_partition=False,
        purpose="users whose clicks up to an offset are ignored for ever",
        configs={"cleanup.policy": "compact"},
    ),
    TopicSpec(
        "recall-lists",
        per_click_partition=True,
        purpose="the newest recall list of every user",
        configs={
            "cleanup.policy": "compact",
            "compression.type": "zstd",
            "segment.bytes": str(64 * 1024 * 1024),
            "segment.ms": str(3_600_000),
            "delete.retention.ms": str(7 * DAY_MS),
        },
    ),
    TopicSpec(
        "clicks.dead-letters",
        per_click_partition=False,
        purpose="messages of `clicks` that could not be taken, with the reason",
        configs={"cleanup.policy": "compact,delete", "retention.ms": str(7 * DAY_MS)},
    ),
)


async def create_topics(settings: Settings) -> list[str]:
    """Make the topics that are missing, check the others, and return the full names of those made.

    Raises:
        LogError: the cluster can't be reached or refuses, or a topic differs in something that matters.
    """
    async with Admin(settings) as admin:
        made = []
        existing = await admin.partitions()
        for spec in TOPICS:
            if settings.topic(spec.name) not in existing and await _create(admin, settings, spec):
                made.append(settings.topic(spec.name))
    if made:
        log.info("topics_created", topics=made, replicas=settings.replication_factor)
    wrong = [row for row in await describe_topics(settings) if row.partitions is not None and row.differences]
    if wrong:
        raise LogError(
            f"topic {wrong[0].name}",
            problem="differs: " + ", ".join(wrong[0].differences),
            remedy="set MINDSTREAM_TOPIC_PREFIX to start with topics of our own, or correct the setting or the topic",
        )
    return made


async def describe_topics(settings: Settings) -> list[TopicRow]:
    """Return every topic of the contract as the cluster has it.

    Raises:
        LogError: the cluster can't be reached.
    """
    async with Admin(settings) as admin:
        existing = await admin.partitions()
        present = [settings.topic(spec.name) for spec in TOPICS if settings.topic(spec.name) in existing]
        configs = await admin.configs(present)
    return [
        _row(settings, spec, existing.get(settings.topic(spec.name)), configs.get(settings.topic(spec.name), {}))
        for spec in TOPICS
    ]


async def _create(admin: Admin, settings: Settings, spec: TopicSpec) -> bool:
    replicas = settings.replication_factor
    # One replica may be away and writes still go on; with one or two there is none to spare.
    configs = {**spec.configs, "min.insync.replicas": str(max(1, replicas - 1))}
    return await admin.create(
        settings.topic(spec.name), partitions=spec.partitions(settings), replicas=replicas, configs=configs
    )


def _row(settings: Settings, spec: TopicSpec, partitions: int | None, configs: Mapping[str, str]) -> TopicRow:
    expected = spec.partitions(settings)
    differences = []
    if partitions is not None and partitions != expected:
        differences.append(f"it has {partitions} partitions, expected {expected}")
    for key in CRITICAL:
        wanted = spec.configs.get(key)
        if configs and wanted is not None and _normal(configs.get(key)) != _normal(wanted):
            differences.append(f"{key} is {configs.get(key)}, expected {wanted}")
    return TopicRow(settings.topic(spec.name), spec.purpose, expected, partitions, tuple(differences))


def _normal(value: str | None) -> list[str]:
    return sorted((value or "").replace(" ", "").split(","))
