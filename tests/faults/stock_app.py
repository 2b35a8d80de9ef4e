"""Stock Faust as its documentation would have one write it: a window and a count for each user, in two Tables."""

from __future__ import annotations

import os
import sys
from bisect import insort
from pathlib import Path

import faust

WINDOW = int(os.environ["STOCK_WINDOW"])
DATA, TOPIC = Path(os.environ["STOCK_DATA"]), os.environ["STOCK_TOPIC"]
PARTITIONS = int(os.environ["STOCK_PARTITIONS"])
PROGRESS_EVERY = 100

app = faust.App(
    f"{TOPIC}-stock",
    broker=f"kafka://{os.environ['STOCK_BROKER']}",
    store="rocksdb://",
    datadir=str(DATA),
    key_serializer="raw",
    value_serializer="json",
    consumer_auto_offset_reset="earliest",
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    topic_disable_leader=True,
    web_enabled=False,
)
clicks = app.topic(TOPIC, partitions=PARTITIONS)
windows = app.Table("windows", default=list, partitions=PARTITIONS, key_type=str, value_type=None)
counts = app.Table("counts", default=int, partitions=PARTITIONS, key_type=str, value_type=None)
taken = 0


@app.agent(clicks)
async def fold(stream: faust.StreamT) -> None:
    global taken
    async for click in stream:
        if isinstance(click, dict):
            user, window = click["user_id"], windows[click["user_id"]]
            entry = [click["clicked_at_ms"], click.get("event_id") or click["item_id"], click["item_id"]]
            if entry not in window:
                insort(window, entry)
            windows[user] = window[-WINDOW:]
            counts[user] += 1
        taken += 1
        if taken % PROGRESS_EVERY == 0:
            (DATA / "progress").write_text(str(taken))


if __name__ == "__main__":
    sys.argv = [sys.argv[0], "--datadir", str(DATA), "worker", "--without-web", "--loglevel", "warn"]
    app.main()
