"""`mindstream serve` as a process, on a real broker: its start, its work through Kafka, and its end."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from msgspec.structs import replace

from engine.erasures import Erasure
from engine.events import ItemEvent
from engine.log import topic_epoch
from engine.serving.server import listen
from engine.settings import Settings
from tests.builders import NOON_MS
from tests.conftest import free_port
from tests.serving.live import LiveService, environment, json_of, prepare, publish, serving
from tests.serving.parts import make_list

pytestmark = pytest.mark.kafka


def has_list(live: LiveService, user_id: str) -> bool:
    return bool(live.get(f"/v1/users/{user_id}/recall").json()["source"] == "personal")


def test_a_published_list_is_answered_and_its_freshness_observed(live: LiveService):
    before = live.get("/v1/status").json()["freshness"]["count"]
    live.publish_list(make_list("fresh", accepted_at_ms=int(time.time() * 1000)))

    live.wait_until(lambda: has_list(live, "fresh"), what="the list")
    status = live.get("/v1/status").json()

    assert status["freshness"]["count"] == before + 1
    assert 0 <= status["freshness"]["p99_ms"] < 10_000
    assert "fresh" in status["recent_users"]


def test_a_list_that_reflects_no_new_click_is_not_timed(live: LiveService):
    before = live.get("/v1/status").json()["freshness"]["count"]
    live.publish_list(make_list("swept", accepted_at_ms=None))

    live.wait_until(lambda: has_list(live, "swept"), what="the list")

    assert live.get("/v1/status").json()["freshness"]["count"] == before


def test_an_older_list_that_comes_late_does_not_replace_the_newer(live: LiveService):
    live.publish_list(make_list("late", window_offset=9, items=[("new", 0)]))
    live.publish_list(make_list("late", window_offset=3, items=[("old", 0)]))
    live.publish_list(make_list("after-late"))
    live.wait_until(lambda: has_list(live, "after-late"), what="the last list")

    answer = live.get("/v1/users/late/recall").json()

    assert [item["item_id"] for item in answer["items"]] == ["new"]


def test_a_query_that_waits_for_a_click_is_answered_when_its_list_is_published(live: LiveService):
    epoch = asyncio.run(topic_epoch(live.settings, "clicks")).text
    [place] = json_of(httpx.post(live.address + "/v1/clicks", json={"user_id": "patient", "item_id": "i"}))
    at = f"{place['partition']}:{place['offset']}"
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(live.get, f"/v1/users/patient/recall?min_offset={at}&wait_ms=9000")
        live.publish_list(replace(make_list("patient", window_offset=place["offset"]), epoch=epoch))
        answer = json_of(waiting.result())

    assert (answer["min_offset_reached"], answer["window_offset"]) == (True, place["offset"])


def test_clicks_are_acknowledged_with_their_place_in_the_log(live: LiveService):
    before = live.clicks_logged()
    clicks = [{"user_id": "poster", "item_id": f"i{n}", "event_id": f"e{n}"} for n in range(3)]

    places = json_of(httpx.post(live.address + "/v1/clicks", json=clicks))
    one = json_of(httpx.post(live.address + "/v1/clicks", json={**clicks[0], "clicked_at_ms": NOON_MS}))

    assert {place["partition"] for place in places + one} == {places[0]["partition"]}
    assert [place["offset"] for place in places + one] == list(range(places[0]["offset"], places[0]["offset"] + 4))
    assert live.clicks_logged() == before + 4


def test_one_bad_click_keeps_all_of_the_request_out_of_the_log(live: LiveService):
    before = live.clicks_logged()

    answer = httpx.post(live.address + "/v1/clicks", json=[{"user_id": "u", "item_id": "i"}, {"user_id": "u"}])

    assert (answer.status_code, answer.json()["index"]) == (400, 1)
    assert live.clicks_logged() == before


def test_an_item_put_over_http_shows_its_title_until_it_is_deleted(live: LiveService):
    live.publish_list(make_list("shopper", items=[("lamp/1", 0), ("i2", 0)]))

    def titles() -> list[str | None]:
        return [item.get("title") for item in live.get("/v1/users/shopper/recall").json()["items"]]

    put = json_of(httpx.put(live.address + "/v1/items/lamp%2F1", json={"title": "A lamp"}))
    live.wait_until(lambda: titles() == ["A lamp", None], what="the title")
    deleted = json_of(httpx.delete(live.address + "/v1/items/lamp%2F1"))
    live.wait_until(lambda: titles() == [None], what="the removal")

    assert (put["item_id"], deleted["removed"]) == ("lamp/1", True)


def test_an_erased_user_gets_nothing_personal_until_a_later_list(live: LiveService):
    clicks = [{"user_id": "gone/1", "item_id": f"i{n}"} for n in range(3)]
    places = json_of(httpx.post(live.address + "/v1/clicks", json=clicks))
    epoch = asyncio.run(topic_epoch(live.settings, "clicks")).text
    of_life = replace(make_list("gone/1", window_offset=places[-1]["offset"]), epoch=epoch)
    live.publish_list(of_life)
    live.wait_until(lambda: has_list(live, "gone%2F1"), what="the list")

    erased = httpx.delete(live.address + "/v1/users/gone%2F1")
    again = httpx.delete(live.address + "/v1/users/gone%2F1")
    live.wait_until(lambda: not has_list(live, "gone%2F1"), what="the erasure")

    assert (erased.status_code, again.status_code) == (202, 202)
    assert erased.json() == {"user_id": "gone/1", **places[-1]}
    assert live.get("/v1/users/gone%2F1/window").json()["window"] == []
    live.publish_list(of_life)
    live.publish_list(make_list("after-erasure"))
    live.wait_until(lambda: has_list(live, "after-erasure"), what="the list sent again")
    assert not has_list(live, "gone%2F1")
    live.publish_list(replace(of_life, window_offset=places[-1]["offset"] + 1))
    live.wait_until(lambda: has_list(live, "gone%2F1"), what="the later list")


def test_a_service_that_starts_after_an_erasure_shows_nothing_of_it(broker: Settings, tmp_path: Path):
    settings = make_settings(broker, tmp_path, "erased-")
    prepare(settings)
    epoch = asyncio.run(topic_epoch(settings, "clicks")).text
    with serving(settings) as live:
        live.wait_until(live.is_ready, what="ready")
        [place] = json_of(httpx.post(live.address + "/v1/clicks", json={"user_id": "u", "item_id": "i"}))
        live.publish_list(replace(make_list("u", window_offset=place["offset"]), epoch=epoch))
        live.wait_until(lambda: has_list(live, "u"), what="the list")
    erasure = Erasure("u", epoch, place["partition"], place["offset"])
    asyncio.run(publish(settings, [erasure.to_message(settings)]))

    with serving(settings) as live:
        live.wait_until(lambda: live.get("/v1/users/u/recall").status_code != 503, what="an answer")
        first = live.get("/v1/users/u/recall")

    assert first.json()["source"] != "personal"


def test_the_status_names_the_version_in_service_with_its_figures(live: LiveService):
    model = live.get("/v1/status").json()["model"]

    assert (model["version"], model["items"], model["metrics"]["recall_at_50"]) == ("0001", 400, 0.1432)


def test_head_line_and_framing_mistakes_are_refused_and_good_requests_go_on(live: LiveService):
    hostile = [
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v1/clicks HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: nonsense\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 40_000 + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ]

    for request in hostile:
        with socket.create_connection(("127.0.0.1", live.settings.serve_port), timeout=15) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(200)
            assert answer == b"" or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5")), (request[:60], answer)

    assert live.get("/health/live").status_code == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-Slow: ",
        b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\nGET /heal",
    ],
)
def test_a_head_that_never_ends_is_cut_off(live: LiveService, begun: bytes):
    with socket.create_connection(("127.0.0.1", live.settings.serve_port), timeout=30) as connection:
        connection.sendall(begun)
        received = b""
        while chunk := connection.recv(4096):
            received += chunk

    assert received.count(b"HTTP/1.1") == begun.count(b"\r\n\r\n")


def test_a_body_that_never_ends_is_answered_and_cut_off(live: LiveService):
    with socket.create_connection(("127.0.0.1", live.settings.serve_port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/clicks HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        received = b""
        while chunk := connection.recv(4096):
            received += chunk

    assert received.startswith(b"HTTP/1.1 408")
    assert b"body_too_slow" in received


def make_settings(broker: Settings, tmp_path: Path, prefix: str) -> Settings:
    return broker.model_copy(update={"topic_prefix": prefix, "data_dir": tmp_path, "serve_port": free_port()})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_with_0_and_a_restart_goes_on_from_its_store(
    broker: Settings, tmp_path: Path, number: signal.Signals
):
    settings = make_settings(broker, tmp_path, f"stop-{number.name.lower()}-")
    prepare(settings)
    with serving(settings) as first:
        first.publish_list(make_list("kept"))
        first.wait_until(lambda: first.is_ready() and first.get("/v1/status").json()["lists"]["held"] == 1, what="list")
        first.process.send_signal(number)
        assert first.process.wait(timeout=15) == 0

    with serving(settings) as second:
        second.wait_until(second.is_ready, what="ready again")
        answer = second.get("/v1/users/kept/recall").json()

    assert answer["source"] == "personal"
    assert "Traceback" not in (tmp_path / "serve.log").read_text()


def test_a_killed_service_holds_the_same_lists_after_a_restart(broker: Settings, tmp_path: Path):
    settings = make_settings(broker, tmp_path, "killed-")
    prepare(settings)
    with serving(settings) as first:
        for number in range(20):
            first.publish_list(make_list(f"u{number}", window_offset=number))
        first.wait_until(lambda: first.get("/v1/status").json()["lists"]["held"] > 0, what="some lists")
        first.process.kill()
        first.process.wait()

    with serving(settings) as second:
        second.wait_until(second.is_ready, what="ready again")
        held = second.get("/v1/status").json()["lists"]["held"]
        offsets = [second.get(f"/v1/users/u{number}/recall").json()["window_offset"] for number in range(20)]

    assert (held, offsets) == (20, list(range(20)))


def test_without_a_broker_the_service_answers_and_says_what_it_waits_for(tmp_path: Path):
    settings = Settings(data_dir=tmp_path, broker_port=free_port(), serve_port=free_port())
    with serving(settings, KAFKA_BOOTSTRAP_SERVERS=settings.bootstrap_servers) as service:
        ready, recall = service.get("/health/ready"), service.get("/v1/users/u1/recall")
        service.process.terminate()
        assert service.process.wait(timeout=15) == 0

    assert (ready.status_code, "broker" in ready.json()["failing"]) == (503, True)
    assert (recall.status_code, recall.json()["error"]) == (503, "starting")


def serve_to_its_end(settings: Settings) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "engine.cli", "serve"]
    return subprocess.run(command, env=environment(settings), capture_output=True, text=True, timeout=60)


def test_a_taken_port_is_named_and_nothing_starts(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = Settings(data_dir=tmp_path, broker_port=1, serve_port=taken.getsockname()[1])
        run = serve_to_its_end(settings)

    assert run.returncode == 1
    assert f"port {settings.serve_port} of 127.0.0.1 is taken" in run.stderr
    assert "MINDSTREAM_SERVE_PORT" in run.stderr


def test_a_second_service_on_the_same_data_ends_and_names_the_store(live: LiveService):
    settings = live.settings.model_copy(update={"serve_port": free_port()})
    run = serve_to_its_end(settings)

    assert run.returncode == 1
    assert "is in use by another process" in run.stderr


def test_items_and_lists_published_before_the_start_are_served(live: LiveService):
    live.publish_items([ItemEvent(item_id="early", title="Early bird")])
    live.publish_list(make_list("starter", items=[("early", 0)]))

    def served() -> list[dict[str, object]]:
        return json.loads(live.get("/v1/users/starter/recall").text)["items"]

    live.wait_until(lambda: [item.get("title") for item in served()] == ["Early bird"], what="title and list")


def test_answers_are_not_held_back_for_more_to_send():
    settings = Settings(serve_port=free_port())

    with listen(settings) as listener, socket.create_connection(listener.getsockname()):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        # What asyncio looks at before it sets TCP_NODELAY on an accepted connection.
        assert (accepted.proto, listener.proto) == (socket.IPPROTO_TCP, socket.IPPROTO_TCP)
        accepted.close()
