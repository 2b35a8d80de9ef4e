"""Reading the log for training: `erasures` and `items` to their end, then `clicks`, folded per user.

Read with kafka-python and no consumer group, from the beginning or from a moment on, up to the end as it was when the
reading began. A click that an engine would not take is skipped and counted, and so is one that its user had erased. The
fold is the window's rule without its bound: distinct by `window_order`, the later in the log wins, so a training run
sees the histories that the windows are the newest part of.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import kafka
from kafka.errors import KafkaError
from kafka.partitioner.default import murmur2

from engine.errors import LogError, MalformedEvent
from engine.events import ClickEvent, ItemEvent, decode_click, decode_item
from engine.settings import Settings
from engine.window import WindowOrder, window_order
from trainer.samples import ClickLog, UserHistory

POLL_MS = 500
POLL_RECORDS = 5_000
BOOTSTRAP_MS = 10_000
"""How long a broker may take to answer the first time."""
SILENCE_POLLS = 120
"""A log that yields nothing in a minute, although its end lies further on, is given up."""


@dataclass(frozen=True, slots=True)
class ReadProgress:
    """How far the reading of `clicks` is, in offsets."""

    done: int
    total: int


@dataclass(frozen=True)
class Reading:
    """What one reading of the log found."""

    log: ClickLog
    ends: Mapping[int, int]
    """Offset after the last record of `clicks` by partition, when the reading began."""
    records: int = 0
    """Records of `clicks` that were read."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Records that were left out, by reason: a decoder's word, `erased` or `empty`."""

    @property
    def range_ms(self) -> tuple[int, int] | None:
        """Event times of the earliest and the latest click; None without clicks."""
        ordered = [history.clicks for history in self.log.histories]
        if not ordered:
            return None
        return min(clicks[0].clicked_at_ms for clicks in ordered), max(clicks[-1].clicked_at_ms for clicks in ordered)


def read_log(
    settings: Settings,
    *,
    since_ms: int | None = None,
    on_progress: Callable[[ReadProgress], None] = lambda progress: None,
) -> Reading:
    """Return the catalog and all histories that the log holds now.

    Args:
        settings: how to reach the log.
        since_ms: only clicks that the log accepted at or after this time (wall time); None for all.
        on_progress: called after each batch of clicks.

    Raises:
        LogError: the log can't be reached, or a topic is missing.
    """
    with open_consumer(settings) as consumer:
        erased = _read_erasures(consumer, settings)
        items = _read_items(consumer, settings)
        partitions = _partitions(consumer, settings.topic("clicks"))
        ends = consumer.end_offsets(partitions)
        starts = _starts(consumer, partitions, ends, since_ms)
        fold, skipped, records = Fold(), Counter[str](), 0
        total, progress = sum(ends[each] - starts[each] for each in partitions), 0
        for batch, passed in _read_all(consumer, starts, ends):
            for record in batch:
                records += 1
                _take(record, fold, erased, skipped, settings, partitions=len(partitions))
            progress += passed
            on_progress(ReadProgress(progress, total))
    return Reading(
        log=ClickLog(fold.histories(), items),
        ends={each.partition: end for each, end in ends.items()},
        records=records,
        skipped=dict(skipped),
    )


def count_clicks(settings: Settings) -> dict[int, int]:
    """Return the offset after the last record of each partition of `clicks`.

    Raises:
        LogError: the log can't be reached, or has no such topic.
    """
    with open_consumer(settings) as consumer:
        ends = consumer.end_offsets(_partitions(consumer, settings.topic("clicks")))
        return {each.partition: end for each, end in ends.items()}


class Fold:
    """Clicks in log order to histories: the order of arrival and repeats change nothing."""

    def __init__(self) -> None:
        self._clicks: dict[str, dict[WindowOrder, ClickEvent]] = {}
        self._profiles: dict[str, dict[str, tuple[tuple[int, bytes], str | float]]] = {}

    def add(self, click: ClickEvent) -> None:
        """Take in *click*, the latest in the log."""
        self._clicks.setdefault(click.user_id, {})[window_order(click)] = click
        if click.profile:
            order, profile = (click.clicked_at_ms, click.identity), self._profiles.setdefault(click.user_id, {})
            for name, value in click.profile.items():
                if name not in profile or order >= profile[name][0]:
                    profile[name] = order, value

    def histories(self) -> list[UserHistory]:
        """Return one history per user, in ascending order of user id, so that the same log gives the same list."""
        return [
            UserHistory(
                user_id,
                [self._clicks[user_id][order] for order in sorted(self._clicks[user_id])],
                {name: value for name, (_order, value) in sorted(self._profiles.get(user_id, {}).items())},
            )
            for user_id in sorted(self._clicks)
        ]


