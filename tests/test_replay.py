from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from engine.errors import ConfigError, LogError, SourceError
from engine.events import ClickEvent, ItemEvent, decode_click, decode_item, encode_click
from engine.log import Follower, Record
from engine.replay import replay
from engine.settings import Settings
from engine.simulate import SimulatedShop
from engine.sources.pace import Ahead, Pace
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics
from tests.builders import NOON_MS, ListSource, make_click
from tests.conftest import free_port

ROOT = Path(__file__).parent.parent
T = TypeVar("T")


def make_source(clicks: int, *, name: str = "list") -> ListSource:
    source = ListSource(
        [
            make_click(
                user_id=f"u{place % 7}", item_id=f"i{place % 50}", clicked_at_ms=NOON_MS + place, event_id=f"e{place}"
            )
            for place in range(clicks)
        ],
        [ItemEvent(item_id=f"i{place}", title=f"Item {place}") for place in range(50)],
    )
    source.name = name
    return source


async def read_topic(settings: Settings, topic: str) -> list[Record]:
    records: list[Record] = []

    async def keep(batch: Sequence[Record]) -> None:
        records.extend(batch)

    follower = Follower(settings, topic, keep)
    await follower.start()
    await asyncio.wait_for(follower.caught_up.wait(), 60)
    await follower.stop()
    return records


async def read_clicks(settings: Settings) -> list[ClickEvent]:
    """Return every click of the log, decoded as strictly as the engine does; each user's in the order of the log."""
    return [
        decode_click(
            record.value or b"",
            key=record.key,
            recorded_at_ms=record.timestamp_ms,
            future_tolerance_ms=settings.future_tolerance_ms,
            max_message_bytes=settings.max_message_bytes,
        )
        for record in await read_topic(settings, "clicks")
    ]


async def read_items(settings: Settings) -> list[ItemEvent]:
    return [
        decode_item(record.value or b"", key=record.key, max_message_bytes=settings.max_message_bytes)
        for record in await read_topic(settings, "items")
    ]


def by_user(clicks: Sequence[ClickEvent]) -> dict[str, list[ClickEvent]]:
    users: dict[str, list[ClickEvent]] = defaultdict(list)
    for click in clicks:
        users[click.user_id].append(click)
    return users


@pytest.mark.kafka
async def test_every_click_is_in_the_log_in_order_per_user_and_every_item_too(settings: Settings):
    source = make_source(5_000)

    report = await replay(settings, source)

    assert (report.clicks_sent, report.items_sent, report.finished) == (5_000, 50, True)
    assert by_user(await read_clicks(settings)) == by_user(list(source.clicks()))
    assert sorted(item.item_id for item in await read_items(settings)) == sorted(f"i{place}" for place in range(50))


@pytest.mark.kafka
async def test_simulated_shop_passes_the_strict_decoder(settings: Settings):
    shop = SimulatedShop(3, items=400, users=300, clicks=6_000)

    await replay(settings, shop)

    assert by_user(await read_clicks(settings)) == by_user(list(shop.clicks()))


@pytest.mark.kafka
async def test_range_of_clicks_is_sent_alone(settings: Settings):
    source = make_source(100)

    report = await replay(settings, source, first=20, last=30, send_items=False)

    assert (report.clicks_sent, report.next_click) == (10, 30)
    assert sorted(click.event_id or "" for click in await read_clicks(settings)) == [f"e{n}" for n in range(20, 30)]
    assert await read_items(settings) == []


@pytest.mark.kafka
@pytest.mark.parametrize("pace", [{"rate": 50_000.0}, {"speed": 1_000.0}])
async def test_paced_replay_sends_everything(settings: Settings, pace: dict[str, float]):
    report = await replay(settings, make_source(300), **pace)

    assert (report.clicks_sent, len(await read_clicks(settings))) == (300, 300)


@pytest.mark.kafka
async def test_progress_counts_up_to_all(settings: Settings):
    seen: list[tuple[int, int]] = []

    await replay(settings, make_source(4_500), first=100, on_progress=lambda done, total, _: seen.append((done, total)))

    assert seen == [(2_000, 4_400), (4_000, 4_400), (4_400, 4_400)]


