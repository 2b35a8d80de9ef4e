"""The values that go through the log: messages in, records out, and where they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Record:
    """One record as the log holds it; `timestamp_ms` is the topic's kind, LogAppendTime for `clicks`."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Message:
    """What is to be written; no partition means murmur2 of the key, and no key any partition."""

    topic: str
    """Full name, with the prefix."""
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record lies."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """One life of a topic: another cluster, a topic made anew or more partitions make another epoch."""

    cluster_id: str
    topic_id: str
    partitions: int

    @property
    def text(self) -> str:
        """A short name of this epoch: 16 hex digits."""
        return hashlib.sha256(f"{self.cluster_id}/{self.topic_id}/{self.partitions}".encode()).hexdigest()[:16]