@contextmanager
def open_consumer(settings: Settings) -> Iterator[Any]:
    """Yield a consumer without a group.

    Raises:
        LogError: for whatever kafka-python raises inside.
    """
    consumer = None
    try:
        consumer = kafka.KafkaConsumer(
            **settings.kafka_client_options(),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            allow_auto_create_topics=False,
            max_poll_records=POLL_RECORDS,
            max_partition_fetch_bytes=4_000_000,
            fetch_max_wait_ms=50,
            bootstrap_timeout_ms=BOOTSTRAP_MS,
        )
        yield consumer
    except (KafkaError, OSError) as error:
        raise LogError(
            f"Kafka at {settings.bootstrap_servers}",
            problem=f"could not be read: {error!r}",
            remedy="check that the broker runs and KAFKA_BOOTSTRAP_SERVERS names it",
        ) from error
    finally:
        if consumer is not None:
            consumer.close()


def read_small_topic(consumer: Any, topic: str) -> Iterator[Any]:
    """Yield every record of *topic*, by its full name, up to its end at this moment.

    Raises:
        LogError: the topic is missing.
    """
    partitions = _partitions(consumer, topic)
    ends = consumer.end_offsets(partitions)
    for batch, _passed in _read_all(consumer, consumer.beginning_offsets(partitions), ends):
        yield from batch


def _partitions(consumer: Any, topic: str) -> list[Any]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise LogError(f"topic {topic}", problem="does not exist", remedy="run `mindstream topics create`")
    return [kafka.TopicPartition(topic, number) for number in sorted(numbers)]


def _starts(consumer: Any, partitions: Sequence[Any], ends: Mapping[Any, int], since_ms: int | None) -> dict[Any, int]:
    first: dict[Any, int] = consumer.beginning_offsets(partitions)
    if since_ms is None:
        return first
    found = consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
    return {each: max(first[each], found[each].offset) if found.get(each) else ends[each] for each in partitions}


def _read_all(consumer: Any, starts: Mapping[Any, int], ends: Mapping[Any, int]) -> Iterator[tuple[list[Any], int]]:
    """Yield batches of records before *ends*, each with the number of offsets that it took the reader further.

    Judged by position, not by records: compaction and transactions leave offsets without any.
    """
    open_ones = {each for each, start in starts.items() if start < ends[each]}
    consumer.assign(sorted(open_ones))
    positions = {each: starts[each] for each in open_ones}
    for each, position in positions.items():
        consumer.seek(each, position)
    silent = 0
    while open_ones:
        found = consumer.poll(timeout_ms=POLL_MS)
        passed = 0
        for each in sorted(open_ones):
            position = min(consumer.position(each), ends[each])
            passed += position - positions[each]
            positions[each] = position
            if position == ends[each]:
                open_ones.discard(each)
                consumer.pause(each)
        silent = 0 if passed else silent + 1
        if silent > SILENCE_POLLS:
            stuck = min(open_ones)
            raise LogError(
                f"{stuck.topic} partition {stuck.partition}",
                problem=f"yields nothing from offset {positions[stuck]} on, its end is {ends[stuck]}",
                remedy="check the broker's log and try again",
            )
        yield [record for each, batch in found.items() for record in batch if record.offset < ends[each]], passed


def _take(
    record: Any,
    fold: Fold,
    erased: Mapping[str, Mapping[int, int]],
    skipped: Counter[str],
    settings: Settings,
    *,
    partitions: int,
) -> None:
    if record.value is None:
        skipped["empty"] += 1
        return
    try:
        click = decode_click(
            record.value,
            key=record.key,
            recorded_at_ms=record.timestamp,
            future_tolerance_ms=settings.future_tolerance_ms,
            max_message_bytes=settings.max_message_bytes,
        )
    except MalformedEvent as error:
        skipped[error.reason] += 1
        return
    if (murmur2(record.key) & 0x7FFFFFFF) % partitions != record.partition:
        skipped["partition"] += 1
        return
    if record.offset <= erased.get(click.user_id, {}).get(record.partition, -1):
        skipped["erased"] += 1
        return
    fold.add(click)


def _read_items(consumer: Any, settings: Settings) -> dict[str, ItemEvent]:
    items: dict[str, ItemEvent] = {}
    for record in read_small_topic(consumer, settings.topic("items")):
        if record.value is None:
            items.pop((record.key or b"").decode(errors="replace"), None)
            continue
        try:
            item = decode_item(record.value, key=record.key, max_message_bytes=settings.max_message_bytes)
        except MalformedEvent:
            continue
        items[item.item_id] = item
    return items


def _read_erasures(consumer: Any, settings: Settings) -> dict[str, dict[int, int]]:
    """Return by user and partition the last offset whose clicks are erased."""
    erased: dict[str, dict[int, int]] = {}
    for record in read_small_topic(consumer, settings.topic("erasures")):
        try:
            content = json.loads(record.value or b"")
            user_id, partition, offset = content["user_id"], content["partition"], content["offset"]
        except (ValueError, TypeError, KeyError):
            continue
        if isinstance(user_id, str) and type(partition) is int and type(offset) is int:
            of_user = erased.setdefault(user_id, {})
            of_user[partition] = max(offset, of_user.get(partition, -1))
    return erased
