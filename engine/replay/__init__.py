"""Replay: sends a source's catalog to `items` and its clicks to `clicks`, at a chosen pace, and can be continued.

Every chunk is acknowledged before the next one is sent, and only then is the place written to the resume file. So a
replay that was killed loses nothing and sends at most one chunk twice, which the window rule melts away. A broker
outage is waited out. Records carry the user id or the item id as key; partitions are Kafka's own choice by that key.
"""

from engine.replay.command import run_replay, send_with_bar
from engine.replay.run import OnProgress, ReplayReport, replay

__all__ = ["OnProgress", "ReplayReport", "replay", "run_replay", "send_with_bar"]
