from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence

import kafka
import pytest

from engine.errors import LogError
from engine.events import ClickEvent, ItemEvent, encode_click, encode_item
from engine.settings import Settings
from tests.builders import NOON_MS, make_click
from tests.conftest import free_port
from trainer.log import Fold, ReadProgress, read_log
from trainer.samples import UserHistory


def send(
    settings: Settings,
    topic: str,
    records: Sequence[tuple[str | None, bytes | None]],
    *,
    partition: int | None = None,
    compression: str | None = None,
) -> list[tuple[int, int]]:
    """Write (key, value) records; return the (partition, offset) of each."""
    producer = kafka.KafkaProducer(**settings.kafka_client_options(), acks="all", compression_type=compression)
    try:
        pending = [
            producer.send(settings.topic(topic), key=key.encode() if key else None, value=value, partition=partition)
            for key, value in records
        ]
        return [(done.partition, done.offset) for done in (each.get(timeout=30) for each in pending)]
    finally:
        producer.close()


def send_clicks(settings: Settings, clicks: Sequence[ClickEvent], **options: str) -> list[tuple[int, int]]:
    return send(settings, "clicks", [(click.user_id, encode_click(click)) for click in clicks], **options)


def fold(clicks: Sequence[ClickEvent]) -> list[UserHistory]:
    folded = Fold()
    for click in clicks:
        folded.add(click)
    return folded.histories()


def some_clicks(count: int, *, seed: int = 5) -> list[ClickEvent]:
    draw = random.Random(seed)
    return [
        make_click(
            user_id=f"u{draw.randrange(5)}",
            item_id=f"i{draw.randrange(20)}",
            clicked_at_ms=NOON_MS + draw.randrange(30),
            event_id=draw.choice([None, "e1", "e2"]),
            profile=draw.choice([None, {"country": draw.choice(["FR", "DE"])}, {"age": float(draw.randrange(9))}]),
        )
        for _ in range(count)
    ]


def test_history_is_ordered_by_event_time_then_identity():
    clicks = [
        make_click(item_id="c", clicked_at_ms=3),
        make_click(item_id="b", clicked_at_ms=1),
        make_click(item_id="a", clicked_at_ms=1),
    ]

    (history,) = fold(clicks)

    assert [click.item_id for click in history.clicks] == ["a", "b", "c"]


def test_of_two_clicks_with_one_identity_the_later_in_the_log_is_kept():
    (history,) = fold([make_click(event_id="e", item_id="old"), make_click(event_id="e", item_id="new")])

    assert [click.item_id for click in history.clicks] == ["new"]


def test_each_profile_attribute_is_the_one_of_the_latest_click_by_event_time():
    clicks = [
        make_click(clicked_at_ms=2, profile={"country": "FR"}),
        make_click(clicked_at_ms=1, profile={"country": "DE", "age": 30.0}),
    ]

    (history,) = fold(clicks)

    assert history.profile == {"country": "FR", "age": 30.0}


def test_replay_of_the_whole_log_changes_nothing():
    clicks = some_clicks(400)

    assert fold([*clicks, *clicks]) == fold(clicks)


def test_order_of_arrival_of_distinct_clicks_changes_nothing():
    clicks = list({(c.user_id, c.clicked_at_ms, c.identity): c for c in some_clicks(400)}.values())
    shuffled = random.Random(1).sample(clicks, len(clicks))

    assert fold(shuffled) == fold(clicks)


@pytest.mark.kafka
def test_reading_folds_every_partition_from_the_beginning(settings: Settings):
    clicks = some_clicks(3_000)
    send_clicks(settings, clicks)

    reading = read_log(settings)

    assert reading.log.histories == fold(clicks)
    assert (reading.records, dict(reading.skipped)) == (3_000, {})
    assert sum(reading.ends.values()) == 3_000


@pytest.mark.kafka
@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_clicks_are_read(settings: Settings, compression: str):
    clicks = some_clicks(200)
    send_clicks(settings, clicks, compression=compression)

    assert read_log(settings).log.histories == fold(clicks)


@pytest.mark.kafka
def test_what_an_engine_would_not_take_is_skipped_and_counted(settings: Settings):
    good = make_click()
    send_clicks(settings, [good])
    send(settings, "clicks", [("u1", b"{"), ("u1", None), ("u1", b'{"user_id": 7}'), ("u2", encode_click(good))])

    reading = read_log(settings)

    assert [history.clicks for history in reading.log.histories] == [[good]]
    assert sum(reading.skipped.values()) == 4
    assert reading.skipped["empty"] == 1


