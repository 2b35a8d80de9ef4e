"""What a running system owes while it is used: fresh lists, swaps that nobody notices, no click lost in a crash."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import kafka
import pytest

from engine.summary import ask, service_address
from tests.integration.conftest import System, children_of
from tests.integration.rescoring import described_items, rescore

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def post_click(system: System, user_id: str, item_id: str) -> list[dict[str, Any]]:
    request = urllib.request.Request(
        service_address(system.settings) + "/v1/clicks",
        data=json.dumps({"user_id": user_id, "item_id": item_id}).encode(),
        headers={"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        places: list[dict[str, Any]] = json.loads(answer.read())
        return places


def recall(system: System, user_id: str, query: str = "limit=10") -> dict[str, Any]:
    return ask(system.settings, f"/v1/users/{urllib.parse.quote(user_id, safe='')}/recall?{query}")


def popular_items(system: System) -> list[str]:
    return [entry["item_id"] for entry in recall(system, "nobody-yet", "limit=50")["items"]]


def test_click_over_http_turns_a_new_users_list_personal(system: System):
    user_id = f"newcomer-{uuid.uuid4().hex[:8]}"
    item_id = popular_items(system)[3]
    assert recall(system, user_id)["source"] == "popular"
    sent_at_ms = time.time_ns() // 1_000_000

    post_click(system, user_id, item_id)

    system.wait_until(lambda: recall(system, user_id)["source"] == "personal", what="a personal list", timeout_s=30)
    explained = recall(system, user_id, "limit=10&explain=true")
    assert explained["as_of_ms"] >= sent_at_ms
    assert [click["item_id"] for click in explained["window"]] == [item_id]
    assert [click["item_id"] for interest in explained["interests"] for click in interest["clicks"]] == [item_id]
    assert item_id not in [entry["item_id"] for entry in explained["items"]]


def test_removed_item_leaves_every_answer(system: System):
    user_id = f"leaver-{uuid.uuid4().hex[:8]}"
    popular = popular_items(system)
    post_click(system, user_id, popular[0])
    system.wait_until(lambda: recall(system, user_id)["source"] == "personal", what="a personal list", timeout_s=30)
    gone = recall(system, user_id)["items"][0]["item_id"]

    address = f"{service_address(system.settings)}/v1/items/{urllib.parse.quote(gone, safe='')}"
    with urllib.request.urlopen(urllib.request.Request(address, method="DELETE"), timeout=10):
        pass

    system.wait_until(
        lambda: gone not in [entry["item_id"] for entry in recall(system, user_id, "limit=50")["items"]],
        what="the removal of an item",
        timeout_s=30,
    )


def test_a_new_item_is_in_the_next_list_of_who_likes_its_like_and_a_removed_one_in_none_also_after_a_swap(
    system: System,
):
    user_id = f"curious-{uuid.uuid4().hex[:8]}"
    new, gone = f"new-{uuid.uuid4().hex[:8]}", popular_items(system)[7]
    first = popular_items(system)[1]
    described = described_items(system.settings)
    like = described[first]
    for entry in ask(system.settings, f"/v1/items/{first}/neighbors?limit=100")["items"]:
        if described[entry["item_id"]].category == like.category:
            post_click(system, user_id, entry["item_id"])
    system.wait_until(lambda: recall(system, user_id)["source"] == "personal", what="a personal list", timeout_s=30)
    fields = {name: getattr(like, name) for name in ("category", "brand", "shop") if getattr(like, name) is not None}
    before = system.status()["model"]["version"]

    put_item(system, {"item_id": new, **fields, "features": dict(like.features)})
    put_item(system, {"item_id": gone, "removed": True})
    time.sleep(1.0)  # the bar: a refresh that begins a second later, or more

    listed = [entry["item_id"] for entry in list_after_a_click(system, user_id, first)]
    assert new in listed
    assert gone not in listed

    trained = system.command("train", "--force")
    assert trained.returncode == 0, trained.stderr[-2000:]
    system.wait_until(lambda: system.status()["model"]["version"] > before, what="the swap")
    system.wait_until(system.is_settled, what="every list under the new version")
    after = recall(system, user_id, "limit=200")
    assert after["model_version"] > before
    assert new in [entry["item_id"] for entry in after["items"]]
    assert gone not in [entry["item_id"] for entry in after["items"]]


def put_item(system: System, item: dict[str, Any]) -> None:
    with kafka.KafkaProducer(bootstrap_servers=system.settings.bootstrap_servers) as producer:
        value = json.dumps(item).encode()
        producer.send(system.settings.topic("items"), key=item["item_id"].encode(), value=value).get(timeout=10)


def list_after_a_click(system: System, user_id: str, item_id: str) -> list[dict[str, Any]]:
    """Click, and return the items of the list that reflects it."""
    [place] = post_click(system, user_id, item_id)
    listed = recall(system, user_id, f"limit=200&min_offset={place['partition']}:{place['offset']}&wait_ms=10000")
    assert listed["window_offset"] >= place["offset"]
    items: list[dict[str, Any]] = listed["items"]
    return items


def test_swap_under_load_fails_no_query_and_every_list_agrees_with_its_own_version(system: System):
    before = system.status()["model"]["version"]
    users = system.status()["recent_users"]
    hammer = Hammer(system, users, per_second=50)

    with hammer:
        trained = system.command("train", "--force")
        assert trained.returncode == 0, trained.stderr[-2000:]
        system.wait_until(lambda: system.status()["model"]["version"] > before, what="the swap")
        system.wait_until(system.is_settled, what="every list under the new version")

    assert hammer.failures == []
    assert hammer.asked >= 500
    assert len(hammer.versions) >= 2
    result = rescore(system.settings)
    assert result.mismatches == []
    assert len(result.agreeing) >= 2
    assert len(weights_hashes(system)) == len(result.agreeing)


def weights_hashes(system: System) -> set[str]:
    manifests = (system.settings.data_dir / "models").glob("**/manifest.json")
    loaded = [json.loads(path.read_text()) for path in manifests]
    return {
        manifest["files"]["weights.safetensors"]["sha256"]
        for manifest in loaded
        if "weights.safetensors" in manifest["files"]
    }


class Hammer:
    """Asks for lists at a steady rate in the background and keeps what went wrong."""

    def __init__(self, system: System, users: list[str], *, per_second: float) -> None:
        self.system, self.users, self.pause_s = system, users, 1 / per_second
        self.asked, self.failures, self.versions = 0, [], set()
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(4)
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._pool.shutdown()

    def _run(self) -> None:
        chosen = random.Random(7)
        while not self._ended.wait(self.pause_s):
            self._pool.submit(self._ask, chosen.choice(self.users))

    def _ask(self, user_id: str) -> None:
        self.asked += 1
        try:
            answer = recall(self.system, user_id)
            self.versions.add(answer["model_version"])
            if not answer["items"]:
                self.failures.append("an empty list")
        except (OSError, ValueError, KeyError) as error:
            self.failures.append(repr(error))


def test_killed_engines_lose_no_click_and_apply_none_twice(system: System):
    replaying = threading.Thread(
        target=lambda: system.command("replay", "--fresh", "--skip-items", "--limit", "60000", "--restamp")
    )
    replaying.start()
    kill_engine_in_the_middle_of_its_work(system, times=3)
    replaying.join()

    system.wait_until(system.is_settled, what="the end of the backlog", timeout_s=200)
    audited = system.command("audit", timeout_s=300)

    assert audited.returncode == 0, audited.stdout[-3000:] + audited.stderr[-2000:]


def kill_engine_in_the_middle_of_its_work(system: System, *, times: int) -> None:
    """Kill the engine when it has applied clicks since its start and has far more to apply than live traffic brings."""
    for _ in range(times):
        deadline = time.monotonic() + 60
        while not is_in_the_middle(system):
            assert time.monotonic() < deadline, "the engine was never seen in the middle of its work"
            time.sleep(0.02)
        pid = engine_pid(system)
        os.kill(pid, signal.SIGKILL)
        system.wait_until(lambda pid=pid: engine_pid(system) != pid, what="a new engine", timeout_s=30)


def is_in_the_middle(system: System) -> bool:
    try:
        figures = system.engine_metrics()
    except OSError:
        return False
    return figures["mindstream_consumer_lag"] >= 1_000 and figures['mindstream_clicks_total{outcome="applied"}'] > 0


def engine_pid(system: System) -> int:
    for pid in children_of(system.process.pid):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if command[-2:-1] == [b"engine"]:
            return pid
    raise KeyError("no engine runs")
