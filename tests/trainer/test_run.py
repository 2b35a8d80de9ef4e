from __future__ import annotations

import dataclasses
import io
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import kafka
import msgspec
import numpy as np
import pytest
from rich.console import Console

from engine.errors import ConfigError, NotEnoughClicks
from engine.events import ClickEvent, ItemEvent, encode_click, encode_item
from engine.model import ItemInput, MindConfig
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import load_snapshot
from engine.streams.topics import create_topics
from tests.builders import NOON_MS, make_click
from trainer.options import TrainOptions
from trainer.presets import preset_of
from trainer.progress import Display
from trainer.publish import read_announced
from trainer.run import run_training, train_options

TASTES, ITEMS_OF_A_TASTE = 6, 25
_prefixes = (f"run{number}-" for number in itertools.count())


@pytest.fixture
async def settings(broker: Settings, tmp_path: Path) -> Settings:
    own = broker.model_copy(
        update={
            "topic_prefix": next(_prefixes),
            "data_dir": tmp_path,
            "train_epochs": 3.0,
            "train_max_seconds": 20.0,
            "train_batch_size": 64,
            "train_threads": 1,
            "train_min_clicks": 500,
        }
    )
    await create_topics(own)
    return own


def tasteful_clicks(count: int = 2_400, *, seed: int = 5, after_ms: int = NOON_MS) -> list[ClickEvent]:
    """Clicks of 60 users, each of one taste: what a user clicks next follows from what they clicked."""
    draw = random.Random(seed)
    users = [(f"u{number:02d}", number % TASTES) for number in range(60)]
    clicks = []
    for at in range(count):
        user_id, taste = draw.choice(users)
        item_id = f"t{taste}-{draw.randrange(ITEMS_OF_A_TASTE):02d}"
        clicks.append(make_click(user_id=user_id, item_id=item_id, clicked_at_ms=after_ms + at * 1_000))
    return clicks


def send(settings: Settings, events: Sequence[ClickEvent] | Sequence[ItemEvent]) -> None:
    producer = kafka.KafkaProducer(**settings.kafka_client_options(), acks="all")
    for event in events:
        if isinstance(event, ClickEvent):
            topic, key, value = "clicks", event.user_id, encode_click(event)
        else:
            topic, key, value = "items", event.item_id, encode_item(event)
        producer.send(settings.topic(topic), key=key.encode(), value=value)
    producer.flush()
    producer.close()


def quiet() -> tuple[Display, io.StringIO]:
    written = io.StringIO()
    return Display(Console(file=written)), written


def test_settings_say_how_a_run_learns_and_whether_from_sessions() -> None:
    users, sessions = (
        train_options(Settings(train_epochs=2.5, seed=11, device="cpu", train_sessions=choice))
        for choice in (False, True)
    )

    assert (users.epochs, users.seed, users.device, users.horizon) == (2.5, 11, "cpu", TrainOptions().horizon)
    assert sessions == dataclasses.replace(
        preset_of("recommended", sessions=True)[1], epochs=2.5, seed=11, max_seconds=users.max_seconds
    )


@pytest.mark.kafka
def test_run_publishes_a_version_that_beats_the_popular_list_and_can_be_served(settings: Settings):
    send(settings, tasteful_clicks())
    display, written = quiet()

    (result,) = run_training(settings, display=display)

    assert (result.outcome, result.version) == ("published", "0001")
    assert result.evaluation is not None
    assert result.evaluation.recall_at_50 > result.evaluation.popular_recall_at_50
    assert [announced.model_version for announced in read_announced(settings)] == ["0000", "0001"]
    served = load_snapshot(settings, "0001", 1)
    assert served.metrics["recall_at_50"] == result.evaluation.recall_at_50
    assert "Recall@50" in written.getvalue()


@pytest.mark.kafka
def test_manifest_says_what_the_version_was_trained_on(settings: Settings):
    clicks = tasteful_clicks()
    send(settings, clicks)

    run_training(settings, display=quiet()[0])

    manifest = Registry(settings.registry).manifest("0001")
    training = manifest["training"]
    assert (training["clicks"], training["users"]) == (len(clicks), 60)
    assert (training["first_click_ms"], training["last_click_ms"]) == (NOON_MS, clicks[-1].clicked_at_ms)
    assert sum(training["log_ends"].values()) == len(clicks)
    assert manifest["parent"] is None


@pytest.mark.kafka
def test_retrained_version_names_its_parent_and_inherits_its_config(settings: Settings):
    send(settings, tasteful_clicks())
    for _ in range(2):
        run_training(settings, display=quiet()[0])

    first, second = (Registry(settings.registry).load(version) for version in ("0001", "0002"))

    assert second.manifest["parent"] == "0001"
    assert second.config == first.config
    assert MindConfig.from_dict(first.config or {}) == dataclasses.replace(
        MindConfig(), max_clicks=settings.window_max_clicks
    )


@pytest.mark.kafka
def test_too_few_clicks_train_nothing_but_popular_lists_are_there(settings: Settings):
    send(settings, tasteful_clicks(100))

    with pytest.raises(NotEnoughClicks, match="100 clicks"):
        run_training(settings, display=quiet()[0])

    assert [announced.model_version for announced in read_announced(settings)] == ["0000"]
    assert load_snapshot(settings, "0000", 0).popular.overall


@pytest.mark.kafka
def test_clicks_of_one_moment_leave_nothing_to_learn_from_and_the_error_says_so(settings: Settings):
    send(settings, [msgspec.structs.replace(click, clicked_at_ms=NOON_MS) for click in tasteful_clicks()])

    with pytest.raises(NotEnoughClicks, match="a user with two before the held-out ones"):
        run_training(settings, display=quiet()[0])


