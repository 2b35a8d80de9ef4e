"""How a local node is configured: its ports, its `server.properties` and its log4j file."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from engine.settings import Settings

HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Ports:
    """The two ports of one node."""

    client: int
    controller: int


def ports_of(settings: Settings, node: int) -> Ports:
    """Return the ports of node *node*, counted from 1."""
    first = settings.broker_port + 2 * (node - 1)
    return Ports(client=first, controller=first + 1)


def properties_of(settings: Settings, node: int, *, nodes: int, log_dir: Path) -> str:
    """Return the `server.properties` of node *node* of *nodes*, whose log lies in *log_dir*."""
    ports = ports_of(settings, node)
    voters = ",".join(f"{each}@{HOST}:{ports_of(settings, each).controller}" for each in range(1, nodes + 1))
    return PROPERTIES.format(
        node=node,
        voters=voters,
        client=f"PLAINTEXT://{HOST}:{ports.client}",
        controller=f"CONTROLLER://{HOST}:{ports.controller}",
        log_dir=log_dir,
        replicas=nodes,
        in_sync=max(1, nodes - 1),
    )


def write_whole(path: Path, text: str) -> None:
    """Put *text* into *path* so that a reader sees the old or the new file, never a part."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


PROPERTIES = """\
process.roles=broker,controller
node.id={node}
controller.quorum.voters={voters}
listeners={client},{controller}
advertised.listeners={client}
controller.listener.names=CONTROLLER
listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT
log.dirs={log_dir}
auto.create.topics.enable=false
delete.topic.enable=true
log.retention.ms=-1
log.retention.bytes=-1
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
log.cleaner.io.buffer.size=262144
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
offsets.topic.num.partitions=4
offsets.topic.replication.factor={replicas}
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor={replicas}
transaction.state.log.min.isr={in_sync}
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor={replicas}
share.coordinator.state.topic.min.isr={in_sync}
default.replication.factor={replicas}
min.insync.replicas={in_sync}
"""

LOG4J = """\
status = error
appender.console.type = Console
appender.console.name = console
appender.console.layout.type = PatternLayout
appender.console.layout.pattern = %d{ISO8601} %p %c{1} %m%n
rootLogger.level = info
rootLogger.appenderRef.console.ref = console
logger.config.name = org.apache.kafka.common.config
logger.config.level = warn
logger.kafkaconfig.name = kafka.server.KafkaConfig
logger.kafkaconfig.level = warn
"""
