"""Queries a second and their latency, against a bare uvicorn + FastAPI handler that returns the same bytes.

A real Kafka of its own holds the lists of 2,000 users; `mindstream serve` follows them as it always does. The bare
handler is one route that returns prebuilt bytes of a like answer, run by the same uvicorn settings' defaults. Both are
asked over 16 kept connections by a plain asyncio client on another core, in turns; ratios are of medians.

**Throughput**: as fast as the answers come. **Latency**: 200 requests a second, begun on time whatever the answers do,
while a refresh works at full speed beside it (routing, search and merge in a process of its own) and its lists, 300 a
second, go through the log into the service.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from report import at_least, at_most, conclude, machine

from engine.log import Message, Publisher
from engine.recall import FormingClick, InterestSummary, RankedItem, RecallList, WindowClick, encode_list
from engine.settings import Settings
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics

USERS, LIST, WINDOW, LIMIT = 2_000, 200, 50, 50
CONNECTIONS, RATE = 16, 200
LISTS_PER_S = 300
LEAST_OF_BARE, MOST_P99_MS, MOST_OVER_BARE = 0.6, 20.0, 3.0
UP_WITHIN_S = 60.0


def main() -> int:
    arguments = parse_arguments()
    if arguments.role:
        return {"bare": run_bare, "refresh": run_refresh}[arguments.role](arguments)
    directory = Path(tempfile.mkdtemp(prefix="bench-serving-", dir=arguments.directory))
    settings = Settings(
        data_dir=directory,
        broker_port=free_port(2),
        serve_port=free_port(1),
        kafka_bootstrap_servers=None,
    )
    broker = LocalBroker(settings)
    try:
        broker.start()
        asyncio.run(create_topics(settings))
        asyncio.run(publish(settings, USERS))
        with serving(settings) as ours, bare(directory, ours) as reference:
            figures = measure(arguments, settings, {"ours": ours, "bare": reference})
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one turn of 2 s in place of five of 8 s")
    parser.add_argument("--directory", type=Path, help="where log and lists lie meanwhile; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--role", choices=("bare", "refresh"), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.turns, arguments.seconds = (1, 2.0) if arguments.quick else (5, 8.0)
    return arguments


def free_port(count: int) -> int:
    """Return the first of *count* neighboring free ports of the loopback interface."""
    while True:
        with socket.socket() as first, socket.socket() as last:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            try:
                last.bind(("127.0.0.1", port + count - 1 if count > 1 else 0))
            except OSError:
                continue
            return port


# --- what is asked


def make_list(user: str, rng: random.Random) -> RecallList:
    now_ms = time.time_ns() // 1_000_000
    scores = sorted((rng.uniform(1.0, 9.0) for _ in range(LIST)), reverse=True)
    clicked = [f"i{rng.randrange(100_000):06d}" for _ in range(WINDOW)]
    return RecallList(
        user_id=user,
        items=[RankedItem(f"i{rng.randrange(100_000):06d}", score, rng.randrange(4)) for score in scores],
        interests=[InterestSummary(at, 0.25, [FormingClick(one, 0.8) for one in clicked[:5]]) for at in range(4)],
        window=[WindowClick(one, now_ms - at, "click") for at, one in enumerate(clicked)],
        as_of_ms=now_ms,
        accepted_at_ms=now_ms,
        computed_at_ms=now_ms,
        window_offset=now_ms,
        activation=1,
        epoch="bench",
        model_version="0001",
    )


async def publish(settings: Settings, count: int, *, per_s: float = 0.0, until: asyncio.Event | None = None) -> None:
    """Write the lists of *count* users, all at once or *per_s* of them until told to stop."""
    rng, publisher = random.Random(1), Publisher(settings)
    await publisher.start()
    try:
        at = 0
        while at < count or until is not None:
            if until is not None and until.is_set():
                return
            lists = [make_list(f"u{(at + more) % USERS}", rng) for more in range(int(per_s / 20) if per_s else count)]
            await publisher.send_all([as_message(settings, one) for one in lists])
            at += len(lists)
            if per_s:
                await asyncio.sleep(0.05)
    finally:
        await publisher.stop()


def as_message(settings: Settings, one: RecallList) -> Message:
    place = {"epoch": one.epoch, "window_offset": str(one.window_offset), "activation": str(one.activation)}
    headers = {name: value.encode() for name, value in place.items()}
    return Message(settings.topic("recall-lists"), encode_list(one), one.user_id.encode(), headers)


# --- who is asked


@contextmanager
def serving(settings: Settings) -> Iterator[int]:
    """Run the query service until it has every list, and then on; yield its port."""
    environment = os.environ | {
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MINDSTREAM_DATA_DIR": str(settings.data_dir),
        "MINDSTREAM_SERVE_PORT": str(settings.serve_port),
        "MINDSTREAM_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-m", "engine.cli", "serve"]
    with process(command, environment):
        address = f"http://127.0.0.1:{settings.serve_port}"
        wait_until(lambda: all(b'"personal"' in get(f"{address}/v1/users/u{at}/recall") for at in (0, USERS - 1)))
        yield settings.serve_port


@contextmanager
def bare(directory: Path, ours: int) -> Iterator[int]:
    """Run the bare handler with an answer of the service; yield its port."""
    answer, port = directory / "answer.json", free_port(1)
    answer.write_bytes(get(f"http://127.0.0.1:{ours}/v1/users/u7/recall?limit={LIMIT}"))
    command = [sys.executable, __file__, "--role", "bare", "--port", str(port), "--answer", str(answer)]
    with process(command, dict(os.environ)):
        wait_until(lambda: bool(get(f"http://127.0.0.1:{port}/v1/users/u0/recall")))
        yield port


def run_bare(arguments: argparse.Namespace) -> int:
    import uvicorn
    from fastapi import FastAPI, Response

    content, app = arguments.answer.read_bytes(), FastAPI()

    @app.get("/v1/users/{user_id}/recall")
    async def recall(user_id: str) -> Response:
        return Response(content, media_type="application/json")

    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="error", access_log=False)
    return 0


def run_refresh(_arguments: argparse.Namespace) -> int:
    """Refresh synthetic users for ever."""
    from bench_refresh import recaller, synthetic

    from engine.ann.hnsw import HnswIndex
    from engine.model import UserInput
    from engine.recaller import Wishes

    shop = synthetic(10_000, users=256, steps=8)
    ids, vectors = shop.model.all_item_vectors()
    engine = recaller(shop, HnswIndex.build(vectors), ids, keeps_pools=True)
    print("working", flush=True)
    while True:
        for windows in shop.windows:
            found = shop.model.interests([UserInput(window) for window in windows])
            engine.recall([str(at) for at in range(256)], found, [Wishes(set(window)) for window in windows])


@contextmanager
def process(command: Sequence[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([str(Path(here).parent), here])
    started = subprocess.Popen(command, env={**environment, "PYTHONPATH": paths}, stdout=subprocess.PIPE)
    try:
        yield started
    finally:
        started.terminate()
        started.wait()


def get(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            content: bytes = answer.read()
            return content
    except (urllib.error.URLError, OSError):
        return b""


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + UP_WITHIN_S
    while not is_true():
        if time.monotonic() > deadline:
            sys.exit(f"not up within {UP_WITHIN_S:g} s")
        time.sleep(0.1)


# --- asking


def measure(arguments: argparse.Namespace, settings: Settings, ports: dict[str, int]) -> dict[str, Any]:
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(arguments.turns):
        for name, port in ports.items():
            rates[name].append(asyncio.run(at_full_speed(port, arguments.seconds)))
    print(
        "  " + ", ".join(f"{name} {statistics.median(each):,.0f} requests/s" for name, each in rates.items()),
        flush=True,
    )
    p99_ms: dict[str, list[float]] = {name: [] for name in ports}
    p50_ms: dict[str, list[float]] = {name: [] for name in ports}
    command = [sys.executable, __file__, "--role", "refresh"]
    with process(command, dict(os.environ)) as refresh:
        assert refresh.stdout is not None
        if not any(b"working" in line for line in refresh.stdout):
            raise SystemExit("the refresh to measure beside ended before it worked; its error is above")
        for _ in range(arguments.turns):
            for name, port in ports.items():
                latencies = asyncio.run(under_load(settings, port, arguments.seconds))
                p50_ms[name].append(percentile(latencies, 0.5))
                p99_ms[name].append(percentile(latencies, 0.99))
    ratio = statistics.median(rates["ours"]) / statistics.median(rates["bare"])
    ours_ms, bare_ms = (statistics.median(p99_ms[name]) for name in ("ours", "bare"))
    return {
        "machine": machine(),
        "requests_per_s": rates,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "checks": [
            at_least("requests/s, of the bare handler", ratio, LEAST_OF_BARE),
            at_most("p99 beside a refresh, ms", ours_ms, MOST_P99_MS),
            at_most("p99 beside a refresh, times the bare handler's", ours_ms / bare_ms, MOST_OVER_BARE),
        ],
    }


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


class Connection:
    """One kept HTTP/1.1 connection."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, user: int) -> None:
        request = f"GET /v1/users/u{user}/recall?limit={LIMIT} HTTP/1.1\r\nHost: bench\r\n\r\n"
        self._writer.write(request.encode())
        head = await self._reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            sys.exit(f"an answer began with {head[:200]!r}")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await self._reader.readexactly(int(length.split(b":")[1]))

    def close(self) -> None:
        self._writer.close()


