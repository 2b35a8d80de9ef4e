"""The log: everything this project says to Kafka without a consumer group.

`Publisher` writes and waits for the broker's acknowledgement; `Follower` reads a whole topic from its beginning, or
from given offsets, for as long as it runs; `Admin` makes and describes topics; `topic_epoch` names the one life of a
topic; `check_access` tells a refusal from an outage. This package owns aiokafka, beside the Faust adapter that reads
`clicks` through a group. All of it lives on the event loop that started it.
"""

from engine.log.access import check_access
from engine.log.admin import Admin
from engine.log.connection import wait_for_broker
from engine.log.epoch import end_offsets, first_offsets, topic_epoch
from engine.log.follower import Follower
from engine.log.publisher import Publisher
from engine.log.ranges import read_range
from engine.log.records import Epoch, Message, Position, Record

__all__ = [
    "Admin",
    "Epoch",
    "Follower",
    "Message",
    "Position",
    "Publisher",
    "Record",
    "check_access",
    "end_offsets",
    "first_offsets",
    "read_range",
    "topic_epoch",
    "wait_for_broker",
]
