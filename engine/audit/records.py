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
DUMP_REMEDY = "give what `mindstream windows dump --jsonl` printed"


class Topic:
    """All records of a topic between its beginning and the end read when this was made."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, settings.topic(name)
        with _client(settings, self._name) as consumer:
            partitions = _partitions(consumer, self._name)
            self.starts = {p.partition: offset for p, offset in consumer.beginning_offsets(partitions).items()}
            self.ends = {p.partition: offset for p, offset in consumer.end_offsets(partitions).items()}

    def refuse_a_cut_log(self) -> None:
        """Raise where the first records are gone: without them nothing can be recomputed."""
        for partition, start in self.starts.items():
            if start > 0:
                raise LogError(
                    f"partition {partition} of {self._name}",
                    problem=f"begins at offset {start}, not 0",
                    remedy="windows can only be audited against a log that is kept whole",
                )

    def entries(self) -> Iterator[Entry]:
        """Yield every record, each partition in offset order."""
        with _client(self._settings, self._name) as consumer:
            left = {p for p in _partitions(consumer, self._name) if self.starts[p.partition] < self.ends[p.partition]}
            if not left:
                return
            consumer.assign(sorted(left))
            consumer.seek_to_beginning()
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


def read_dump(windows: Iterable[Mapping[str, Any]] | Path | None) -> Iterator[Mapping[str, Any]]:
    """Yield the dump's lines; None runs `mindstream windows dump` and reads what it prints.

    Raises:
        SourceError: the file or the command's output is no dump.
    """
    if windows is None:
        done = subprocess.run([sys.executable, *DUMP_COMMAND], stdout=subprocess.PIPE, check=False)
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
            complete = all(name in read for name in ("user_id", "clicks", "partition", "applied_offset"))
        except (ValueError, TypeError) as error:
            raise SourceError(path, problem=f"line {number} is not JSON", remedy=DUMP_REMEDY) from error
        if not complete:
            raise SourceError(path, problem=f"line {number} is no window", remedy=DUMP_REMEDY)
        yield read