async def connections(port: int, count: int) -> list[Connection]:
    made = [Connection(port) for _ in range(count)]
    for connection in made:
        await connection.open()
    return made


async def at_full_speed(port: int, seconds: float) -> float:
    """Return the requests a second that *CONNECTIONS* get answered, one after the other on each."""
    made, rng = await connections(port, CONNECTIONS), random.Random(3)
    answered, until_s = 0, time.perf_counter() + seconds

    async def go_on(connection: Connection) -> None:
        nonlocal answered
        while time.perf_counter() < until_s:
            await connection.ask(rng.randrange(USERS))
            answered += 1

    await asyncio.gather(*(go_on(connection) for connection in made))
    for connection in made:
        connection.close()
    return answered / seconds


async def under_load(settings: Settings, port: int, seconds: float) -> list[float]:
    """Return the milliseconds from when each request was due to its answer, while lists go through the log."""
    stop = asyncio.Event()
    publishing = asyncio.create_task(publish(settings, 0, per_s=LISTS_PER_S, until=stop))
    await asyncio.sleep(0.5)
    latencies, rng = list[float](), random.Random(4)
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    made = await connections(port, CONNECTIONS)
    for connection in made:
        idle.put_nowait(connection)

    async def one(due_s: float) -> None:
        connection = await idle.get()
        await connection.ask(rng.randrange(USERS))
        latencies.append((time.perf_counter() - due_s) * 1000)
        idle.put_nowait(connection)

    began_s = time.perf_counter()
    tasks: list[Awaitable[None]] = []
    for number in range(int(seconds * RATE)):
        due_s = began_s + number / RATE
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(one(due_s)))
    await asyncio.gather(*tasks)
    stop.set()
    await publishing
    for connection in made:
        connection.close()
    return latencies


def show(figures: dict[str, Any]) -> None:
    ratio, p99, over = (check["value"] for check in figures["checks"])
    p50_ms = {name: statistics.median(each) for name, each in figures["p50_ms"].items()}
    print(
        f"serving ({figures['machine']}): {ratio:.2f} of the bare handler's requests/s; at {RATE}/s beside a refresh "
        f"p50 {p50_ms['ours']:.1f} ms (bare {p50_ms['bare']:.1f}), "
        f"p99 {p99:.1f} ms, {over:.1f} times the bare handler's"
    )


if __name__ == "__main__":
    sys.exit(main())
