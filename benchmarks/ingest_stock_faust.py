"""Stock Faust beside the ingest benchmark: the same windows, as its documentation would have one write them.

One agent, one Table in RocksDB with its changelog, the list of a user's newest 50 clicks as the value. Options are
Faust's defaults, except for those without which it would not start here. Of the engine's duties it has none but the
window: it checks no click, and has no dirty users, dead letters or trimming.
"""

from __future__ import annotations

import os
import sys
from bisect import insort

import faust
from ingest_load import Clock, finish, worker_arguments

arguments, clock = worker_arguments(), Clock()
PARTITIONS = int(os.environ["CLICKS_PARTITIONS"])

app = faust.App(
    arguments.group,
    broker=f"kafka://{arguments.broker}",
    store="rocksdb://",
    datadir=str(arguments.data),
    key_serializer="raw",
    value_serializer="json",
    consumer_auto_offset_reset="earliest",
    topic_partitions=PARTITIONS,
    topic_replication_factor=1,
    topic_disable_leader=True,
    web_enabled=False,
)
clicks = app.topic("clicks", partitions=PARTITIONS)
windows = app.Table("windows", default=list, partitions=PARTITIONS, key_type=str, value_type=None)
taken = 0


@app.agent(clicks)
async def fold(stream: faust.StreamT) -> None:
    global taken
    async for click in stream:
        clock.start()
        window = windows[click["user_id"]]
        entry = [
            click["clicked_at_ms"],
            click.get("event_id") or click["item_id"],
            click["item_id"],
            click.get("event_type", "click"),
            click.get("weight", 1.0),
        ]
        if entry not in window:
            insort(window, entry)
        windows[click["user_id"]] = window[-50:]
        taken += 1
        if taken == arguments.clicks:
            finish(clock.stop(taken))


sys.argv = [sys.argv[0], "--datadir", str(arguments.data), "worker", "--without-web", "--loglevel", "warn"]
app.main()