@pytest.mark.kafka
async def test_restamped_clicks_are_new_clicks_of_the_moment_of_sending(settings: Settings):
    moments = itertools.count(NOON_MS, 5)
    source = make_source(50)

    await replay(settings, source, restamp=True, now_ms=lambda: next(moments))
    await replay(settings, source, restamp=True, now_ms=lambda: next(moments))

    clicks = await read_clicks(settings)
    assert len({click.event_id for click in clicks}) == 100
    assert sorted(click.clicked_at_ms for click in clicks) == [NOON_MS + 5 * place for place in range(100)]
    assert Counter(click.item_id for click in clicks) == {f"i{place}": 2 for place in range(50)}


@pytest.mark.kafka
async def test_stopped_replay_goes_on_where_it_stopped(settings: Settings, tmp_path: Path):
    source, place, stop = make_source(9_000), tmp_path / "place.json", asyncio.Event()

    first = await replay(settings, source, resume_file=place, stop=stop, on_progress=lambda *_: stop.set())
    second = await replay(settings, source, resume_file=place)
    third = await replay(settings, source, resume_file=place)

    assert (first.clicks_sent, first.finished) == (2_000, False)
    assert (second.clicks_sent, second.items_sent, second.finished) == (7_000, 0, True)
    assert (third.clicks_sent, third.finished) == (0, True)
    assert by_user(await read_clicks(settings)) == by_user(list(source.clicks()))


KILLED = """
import asyncio, sys
from pathlib import Path
from typing import TypeVar
from engine.replay import replay
from engine.settings import Settings
from tests.test_replay import make_source

settings = Settings(kafka_bootstrap_servers=sys.argv[1], topic_prefix=sys.argv[2])
asyncio.run(replay(settings, make_source(30_000), resume_file=Path(sys.argv[3]),
                   on_progress=lambda *_: sys.stdout.write("chunk\\n") and sys.stdout.flush()))
"""


@pytest.mark.kafka
async def test_killed_replay_loses_nothing_and_doubles_at_most_one_chunk(settings: Settings, tmp_path: Path):
    place = tmp_path / "place.json"
    arguments = [settings.bootstrap_servers, settings.topic_prefix, str(place)]
    killed = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    for _ in range(3):
        await asyncio.to_thread(killed.stdout.readline)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    source = make_source(30_000)

    report = await replay(settings, source, resume_file=place)

    clicks = await read_clicks(settings)
    assert report.clicks_sent < 30_000
    assert {encode_click(click) for click in clicks} == {encode_click(click) for click in source.clicks()}
    assert len(clicks) <= 32_000


@pytest.mark.kafka
async def test_place_of_another_source_is_refused(settings: Settings, tmp_path: Path):
    place = tmp_path / "place.json"
    await replay(settings, make_source(10), resume_file=place)

    with pytest.raises(SourceError, match=r"place\.json: it belongs to another source; delete it"):
        await replay(settings, make_source(11), resume_file=place)


@pytest.mark.kafka
async def test_damaged_place_is_refused(settings: Settings, tmp_path: Path):
    place = tmp_path / "place.json"
    place.write_text("{")

    with pytest.raises(SourceError, match="not a resume file"):
        await replay(settings, make_source(10), resume_file=place)


@pytest.mark.kafka
async def test_place_in_a_log_that_is_gone_is_forgotten(settings: Settings, tmp_path: Path):
    place = tmp_path / "place.json"
    await replay(settings, make_source(10), resume_file=place)
    elsewhere = settings.model_copy(update={"topic_prefix": settings.topic_prefix + "elsewhere-"})
    await create_topics(elsewhere)

    report = await replay(elsewhere, make_source(10), resume_file=place)

    assert (report.clicks_sent, report.items_sent) == (10, 50)


@pytest.mark.kafka
async def test_catalog_changes_go_along_with_the_clicks(settings: Settings):
    shop = SimulatedShop(3, items=400, users=300, clicks=6_000)
    clicks, changes = list(shop.clicks()), list(shop.item_changes())
    due = [item.item_id for at_ms, item in changes if at_ms <= clicks[2_999].clicked_at_ms]

    half = await replay(settings, shop, last=3_000)
    await replay(settings, shop, first=3_000)

    assert half.items_sent == len(list(shop.opening_items())) + len(due)
    assert 0 < len(due) < len(changes)
    final = {item.item_id: item for item in await read_items(settings)}
    assert final == {item.item_id: item for item in shop.items()}


