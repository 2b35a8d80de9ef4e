from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path

import pytest
from pydantic import SecretStr
from rich.console import Console

from engine import up
from engine.errors import ConfigError, SetupError
from engine.settings import Settings
from engine.sources import Sessions
from engine.summary import Measured, observe, report, service_address, show_summary
from engine.up import (
    UpOptions,
    beside,
    claim_data_dir,
    count_users,
    describe_source,
    end_tasks,
    environment_of,
    run_up,
)
from tests.builders import ListSource, make_click
from tests.conftest import free_port


def make_source(name: str = "a-shop") -> ListSource:
    return ListSource([make_click(user_id=user) for user in ("u1", "u2", "u1", "u3")], name=name)


def quiet() -> Console:
    return Console(quiet=True)


def test_first_source_takes_the_data_directory_and_keeps_it(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")

    first = claim_data_dir(settings, make_source(), quiet())
    again = claim_data_dir(settings, make_source(), quiet())

    assert first.data_dir == again.data_dir == tmp_path / "data"


def test_another_source_gets_a_directory_of_its_own_so_that_shops_never_mix(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")
    claim_data_dir(settings, make_source("a-shop"), quiet())

    other = claim_data_dir(settings, make_source("b-shop"), quiet())
    other_again = claim_data_dir(settings, make_source("b-shop"), quiet())

    assert other.data_dir == other_again.data_dir
    assert other.data_dir.parent == tmp_path / "data"
    assert other.data_dir.name.startswith("b-shop-")


def test_sources_of_one_name_are_told_apart_by_what_they_hold(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")
    first = claim_data_dir(settings, ListSource([make_click(user_id="u1")], name="clicks"), quiet())

    other = claim_data_dir(settings, ListSource([make_click(user_id="u2")], name="clicks"), quiet())

    assert first.data_dir != other.data_dir


def test_report_in_a_folder_that_is_missing_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(ConfigError, match="--report must be a file in a folder that exists"):
        run_up(Settings(data_dir=tmp_path), UpOptions(report_path=tmp_path / "none" / "report.json"))


def test_another_source_is_refused_where_the_log_is_a_cluster_of_the_users_own(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data", kafka_bootstrap_servers="kafka-1:9092")
    claim_data_dir(settings, make_source("a-shop"), quiet())

    with pytest.raises(SetupError, match=r"hold a-shop-\w+, and b-shop-\w+ must not be mixed in; set"):
        claim_data_dir(settings, make_source("b-shop"), quiet())


def test_damaged_mark_of_the_source_is_named(tmp_path: Path):
    (tmp_path / "source.json").write_text("{")

    with pytest.raises(SetupError, match=r"source\.json does not say which source is held here; delete that file"):
        claim_data_dir(Settings(data_dir=tmp_path), make_source(), quiet())


def test_engine_without_metrics_can_not_be_followed(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, engine_metrics_port=0)

    with pytest.raises(ConfigError, match="MINDSTREAM_ENGINE_METRICS_PORT must be a port"):
        run_up(settings, UpOptions())


def test_ctrl_c_is_heeded_while_a_cluster_is_waited_for(tmp_path: Path):
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MINDSTREAM_")}
    own = {"MINDSTREAM_DATA_DIR": str(tmp_path), "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}
    ports = {f"MINDSTREAM_{name}_PORT": str(free_port()) for name in ("SERVE", "ENGINE_METRICS", "TRAINER_METRICS")}
    running = subprocess.Popen(
        [sys.executable, "-u", "-m", "engine.cli", "up"],
        env={**kept, **own, **ports},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    while "(yours)" not in running.stdout.readline():
        assert running.poll() is None
    time.sleep(1.0)

    running.send_signal(signal.SIGINT)

    running.communicate(timeout=15)
    assert running.returncode == 0


@pytest.mark.parametrize(("simulated", "words"), [(True, "simulated shop, not real events"), (False, "real events")])
def test_source_says_plainly_whether_it_is_simulated(simulated: bool, words: str):
    source = make_source()
    source.simulated = simulated

    assert words in describe_source(source)


def test_sessions_are_learned_as_such_unless_a_setting_says_otherwise(tmp_path: Path):
    file = tmp_path / "train_sessions.txt"
    file.write_text("a b\nb c\n")
    name = "MINDSTREAM_TRAIN_SESSIONS"

    assert environment_of(Settings(data_dir=tmp_path), Sessions(file))[name] == "true"
    assert name not in environment_of(Settings(data_dir=tmp_path, train_sessions=False), Sessions(file))
    assert name not in environment_of(Settings(data_dir=tmp_path), make_source())


def test_users_are_counted_over_the_clicks_that_were_sent():
    assert count_users(make_source(), 3) == 2
    assert count_users(make_source(), 4) == 3


async def test_block_ends_with_the_error_of_what_runs_beside_it():
    async def fails(stop: asyncio.Event) -> None:
        await asyncio.sleep(0.01)
        raise SetupError("the topic is gone", remedy="make it")

    with pytest.raises(SetupError, match="the topic is gone"):
        async with asyncio.timeout(5), beside(fails):
            await asyncio.Event().wait()


async def test_task_that_swallows_its_cancellation_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(up, "CANCEL_AGAIN_S", 0.01)
    swallowed = []

    async def swallows() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed.append("once")
        await asyncio.Event().wait()

    task = asyncio.create_task(swallows())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end_tasks([task])

    assert task.cancelled()
    assert swallowed == ["once"]


async def test_what_runs_beside_a_block_ends_after_it():
    ended = []

    async def works(stop: asyncio.Event) -> None:
        await stop.wait()
        ended.append("work")

    async with beside(works):
        await asyncio.sleep(0)
        ended.append("block")

    assert ended == ["block", "work"]


def engine_figures(applied: float, lag: float = 0.0, dirty: float = 0.0) -> dict[str, float]:
    return {"owned": 4.0, "applied": applied, "rejected": 0.0, "lag": lag, "dirty": dirty, "on_current": 1.0}


def test_clicks_of_a_crashed_engine_stay_counted():
    measured = Measured(source="a-shop", simulated=False)

    for applied in (10.0, 70.0, 5.0, 30.0):
        measured.take_engine(engine_figures(applied))

    assert measured.clicks_applied == 100


def test_system_is_not_drained_before_the_engine_was_seen():
    measured = Measured(source="a-shop", simulated=False)

    assert not measured.is_applied
    assert not measured.is_drained
    assert not measured.has_applied_everything


def test_engine_that_has_no_partition_yet_has_nothing_drained():
    measured = Measured(source="a-shop", simulated=False)

    measured.take_engine({**engine_figures(0.0), "owned": 0.0})

    assert (measured.is_applied, measured.is_drained, measured.has_applied_everything) == (False, False, False)


def test_fast_live_traffic_counts_as_caught_up_when_a_second_of_it_is_on_its_way():
    slow, fast = (Measured(source="a-shop", simulated=False, live_rate=rate) for rate in (20.0, 1_000.0))

    for measured in (slow, fast):
        measured.take_engine(engine_figures(1.0, lag=800.0, dirty=600.0))

    assert (slow.is_applied, slow.is_drained) == (False, False)
    assert (fast.is_applied, fast.is_drained) == (True, True)


def test_part_that_breaks_off_its_answer_is_asked_again():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = Settings(serve_port=listener.getsockname()[1], engine_metrics_port=free_port())
        answering = threading.Thread(target=break_off, args=(listener,))
        answering.start()

        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(observe(settings, Measured(source="a-shop", simulated=False)), 1.0))
        answering.join()


def break_off(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4_096)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")


def test_summary_stands_without_the_query_service_and_its_commands_suit_a_shell():
    settings = Settings(serve_host="::1", serve_port=free_port(), api_token=SecretStr("a-token-of-16-or-more"))
    measured = Measured(source="a-shop", simulated=False, status={"recent_users": ["o'neil [x] ä"]})
    shown = StringIO()

    show_summary(Console(file=shown, width=200), settings, measured)

    commands = [shlex.split(line) for line in shown.getvalue().splitlines() if line.startswith("  curl")]
    user = "o%27neil%20%5Bx%5D%20%C3%A4"
    assert [words[1:3] for words in commands] == [["-H", "Authorization: Bearer $MINDSTREAM_API_TOKEN"]] * 3
    assert commands[0][3] == f"http://[::1]:{settings.serve_port}/v1/users/{user}/recall?limit=5"
    assert json.loads(commands[1][-1]) == {"user_id": "o'neil [x] ä", "item_id": "i1"}


@pytest.mark.parametrize(
    ("host", "typed"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("shop", "shop")]
)
def test_address_is_one_that_can_be_typed(host: str, typed: str):
    assert service_address(Settings(serve_host=host)) == f"http://{typed}:8080"


def test_report_has_every_contracted_name_before_anything_was_measured():
    names = (
        "clicks_sent clicks_applied users lists_personal first_personal_list_s versions click_to_visible_p50_s "
        "click_to_visible_p99_s recall_at_50 popular_recall_at_50 itemcf_recall_at_50"
    )

    assert set(names.split()) <= set(report(Measured(source="a-shop", simulated=False)))
