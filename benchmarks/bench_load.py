"""A running system under load, as its clients see it: fresh lists beside 500 clicks/s, and five times too many clicks.

Start one with `make up` in another terminal, wait until its summary is printed, then run this with the same settings.
Everything is measured from outside: clicks go to Kafka and over HTTP, lists come over HTTP, figures from `/metrics`.

**Steady**: clicks of users who never come twice, at a rate. Probes meanwhile, as in `bench_freshness.py`: each posts
one click of a user nobody has seen and asks for that user's list until it reflects the click. In the same run one
record after another makes the bare way through the same broker, produced with all acknowledgements and consumed.

**Overload**: how many lists a second the engine makes while it works off a burst of users whose windows are full; then
five times as many clicks, over as many of them as it can refresh in 20 s. Probes meanwhile tell how old the oldest
waiting click gets; afterwards it is timed how long lists take to be as fresh as before, and `mindstream audit`
recomputes every window from the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from bench_freshness import headers, known_items, percentile, reflects
from report import at_most, conclude, machine

from engine.events import ClickEvent, encode_click
from engine.log import Message, Publisher
from engine.settings import Settings
from engine.summary import scrape, service_address

STEADY_P50_S, STEADY_P99_S, OVER_TWO_TRIPS_S = 0.1, 0.5, 0.06
OLDEST_S, NORMAL_WITHIN_S, NORMAL_S = 30.0, 60.0, 1.0
TIMES, SECONDS_OF_USERS = 5, 20
FULL_USERS, FULL_CLICKS = 20_000, 50
"""Users whose windows are filled first: with few clicks a list costs a fraction."""
TICK_S, AT_ONCE = 0.02, 5_000
PROBERS, GIVE_UP_S = 64, 120.0
IDLE_CLICKS = 100
"""Fewer clicks behind, or users waiting, than this are those of the moment."""


def main() -> int:
    arguments = parse_arguments()
    settings = Settings()
    if arguments.send:
        asyncio.run(send(settings, json.loads(arguments.send), sys.stdin.read().split()))
        return 0
    shop = Shop(settings, arguments.token)
    figures: dict[str, Any] = {"machine": machine()}
    if arguments.only != "overload":
        figures["steady"] = steady(shop, clicks_per_s=arguments.clicks_per_s, seconds=arguments.seconds)
    if arguments.only != "steady":
        figures["overload"] = overload(shop, seconds=arguments.overload_seconds)
    figures["checks"] = checks_of(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--token", help="the query service's bearer token, where it demands one")
    parser.add_argument("--only", choices=("steady", "overload"), help="leave the other part out")
    parser.add_argument("--clicks-per-s", type=int, default=500, help="of the steady part")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the steady part")
    parser.add_argument("--overload-seconds", type=float, default=300.0)
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--send", help=argparse.SUPPRESS)
    return parser.parse_args()


# --- clicks, sent by a process of their own


@contextmanager
def sending(items: Sequence[str], **plan: float | str) -> Iterator[subprocess.Popen[str]]:
    """Send clicks on *items* meanwhile; see `send` for the *plan*."""
    command = [sys.executable, __file__, "--send", json.dumps(plan)]
    sender = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert sender.stdin is not None
    sender.stdin.write(" ".join(items))
    sender.stdin.close()
    try:
        yield sender
    finally:
        is_done = sender.poll() is not None
        sender.terminate()
        if sender.wait() and is_done:
            sys.exit(f"clicks could not be sent: status {sender.returncode}, see above")


async def send(settings: Settings, plan: dict[str, Any], items: Sequence[str]) -> None:
    """Send *rate* clicks a second for *seconds*, of *users* who come in turns; at rate 0 *each* of theirs at once.

    The last line on stdout says how many were sent, and how far the last ones were behind their time.
    """
    users, rate, name, run = int(plan["users"]), float(plan["rate"]), plan["name"], uuid.uuid4().hex[:8]
    total = int(rate * plan["seconds"]) if rate else users * int(plan["each"])
    order = random.Random(7)
    publisher, topic = Publisher(settings), settings.topic("clicks")
    await publisher.start()
    began_s, sent, waiting = time.monotonic(), 0, set[asyncio.Task[Any]]()
    while sent < total:
        due = min(total, int((time.monotonic() - began_s) * rate) if rate else sent + AT_ONCE)
        now_ms = time.time_ns() // 1_000_000
        clicks = [
            ClickEvent(
                user_id=f"{name}-{number % users}",
                item_id=order.choice(items),
                clicked_at_ms=now_ms,
                event_id=f"{run}:{number}",
            )
            for number in range(sent, due)
        ]
        messages = [Message(topic, encode_click(click), click.user_id.encode()) for click in clicks]
        if messages:
            waiting.add(asyncio.create_task(publisher.send_all(messages)))
        sent = due
        ended = {task for task in waiting if task.done()}
        for task in ended:
            task.result()
        waiting -= ended
        if rate:
            await asyncio.sleep(TICK_S)
        else:
            await asyncio.gather(*waiting)
    await asyncio.gather(*waiting)
    late_s = time.monotonic() - began_s - (total / rate if rate else 0.0)
    await publisher.stop()
    print(json.dumps({"sent": sent, "late_s": late_s}), flush=True)


# --- what is seen from outside


class Shop:
    """The running system."""

    def __init__(self, settings: Settings, token: str | None) -> None:
        self.settings = settings
        self.address = service_address(settings)
        self._metrics = f"http://{settings.metrics_host}:{settings.engine_metrics_port}/metrics"
        self._headers = headers(token)
        self.run = uuid.uuid4().hex[:6]
        self._probes = 0
        self._random = random.Random(7)
        with self.client() as client:
            self.items = known_items(client)

    def client(self) -> httpx.Client:
        """Return a client of the query service."""
        return httpx.Client(base_url=self.address, headers=self._headers, timeout=30)

    def figure(self, name: str) -> float:
        """Return a figure of the engine."""
        return scrape(self._metrics).get(name, 0.0)

    def probe(self, client: httpx.Client, *, pause_s: float) -> float:
        """Return the seconds from sending one click to a list that reflects it, asked for every *pause_s*."""
        self._probes += 1
        user, item = f"probe-{self.run}-{self._probes}", self._random.choice(self.items)
        clicked_at_ms, began_s = time.time_ns() // 1_000_000, time.perf_counter()
        click = {"user_id": user, "item_id": item, "clicked_at_ms": clicked_at_ms}
        client.post("/v1/clicks", json=click).raise_for_status()
        while time.perf_counter() - began_s < GIVE_UP_S:
            answer = client.get(f"/v1/users/{user}/recall", params={"limit": 10, "explain": "true"}).json()
            if answer.get("source") == "personal" and reflects(answer, item, clicked_at_ms):
                return time.perf_counter() - began_s
            time.sleep(pause_s)
        return time.perf_counter() - began_s

    def wait_until_idle(self) -> float:
        """Return the seconds until nothing waits."""
        began_s = time.monotonic()
        while self.figure("mindstream_consumer_lag") + self.figure("mindstream_dirty_users") > IDLE_CLICKS:
            time.sleep(0.2)
        return time.monotonic() - began_s


# --- steady


def steady(shop: Shop, *, clicks_per_s: int, seconds: float) -> dict[str, float]:
    shop.wait_until_idle()
    trips: list[float] = []
    stop = threading.Event()
    tripper = threading.Thread(target=lambda: asyncio.run(round_trips(shop, trips, stop)))
    lists_before = shop.figure("mindstream_lists_published_total")
    plan = {"name": f"steady-{shop.run}", "rate": clicks_per_s, "users": 10**9, "seconds": seconds + 5.0}
    probes: list[float] = []
    with sending(shop.items, **plan), shop.client() as client:
        time.sleep(5.0)
        tripper.start()
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            probes.append(shop.probe(client, pause_s=0.002))
            time.sleep(0.1)
    stop.set()
    tripper.join()
    probes.sort()
    trips.sort()
    figures = {
        "clicks_per_s": clicks_per_s,
        "lists_per_s": (shop.figure("mindstream_lists_published_total") - lists_before) / (seconds + 5.0),
        "probes": len(probes),
        "p50_s": percentile(probes, 0.5),
        "p99_s": percentile(probes, 0.99),
        "round_trip_p50_s": percentile(trips, 0.5),
        "round_trip_p99_s": percentile(trips, 0.99),
    }
    print(
        f"steady ({machine()}): {clicks_per_s} clicks/s of as many users, {figures['lists_per_s']:,.0f} lists/s; "
        f"{len(probes)} probes, click to list p50 {1e3 * figures['p50_s']:.0f} ms, p99 {1e3 * figures['p99_s']:.0f} ms;"
        f" a record through the broker p50 {1e3 * figures['round_trip_p50_s']:.1f} ms, "
        f"p99 {1e3 * figures['round_trip_p99_s']:.0f} ms"
    )
    return figures


async def round_trips(shop: Shop, trips: list[float], stop: threading.Event) -> None:
    """Add the seconds of one record after another through a topic of its own, until *stop*."""
    topic, servers = f"round-trips-{shop.run}", shop.settings.bootstrap_servers
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic, 1, 1)])
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", enable_idempotence=True)
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, enable_auto_commit=False)
    await producer.start()
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.seek_to_beginning()
    try:
        await producer.send_and_wait(topic, b"first", partition=0)
        await consumer.getone()
        while not stop.is_set():
            began_s = time.perf_counter()
            await producer.send_and_wait(topic, b"x" * 200, partition=0)
            await consumer.getone()
            trips.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.1)
    finally:
        await consumer.stop()
        await producer.stop()
        await admin.delete_topics([topic])
        await admin.close()


# --- overload


def overload(shop: Shop, *, seconds: float) -> dict[str, float]:
    shop.wait_until_idle()
    capacity = measure_capacity(shop)
    print(f"a burst is worked off at {capacity:,.0f} lists/s", flush=True)
    rate, users = TIMES * capacity, min(FULL_USERS, int(SECONDS_OF_USERS * capacity))
    lags: list[float] = []
    plan = {"name": f"full-{shop.run}", "rate": rate, "users": users, "seconds": seconds}
    with ThreadPoolExecutor(PROBERS) as probers, shop.client() as client:
        with sending(shop.items, **plan) as sender:
            asked = []
            while sender.poll() is None:
                asked.append(probers.submit(shop.probe, client, pause_s=0.5))
                lags.append(shop.figure("mindstream_consumer_lag"))
                time.sleep(1.0)
            assert sender.stdout is not None
            sent = json.loads(sender.stdout.read())
        ended_s = time.monotonic()
        while shop.probe(client, pause_s=0.01) > NORMAL_S or shop.figure("mindstream_dirty_users") > IDLE_CLICKS:
            time.sleep(0.2)
        normal_s = time.monotonic() - ended_s
        ages = sorted(one.result() for one in asked)
    differences = audit()
    figures = {
        "capacity_lists_per_s": capacity,
        "sent": sent["sent"],
        "late_s": sent["late_s"],
        "users": users,
        "lag_most_s": max(lags) / rate,
        "probes": len(ages),
        "age_p50_s": percentile(ages, 0.5),
        "age_most_s": ages[-1],
        "normal_after_s": normal_s,
        "differences": differences,
    }
    print(
        f"overload: {sent['sent']:,} clicks of {users:,} users in {seconds:.0f} s, {rate:,.0f}/s "
        f"({sent['late_s']:.1f} s late); ingest at most {figures['lag_most_s']:.2f} s behind; "
        f"{len(ages)} probes, click to list p50 {figures['age_p50_s']:.1f} s, at most {ages[-1]:.1f} s; "
        f"as fresh as before {normal_s:.1f} s after the end; {differences:.0f} differences between log and lists"
    )
    return figures


def measure_capacity(shop: Shop) -> float:
    """Return the lists a second of an engine that works off a burst: one click each of users with full windows."""
    name = f"full-{shop.run}"
    with sending(shop.items, name=name, rate=0, users=FULL_USERS, each=FULL_CLICKS) as sender:
        sender.wait()
    filled_s = shop.wait_until_idle()
    print(f"{FULL_USERS:,} windows filled, lists made {filled_s:.0f} s later", flush=True)
    wanted, began_s = shop.figure("mindstream_lists_published_total") + FULL_USERS, time.monotonic()
    with sending(shop.items, name=name, rate=0, users=FULL_USERS, each=1) as sender:
        sender.wait()
        while shop.figure("mindstream_lists_published_total") < wanted:
            time.sleep(0.05)
    return FULL_USERS / (time.monotonic() - began_s)


def audit() -> float:
    """Return how many differences `mindstream audit` names."""
    command = [str(Path(sys.executable).with_name("mindstream")), "audit", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(len(json.loads(ended.stdout)["differences"]))


# --- verdict


def checks_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    bars: list[tuple[str, float, float]] = []
    if "steady" in figures:
        found = figures["steady"]
        bars += [
            ("click to list, p50", found["p50_s"], STEADY_P50_S),
            ("click to list, p99", found["p99_s"], STEADY_P99_S),
            ("click to list, p50 against two trips", found["p50_s"], 2 * found["round_trip_p50_s"] + OVER_TWO_TRIPS_S),
        ]
    if "overload" in figures:
        found = figures["overload"]
        bars += [
            ("overload, ingest behind", found["lag_most_s"], NORMAL_S),
            ("overload, oldest click without a list", found["age_most_s"], OLDEST_S),
            ("overload, as fresh as before", found["normal_after_s"], NORMAL_WITHIN_S),
            ("overload, differences", found["differences"], 0.0),
        ]
    return [at_most(name, value, bar) for name, value, bar in bars]


if __name__ == "__main__":
    sys.exit(main())