@pytest.mark.kafka
def test_click_in_a_partition_that_is_not_its_users_is_skipped_and_counted(settings: Settings):
    ((right, _offset),) = send_clicks(settings, [make_click()])
    producer = kafka.KafkaProducer(**settings.kafka_client_options(), acks="all")
    wrong, strayed = (right + 1) % settings.clicks_partitions, encode_click(make_click(item_id="stray"))
    producer.send(settings.topic("clicks"), key=b"u1", value=strayed, partition=wrong).get(timeout=30)
    producer.close()

    reading = read_log(settings)

    assert [[click.item_id for click in history.clicks] for history in reading.log.histories] == [["i1"]]
    assert dict(reading.skipped) == {"partition": 1}


@pytest.mark.kafka
def test_clicks_at_or_before_an_erasure_are_ignored_and_those_after_it_count(settings: Settings):
    before = send_clicks(settings, [make_click(item_id=item, clicked_at_ms=at) for at, item in enumerate("abc", 1)])
    partition, offset = before[1]
    erasure = json.dumps({"user_id": "u1", "partition": partition, "offset": offset}).encode()
    send(settings, "erasures", [("u1", erasure), ("u1", b"not an erasure")])

    reading = read_log(settings)

    assert [[click.item_id for click in history.clicks] for history in reading.log.histories] == [["c"]]
    assert dict(reading.skipped) == {"erased": 2}


@pytest.mark.kafka
def test_last_record_of_an_item_wins_and_an_unreadable_one_changes_nothing(settings: Settings):
    items = [ItemEvent(item_id="i1", title="Mug"), ItemEvent(item_id="i2"), ItemEvent(item_id="i1", removed=True)]
    send(settings, "items", [(item.item_id, encode_item(item)) for item in items])
    send(settings, "items", [("i2", b"{")])

    catalog = read_log(settings).log.items

    assert catalog["i1"].removed
    assert not catalog["i2"].removed


@pytest.mark.kafka
def test_since_leaves_out_what_the_log_accepted_earlier(settings: Settings):
    send_clicks(settings, [make_click(user_id="early")])
    consumer = kafka.KafkaConsumer(**settings.kafka_client_options(), consumer_timeout_ms=5_000)
    consumer.assign([kafka.TopicPartition(settings.topic("clicks"), n) for n in range(settings.clicks_partitions)])
    consumer.seek_to_beginning()
    accepted_ms = next(consumer).timestamp
    consumer.close()
    while not send_later(settings, accepted_ms):
        pass

    reading = read_log(settings, since_ms=accepted_ms + 1)

    assert {history.user_id for history in reading.log.histories} == {"late"}


def send_later(settings: Settings, than_ms: int) -> bool:
    """Send a click; True once the log accepted one after *than_ms*."""
    producer = kafka.KafkaProducer(**settings.kafka_client_options(), acks="all")
    try:
        click = make_click(user_id="late")
        sent = producer.send(settings.topic("clicks"), key=b"late", value=encode_click(click)).get(timeout=30)
        return bool(sent.timestamp > than_ms)
    finally:
        producer.close()


@pytest.mark.kafka
def test_since_a_time_still_to_come_reads_nothing(settings: Settings):
    send_clicks(settings, [make_click()])

    assert read_log(settings, since_ms=2**42).log.click_count == 0


@pytest.mark.kafka
def test_progress_ends_at_the_number_of_offsets(settings: Settings):
    send_clicks(settings, some_clicks(500))
    seen: list[ReadProgress] = []

    read_log(settings, on_progress=seen.append)

    assert (seen[-1].done, seen[-1].total) == (500, 500)
    assert [at.done for at in seen] == sorted(at.done for at in seen)


@pytest.mark.kafka
def test_empty_log_is_read_as_empty(settings: Settings):
    reading = read_log(settings)

    assert (reading.log.histories, reading.log.items, reading.records) == ([], {}, 0)
    assert reading.range_ms is None


@pytest.mark.kafka
def test_missing_topic_is_named(broker: Settings):
    with pytest.raises(LogError, match="nowhere-"):
        read_log(broker.model_copy(update={"topic_prefix": "nowhere-"}))


def test_broker_that_is_away_is_named():
    address = f"127.0.0.1:{free_port()}"
    code = (
        "import trainer.log; from engine.settings import Settings; trainer.log.BOOTSTRAP_MS = 500;"
        f"trainer.log.read_log(Settings(kafka_bootstrap_servers='{address}'))"
    )

    # In a process of its own: kafka-python leaves the sockets of a failed start to the garbage collector.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert f"LogError: Kafka at {address} could not be read" in done.stderr
