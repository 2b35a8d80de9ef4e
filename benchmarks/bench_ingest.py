"""Ingest at the speed of the log: how fast a filled topic is drained into windows of 50 clicks, on one core.

A real Kafka of its own holds the clicks (`ingest_load.py`) before anything is timed. Four drains read the same topic,
one after the other, in turns, each a fresh process with an empty directory:

- **ours**: the engine's intake with its checks and its stores, and a window read per dirty user and second
  (`ingest_ours.py`),
- **replay**: the same after the stores were lost: nobody is refreshed before the log's end is reached,
- **stock Faust**: an agent that keeps the same windows in a Table (`ingest_stock_faust.py`), on the first clicks only,
- **bare**: aiokafka's `getmany` and msgspec, with no state at all (`ingest_bare.py`).

Drains run on the first core, the broker's JVM on the last. Ratios are of medians within this run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ingest_load import CLICK_BYTES, USERS, clicks, fill
from report import at_least, at_most, conclude, machine

from engine.settings import Settings
from engine.streams.local_broker import LocalBroker
from engine.streams.topics import create_topics

HERE = Path(__file__).parent
AT_LEAST_OF_STOCK, AT_LEAST_OF_BARE, AT_LEAST_OF_INGEST = 25.0, 0.25, 1.0
MOST_DISK = 1.5
DRAINS = {
    "ours": "ingest_ours.py",
    "replay": "ingest_ours.py",
    "stock": "ingest_stock_faust.py",
    "bare": "ingest_bare.py",
}
TIMEOUT_S = 900


def main() -> int:
    arguments = parse_arguments()
    directory = Path(tempfile.mkdtemp(prefix="bench-ingest-", dir=arguments.directory))
    settings = Settings(data_dir=directory, broker_port=free_ports(2), broker_heap_mb=512, kafka_bootstrap_servers=None)
    broker = LocalBroker(settings)
    try:
        broker.start()
        pin(broker.pids, core=-1)
        asyncio.run(create_topics(settings))
        print(f"filling the topic with {arguments.clicks:,} clicks", flush=True)
        asyncio.run(fill(settings, clicks(arguments.clicks)))
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in DRAINS}
        for turn in range(arguments.turns):
            for name in DRAINS:
                count = arguments.stock_clicks if name == "stock" else arguments.clicks
                data = directory / f"{name}-{turn}"
                mode = "replay" if name == "replay" else "live"
                runs[name].append(drain(settings, DRAINS[name], data, clicks=count, mode=mode))
                told = runs[name][-1]
                print(
                    f"  {name}: {told['clicks_per_s']:,.0f} clicks/s, {told['clicks_per_cpu_s']:,.0f} a CPU second",
                    flush=True,
                )
    finally:
        broker.stop()
        shutil.rmtree(directory, ignore_errors=True)
    figures = summarize(runs, arguments)
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="100,000 clicks in one turn in place of a million in three"
    )
    parser.add_argument("--clicks", type=int, help="how many clicks the topic holds")
    parser.add_argument("--stock-clicks", type=int, help="how many of them stock Faust takes")
    parser.add_argument("--turns", type=int, help="how often each drain runs")
    parser.add_argument(
        "--directory", type=Path, help="where logs and stores lie meanwhile; a temporary one by default"
    )
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    arguments.clicks = arguments.clicks or (100_000 if arguments.quick else 1_000_000)
    arguments.stock_clicks = min(arguments.clicks, arguments.stock_clicks or (5_000 if arguments.quick else 60_000))
    arguments.turns = arguments.turns or (1 if arguments.quick else 3)
    return arguments


def free_ports(count: int) -> int:
    """Return the first of *count* neighboring free ports of the loopback interface."""
    for first in range(19_500, 29_500, count):
        probes = [socket.socket() for _ in range(count)]
        try:
            for number, probe in enumerate(probes):
                probe.bind(("127.0.0.1", first + number))
            return first
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    sys.exit("no free ports between 19500 and 29500")


def pin(pids: list[int], *, core: int) -> None:
    """Hold every thread of these processes on one core, counted as a list counts."""
    chosen = sorted(os.sched_getaffinity(0))[core]
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {chosen})


def drain(settings: Settings, script: str, data: Path, *, clicks: int, mode: str) -> dict[str, Any]:
    """Run one drain in a process of its own, with the data directory *data*, and return its figures."""
    command = [sys.executable, str(HERE / script), "--broker", settings.bootstrap_servers, "--data", str(data)]
    command += ["--group", f"bench-{data.name}", "--clicks", str(clicks), "--mode", mode]
    environment = os.environ | {
        "CLICKS_PARTITIONS": str(settings.clicks_partitions),
        "TOPIC_PREFIX": settings.topic_prefix,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "OMP_NUM_THREADS": "1",
    }
    core = sorted(os.sched_getaffinity(0))[0]
    ended = subprocess.run(
        ["taskset", "-c", str(core), *command], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    shutil.rmtree(data, ignore_errors=True)
    if ended.returncode != 0 or not ended.stdout.strip():
        sys.exit(f"the drain {script} failed with {ended.returncode}:\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}")
    figures: dict[str, Any] = json.loads(ended.stdout.strip().splitlines()[-1])
    return figures


def summarize(runs: dict[str, list[dict[str, Any]]], arguments: argparse.Namespace) -> dict[str, Any]:
    rates = {name: statistics.median(run["clicks_per_s"] for run in each) for name, each in runs.items()}
    cpu_rates = {name: statistics.median(run["clicks_per_cpu_s"] for run in each) for name, each in runs.items()}
    on_disk = statistics.median(run["disk_bytes"] / run["kept_bytes"] for run in runs["ours"])
    bars = (("stock Faust", "stock", AT_LEAST_OF_STOCK), ("the bare loop", "bare", AT_LEAST_OF_BARE))
    return {
        "machine": machine(),
        "users": USERS,
        "click_bytes": CLICK_BYTES,
        "clicks": arguments.clicks,
        "stock_clicks": arguments.stock_clicks,
        "clicks_per_s": rates,
        "clicks_per_cpu_s": cpu_rates,
        "ratio_by_cpu": {name: cpu_rates["ours"] / cpu_rates[name] for name in ("stock", "bare")},
        "runs": runs,
        "checks": [
            *(at_least(f"ingest over {words}", rates["ours"] / rates[name], bar) for words, name, bar in bars),
            at_least("replay over ingest", rates["replay"] / rates["ours"], AT_LEAST_OF_INGEST),
            at_most("disk over kept clicks", on_disk, MOST_DISK),
        ],
    }


def show(figures: dict[str, Any]) -> None:
    rates, by_cpu = figures["clicks_per_s"], figures["ratio_by_cpu"]
    over_stock, over_bare, of_ingest, on_disk = (check["value"] for check in figures["checks"])
    print(
        f"ingest ({figures['machine']}): ours {rates['ours']:,.0f} clicks/s, stock Faust {rates['stock']:,.0f} "
        f"(ratio {over_stock:.1f}, by CPU {by_cpu['stock']:.1f}), bare loop {rates['bare']:,.0f} "
        f"(ratio {over_bare:.2f}, by CPU {by_cpu['bare']:.2f}); "
        f"replay {rates['replay']:,.0f} (ratio to ours {of_ingest:.2f}); disk {on_disk:.2f} of the kept clicks"
    )


if __name__ == "__main__":
    sys.exit(main())