@pytest.mark.kafka
def test_version_zero_alone_trains_nothing_and_is_published_once(settings: Settings):
    send(settings, tasteful_clicks(600))

    for _ in range(2):
        assert run_training(settings, version_zero_only=True, display=quiet()[0]) == []

    assert [announced.model_version for announced in read_announced(settings)] == ["0000"]


@pytest.mark.kafka
def test_version_worse_than_popular_is_refused_unless_forced(settings: Settings):
    # One step of training on clicks without any taste: whatever comes out can't beat counting.
    draw = random.Random(3)
    few = [f"i{number:03d}" for number in range(40)] * 5 + [f"i{number:03d}" for number in range(40, 400)]
    clicks = [
        make_click(user_id=f"u{draw.randrange(80)}", item_id=draw.choice(few), clicked_at_ms=NOON_MS + at)
        for at in range(1_500)
    ]
    send(settings, clicks)
    hasty = settings.model_copy(update={"train_epochs": 0.01})
    display, written = quiet()

    (refused,) = run_training(hasty, display=display)
    (forced,) = run_training(hasty, force=True, display=quiet()[0])

    assert (refused.outcome, refused.version) == ("refused", None)
    assert "below the popular list" in written.getvalue()
    assert (forced.outcome, forced.version) == ("published", "0001")


def test_taken_metrics_port_is_a_wrong_setting():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(trainer_metrics_port=taken.getsockname()[1])

        with pytest.raises(ConfigError, match="MINDSTREAM_TRAINER_METRICS_PORT must be a free port"):
            run_training(settings, every_s=60.0, display=quiet()[0])


def start_trainer(settings: Settings, *arguments: str, **changes: object) -> subprocess.Popen[str]:
    fields = {
        "data_dir": settings.data_dir,
        "topic_prefix": settings.topic_prefix,
        "train_min_clicks": settings.train_min_clicks,
        "train_batch_size": settings.train_batch_size,
        "trainer_metrics_port": 0,
        **changes,
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MINDSTREAM_")}
    own = {f"MINDSTREAM_{name.upper()}": str(value) for name, value in fields.items()}
    return subprocess.Popen(
        [sys.executable, "-m", "engine.cli", "train", *arguments],
        env={**kept, **own, "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def read_until(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdout is not None
    read = ""
    for line in process.stdout:
        read += line
        if word in line:
            return read
    raise AssertionError(f"no {word!r} in:\n{read}")


@pytest.mark.kafka
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_training_ends_cleanly_and_publishes_nothing(settings: Settings, number: signal.Signals):
    send(settings, tasteful_clicks())
    process = start_trainer(settings, "--every", "1h", train_epochs=900, train_max_seconds=600)
    read_until(process, "Training")

    process.send_signal(number)
    output, _ = process.communicate(timeout=30)

    assert process.returncode == 0, output
    assert "Training stopped" in output
    assert "Traceback" not in output
    assert Registry(settings.registry).list_versions() == ["0000"]


@pytest.mark.kafka
def test_periodic_trainer_skips_a_run_without_new_clicks_and_trains_when_there_are_some(settings: Settings):
    send(settings, tasteful_clicks())
    process = start_trainer(settings, "--every", "1s", train_epochs=1)
    read_until(process, "No new clicks")

    send(settings, tasteful_clicks(200, seed=9, after_ms=NOON_MS + 3_600_000))
    output = read_until(process, "Read 2,600")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)

    assert "Read 2,600" in output
    assert process.returncode == 0


@pytest.mark.kafka
def test_trainer_killed_at_any_moment_leaves_every_announced_version_whole(settings: Settings):
    send(settings, tasteful_clicks())
    draw = random.Random(4)
    for _ in range(3):
        process = start_trainer(settings, "--force", train_epochs=0.05)
        read_until(process, "Evaluating")
        time.sleep(draw.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
    run_training(settings, force=True, display=quiet()[0])

    assert read_announced(settings)[-1].model_version >= "0001"
    for announced in read_announced(settings):
        assert load_snapshot(settings, announced.model_version, announced.activation)
    for version in Registry(settings.registry).list_versions():
        assert Registry(settings.registry).load(version)


@pytest.mark.kafka
def test_first_version_knows_features_of_items_and_attributes_of_profiles(settings: Settings):
    clicks = tasteful_clicks()
    lands = [msgspec.structs.replace(click, profile={"country": click.user_id[-1]}) for click in clicks]
    catalog = [
        ItemEvent(item_id=item, category=item[:2], features={"price_band": item[-1]})
        for item in sorted({click.item_id for click in clicks})
    ]
    send(settings, lands)
    send(settings, catalog)

    run_training(settings, display=quiet()[0])

    model = load_snapshot(settings, "0001", 1).model
    assert model is not None
    assert {"category", "price_band"} <= {field.name.split(".")[-1] for field in model.vocabulary.item_fields}
    assert [field.name for field in model.vocabulary.profile_fields] == ["country"]
    new = model.item_vectors([ItemInput("new", features={"price_band": "3"}), ItemInput("new", category="t2")])
    assert (np.abs(new).max(axis=1) > 0).all()


@pytest.mark.kafka
def test_last_takes_only_what_the_log_accepted_within_that_time(settings: Settings):
    send(settings, tasteful_clicks(600))
    time.sleep(2.0)  # the log's own clock divides the two, so it has to pass
    send(settings, tasteful_clicks(1_800, seed=9, after_ms=NOON_MS + 3_600_000))
    display, written = quiet()

    run_training(settings, last_s=1.5, display=display)

    assert "Read 1,800 distinct clicks" in written.getvalue()
