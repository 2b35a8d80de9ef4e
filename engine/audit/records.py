"""What an audit reads: four topics through kafka-python, and the dump of the windows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from engine.audit.book import Letter
from engine.audit.messages import Entry
from engine.errors import LogError, SourceError
from engine.settings import Settings

STALL_S = 60.0
DUMP_COMMAND = ("-m", "engine.cli", "windows", "dump", "--jsonl")
EVERYTHING: Mapping[int, int] = {}
DUMP_REMEDY = "give what `mindstream windows dump --jsonl` printed"


class Topic:
    """All records of a topic between its beginning and the end read when this was made."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, settings.topic(name)
        with _client(settings, self._name) as consumer:
            partitions = _partitions(consumer, self._name)
            self.starts = {p.partition: offset for p, offset in consumer.beginning_offsets(partitions).items()}
            self.ends = {p.partition: offset for p, offset in consumer.end_offsets(partitions).items()}

    def entries(self, behind: Mapping[int, int] = EVERYTHING) -> Iterator[Entry]:
        """Yield every record, each partition in offset order, from behind the offsets given for partitions."""
        firsts = self._firsts(behind)
        with _client(self._settings, self._name) as consumer:
            partitions = _partitions(consumer, self._name)
            left = {p for p in partitions if firsts[p.partition] < self.ends[p.partition]}
            if not left:
                return
            consumer.assign(sorted(left))
            for partition in left:
                consumer.seek(partition, firsts[partition.partition])
            moved_at = time.monotonic()
            while left:
                polled = consumer.poll(timeout_ms=500, max_records=5_000)
                for partition, records in polled.items():
                    end = self.ends[partition.partition]
                    for r in records:
                        if r.offset < end:
                            yield Entry(r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                left = {p for p in left if consumer.position(p) < self.ends[p.partition]}
                moved_at = time.monotonic() if polled else moved_at
                if time.monotonic() - moved_at > STALL_S:
                    raise _unreadable(self._name, f"gave no record for {STALL_S:.0f} s")

    def unbroken_entries(self, behind: Mapping[int, int]) -> Iterator[Entry]:
        """Yield what `entries` does, and raise at the end where the log was cut meanwhile."""
        yield from self.entries(behind)
        firsts = self._firsts(behind)
        for partition, start in Topic(self._settings, "clicks").starts.items():
            if start > firsts[partition]:
                raise _unreadable(self._name, f"lost records below offset {start} while it was read")

    def _firsts(self, behind: Mapping[int, int]) -> dict[int, int]:
        return {partition: max(start, behind.get(partition, -1) + 1) for partition, start in self.starts.items()}


@contextmanager
def _client(settings: Settings, topic: str) -> Iterator[KafkaConsumer]:
    consumer = None
    try:
        consumer = KafkaConsumer(
            **settings.kafka_client_options(),
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            bootstrap_timeout_ms=10_000,
            max_partition_fetch_bytes=4_000_000,
        )
        yield consumer
    except KafkaError as error:
        raise _unreadable(topic, f"can't be read: {error}") from error
    finally:
        if consumer is not None:
            consumer.close()


def _partitions(consumer: KafkaConsumer, topic: str) -> list[TopicPartition]:
    numbers = consumer.partitions_for_topic(topic)
    if not numbers:
        raise _unreadable(topic, "does not exist")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def _unreadable(topic: str, problem: str) -> LogError:
    return LogError(f"topic {topic}", problem=problem, remedy="check the broker, and `mindstream topics list`")


def read_letters(entries: Iterable[Entry], *, topic: str) -> Iterator[Letter]:
    """Yield where each dead letter's message came from, of those that came from *topic*; the last record of a key.

    A letter that was taken off, by a redrive or an erasure, is one without a value.
    """
    last: dict[bytes, Entry] = {}
    for entry in entries:
        last[entry.key or b""] = entry
    for key, entry in last.items():
        parts = key.decode("utf-8", "replace").rsplit(":", 3)
        if len(parts) == 4 and parts[1] == topic and parts[2].isdecimal() and parts[3].isdecimal():
            yield Letter(int(parts[2]), int(parts[3]), entry.timestamp_ms, is_taken_off=entry.value is None)


def read_erasures(entries: Iterable[Entry], epoch: str | None) -> dict[str, dict[int, int]]:
    """Return by user and partition the last offset whose clicks are erased; what can't be read erases nothing.

    Where *epoch*, the life of `clicks`, is known, the erasures of another one are left out.
    """
    erased: dict[str, dict[int, int]] = {}
    for entry in entries:
        try:
            content = json.loads(entry.value or b"")
            user_id, partition, offset = content["user_id"], content["partition"], content["offset"]
            is_other = epoch is not None and content.get("epoch", epoch) != epoch
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
        if is_other:
            continue
        if isinstance(user_id, str) and type(partition) is int and type(offset) is int:
            until = erased.setdefault(user_id, {})
            until[partition] = max(offset, until.get(partition, -1))
    return erased


def read_dump(windows: Iterable[Mapping[str, Any]] | Path | None, *options: str) -> Iterator[Mapping[str, Any]]:
    """Yield the dump's lines; None runs `mindstream windows dump` with *options* and reads what it prints.

    Raises:
        SourceError: the file or the command's output is no dump.
    """
    if windows is None:
        done = subprocess.run([sys.executable, *DUMP_COMMAND, *options], stdout=subprocess.PIPE, check=False)
        if done.returncode:
            problem = f"ended with exit code {done.returncode}"
            raise SourceError("mindstream windows dump", problem=problem, remedy="see what it wrote above")
        yield from _parse_lines(done.stdout, "mindstream windows dump")
    elif isinstance(windows, Path):
        try:
            text = windows.read_bytes()
        except OSError as error:
            raise SourceError(windows, problem=str(error), remedy=DUMP_REMEDY) from error
        yield from _parse_lines(text, windows)
    else:
        yield from windows


def _parse_lines(text: bytes, path: object) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(text.split(b"\n"), start=1):
        if not line:
            continue
        try:
            read = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise SourceError(path, problem=f"line {number} is not JSON", remedy=DUMP_REMEDY) from error
        if not _is_window(read):
            raise SourceError(path, problem=f"line {number} is no window", remedy=DUMP_REMEDY)
        yield read


def _is_window(read: Any) -> bool:
    """Return whether a dump's line has what every line must have, of the right kind."""
    try:
        numbers = (read["partition"], read["applied_offset"], *(click["clicked_at_ms"] for click in read["clicks"]))
        texts = (read["user_id"], *(click["item_id"] for click in read["clicks"]))
        event_ids = [click.get("event_id") for click in read["clicks"]]
    except (TypeError, KeyError, AttributeError):
        return False
    is_right = all(type(number) is int for number in numbers) and all(isinstance(text, str) for text in texts)
    return is_right and all(event_id is None or isinstance(event_id, str) for event_id in event_ids)