@pytest.mark.kafka
async def test_missing_topic_is_no_outage_but_an_error(broker: Settings):
    with pytest.raises(LogError, match="does not exist"):
        await replay(broker.model_copy(update={"topic_prefix": "nowhere-"}), make_source(10))


@pytest.mark.parametrize("pace", [{"rate": 1.0, "speed": 1.0}, {"rate": 0.0}, {"speed": -1.0}])
async def test_impossible_pace_is_a_wrong_setting(pace: dict[str, float]):
    with pytest.raises(ConfigError):
        await replay(Settings(), make_source(10), **pace)


@pytest.mark.kafka
@pytest.mark.slow
async def test_broker_outages_are_waited_out(tmp_path: Path):
    #  broker:  away    up      away    up
    #  replay:  waits   sends   waits   sends the rest
    settings = Settings(data_dir=tmp_path, broker_port=free_port(2), broker_heap_mb=256)
    await with_broker(settings, create_topics(settings))
    source, first_chunk = make_source(8_000), asyncio.Event()
    sending = asyncio.create_task(replay(settings, source, rate=4_000, on_progress=lambda *_: first_chunk.set()))

    await asyncio.sleep(1)
    await with_broker(settings, first_chunk.wait())
    report = await with_broker(settings, asyncio.wait_for(sending, 120))
    clicks = await with_broker(settings, read_clicks(settings))

    assert report.outages > 0
    assert {click.event_id for click in clicks} == {f"e{place}" for place in range(8_000)}


async def with_broker(settings: Settings, done: Awaitable[T]) -> T:
    """Run a broker until *done* is; return its outcome."""
    running = LocalBroker(settings)
    await asyncio.to_thread(running.start)
    try:
        return await done
    finally:
        await asyncio.to_thread(running.stop)


INTERRUPTED = """
import sys
from pathlib import Path
from engine.sending import send_with_bar
from engine.settings import Settings
from tests.test_replay import make_source

settings = Settings(kafka_bootstrap_servers=sys.argv[1], topic_prefix=sys.argv[2])
send_with_bar(settings, make_source(100_000), rate=500, resume_file=Path(sys.argv[3]))
"""


@pytest.mark.kafka
async def test_ctrl_c_ends_the_command_cleanly(settings: Settings, tmp_path: Path):
    arguments = [settings.bootstrap_servers, settings.topic_prefix, str(tmp_path / "place.json")]
    command = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not await read_clicks(settings):
        await asyncio.sleep(0.2)
    command.send_signal(signal.SIGINT)
    output, _ = await asyncio.to_thread(command.communicate)

    sent = len(await read_clicks(settings))
    assert command.returncode == 0
    assert f"{sent:,} clicks and 50 items sent" in " ".join(output.decode().split())
    assert f"stopped before click {sent:,}, the next run goes on there" in " ".join(output.decode().split())


class FixedClock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_rate_makes_a_click_due_every_so_often():
    #  0 s   0.5 s   1 s ...   at 2 clicks a second
    clock, clicks = FixedClock(), Ahead(make_source(10).clicks())
    pace = Pace(rate=2.0, speed=None, clock=clock)
    pace.start(clicks.head)

    at_once = len(pace.take_due(clicks, limit=100))
    clock.now_s += 1.2
    later = len(pace.take_due(clicks, limit=100))

    assert (at_once, later) == (1, 2)
    assert clicks.head is not None
    assert pace.seconds_until(clicks.head) == pytest.approx(0.3)


def test_speed_compresses_event_time():
    #  event time  0 ms  1 ms  2 ms ...   at a tenth of the speed: 0  10 ms  20 ms
    clock, clicks = FixedClock(), Ahead(make_source(10).clicks())
    pace = Pace(rate=None, speed=0.1, clock=clock)
    pace.start(clicks.head)

    clock.now_s += 0.025
    due = pace.take_due(clicks, limit=100)

    assert [click.event_id for click in due] == ["e0", "e1", "e2"]


def test_without_a_pace_everything_is_due_up_to_the_limit():
    clicks = Ahead(make_source(10).clicks())
    pace = Pace(rate=None, speed=None)
    pace.start(clicks.head)

    assert [len(pace.take_due(clicks, limit=4)) for _ in range(4)] == [4, 4, 2, 0]
