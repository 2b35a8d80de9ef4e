"""Stock Faust on the kill schedule of the rig: how many windows and counts are right when it is done.

    python -m tests.faults.stock_faust --rounds 10

Each round sends 12,000 messages and kills the worker (`tests/faults/stock_app.py`) with `kill -9` after a share of them
that is drawn; then a worker does what is left and is stopped. Windows and counts are read from its Tables and compared
with what was sent. A window takes an equal click once, so that applying twice does not show in it; in a count it does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rocksdict
from aiokafka.admin import AIOKafkaAdminClient

from engine.log import end_offsets
from tests.faults.cluster import Cluster
from tests.faults.hits import ROUND_CLICKS
from tests.faults.rig import WITHIN_S, Rig

WINDOW = 50
STALLED_S = 60.0
"""A worker that takes nothing for so long is done, whatever is left."""


class StockWorker:
    """One process of `stock_app`."""

    def __init__(self, rig: Rig, data: Path) -> None:
        data.mkdir(exist_ok=True)
        self._progress = data / "progress"
        self._progress.unlink(missing_ok=True)
        environment = os.environ | {
            "STOCK_BROKER": rig.settings.bootstrap_servers,
            "STOCK_TOPIC": rig.settings.topic("clicks"),
            "STOCK_PARTITIONS": str(rig.settings.clicks_partitions),
            "STOCK_DATA": str(data),
            "STOCK_WINDOW": str(WINDOW),
        }
        command = [sys.executable, "-m", "tests.faults.stock_app"]
        with (data / "worker.log").open("ab") as output:
            self.process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)

    def taken(self) -> int:
        """Return how many messages this process has taken, to the last hundred."""
        try:
            return int(self._progress.read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def end(self, number: signal.Signals) -> None:
        """Send a signal, and wait until the process is gone."""
        self.process.send_signal(number)
        try:
            self.process.wait(30.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def kill_at_work(rig: Rig, data: Path) -> bool:
    """Send a round of messages and kill a worker in the middle of them; return whether it was."""
    rig.send(ROUND_CLICKS)
    goal = int(ROUND_CLICKS * rig.random.uniform(0.05, 0.7))
    worker, deadline = StockWorker(rig, data), time.monotonic() + WITHIN_S
    while worker.taken() < goal and worker.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    hit = worker.process.poll() is None and goal <= worker.taken() < ROUND_CLICKS
    worker.end(signal.SIGKILL)
    return hit


def finish(rig: Rig, data: Path) -> float:
    """Have a worker take everything that is left, and stop it; return how long it took."""
    worker, began = StockWorker(rig, data), time.monotonic()
    seen, moved = 0, began
    while asyncio.run(_uncommitted(rig)) and time.monotonic() - moved < STALLED_S:
        if worker.taken() != seen:
            seen, moved = worker.taken(), time.monotonic()
        time.sleep(0.5)
    took_s = time.monotonic() - began
    worker.end(signal.SIGTERM)
    return took_s


async def _uncommitted(rig: Rig) -> int:
    """Return how many messages of the log the group has not committed."""
    admin = AIOKafkaAdminClient(bootstrap_servers=rig.settings.bootstrap_servers)
    await admin.start()
    try:
        topic = rig.settings.topic("clicks")
        committed = await admin.list_consumer_group_offsets(f"{topic}-stock")
        done = {each.partition: place.offset for each, place in committed.items() if each.topic == topic}
    finally:
        await admin.close()
    return sum(max(0, end - max(0, done.get(at, 0))) for at, end in (await end_offsets(rig.settings, "clicks")).items())


def read_table(data: Path, name: str) -> dict[str, Any]:
    """Return the rows that the Table *name* has on disk."""
    rows = {}
    for path in data.rglob(f"{name}-*.db"):
        options = rocksdict.Options(raw_mode=True)
        store = rocksdict.Rdict(str(path), options=options, access_type=rocksdict.AccessType.read_only())
        for key, value in store.items():
            if not key.startswith(b"__faust"):
                rows[_text(key)] = json.loads(value)
        store.close()
    return rows


def _text(key: bytes) -> str:
    text = key.decode()
    return str(json.loads(text)) if text.startswith('"') else text


def expected(sent: Path) -> tuple[dict[str, list[list[Any]]], Counter[str]]:
    """Return the windows and counts that the messages sent leave behind."""
    windows: dict[str, list[list[Any]]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for line in sent.read_text().splitlines():
        try:
            click = json.loads(json.loads(line)[2])
        except ValueError:
            continue
        if isinstance(click, dict):
            entry = [click["clicked_at_ms"], click.get("event_id") or click["item_id"], click["item_id"]]
            if entry not in windows[click["user_id"]]:
                insort(windows[click["user_id"]], entry)
            counts[click["user_id"]] += 1
    return {user: window[-WINDOW:] for user, window in windows.items()}, counts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rounds and print what is right."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.stock_faust",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="stock-") as name:
        folder = Path(name)
        cluster = Cluster(folder / "brokers")
        try:
            cluster.start()
            rig = Rig(cluster.settings, folder / "rig", prefix="stock-", seed=options.seed, cluster=cluster)
            hits = sum(kill_at_work(rig, folder / "data") for _ in range(options.rounds))
            took_s = finish(rig, folder / "data")
        finally:
            cluster.stop()
        windows, counts = expected(folder / "rig" / "sent.jsonl")
        found, counted = read_table(folder / "data", "windows"), read_table(folder / "data", "counts")
    wrong = [user for user, window in windows.items() if found.get(user, []) != window]
    more = sum(max(0, counted.get(user, 0) - count) for user, count in counts.items())
    fewer = sum(max(0, count - counted.get(user, 0)) for user, count in counts.items())
    off = sum(counted.get(user, 0) != count for user, count in counts.items())
    print(f"stock Faust: {hits} kills at work of {options.rounds}, {rig.sent:,} messages, {len(windows):,} users")
    print(f"windows differing: {len(wrong):,}; counts differing: {off:,}")
    print(f"clicks counted twice: {more:,}, not counted: {fewer:,}; done again after {took_s:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
