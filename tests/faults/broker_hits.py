"""Faults of the broker and of the way to it: killed, paused, its coordinator lost, connections slow, cut or silent.

An engine is at work when they begin, has to live through them, and must apply everything afterwards.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from aiokafka.admin import AIOKafkaAdminClient

from engine.settings import Settings
from tests.faults.cluster import Cluster
from tests.faults.rig import EngineProcess, Rig, wait

BACKLOG, MORE = 12_000, 2_000
SLOW_S = 0.05
CUTS = 12
BEYOND_THE_SESSION_S = 2.0


class AtWork:
    """An engine that has begun on a backlog; used as `with`, and it must finish before the block's end."""

    def __init__(self, rig: Rig, *, by_proxy: bool = False) -> None:
        assert rig.cluster is not None, "this fault needs a cluster of the rig's own"
        self.cluster: Cluster = rig.cluster
        self.rig, self.hits, self._is_sending = rig, 0, False
        rig.send(BACKLOG)
        settings, before, self.end = rig.settings, rig.applied(), rig.logged()
        if by_proxy:
            settings = settings.model_copy(update={"kafka_bootstrap_servers": self.cluster.proxied})
        self.engine: EngineProcess = rig.start(settings)
        wait(lambda: rig.applied() > before, self.engine, what="work to begin", every_s=0.002)

    def note_hit(self) -> None:
        """Note that the harm is done now, if there is something left to do."""
        self.hits += self._is_sending or self.rig.applied() < self.end

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send clicks all the while."""
        done = threading.Event()

        def send() -> None:
            while not done.is_set():
                self.rig.send(MORE)

        sender = threading.Thread(target=send)
        self._is_sending = True
        sender.start()
        try:
            yield
        finally:
            done.set()
            sender.join()
            self._is_sending = False
            self.end = self.rig.logged()

    def send_more(self) -> None:
        """Send clicks beside the engine's work."""
        self.rig.send(MORE)
        self.end = self.rig.logged()

    def finish(self) -> bool:
        """Wait until the engine has applied everything, stop it, and return whether it was hit at work."""
        wait(lambda: self.rig.applied() == self.rig.logged(), self.engine, what="the engine to go on")
        if self.engine.stop() != 0:
            raise RuntimeError(f"the engine did not stop cleanly: {self.engine.last_lines()}")
        return self.hits > 0


def kill_the_broker(rig: Rig) -> bool:
    """`kill -9` of the only broker for longer than the session lasts, under an engine at work; then it is back."""
    work = AtWork(rig)
    work.cluster.broker.stop_node(1, kill=True)
    work.note_hit()
    time.sleep(rig.settings.session_timeout_s + BEYOND_THE_SESSION_S)
    work.cluster.start()
    return work.finish()


def pause_the_broker(rig: Rig) -> bool:
    """SIGSTOP of the only broker for longer than the session lasts; then it goes on."""
    work = AtWork(rig)
    [broker] = work.cluster.broker.pids
    os.kill(broker, signal.SIGSTOP)
    work.note_hit()
    time.sleep(rig.settings.session_timeout_s + BEYOND_THE_SESSION_S)
    os.kill(broker, signal.SIGCONT)
    return work.finish()


def lose_the_coordinator(rig: Rig) -> bool:
    """`kill -9` of the one of three brokers that coordinates the group; the engine goes on without; then it is back."""
    work = AtWork(rig)
    node = asyncio.run(_coordinator(rig.settings))
    work.send_more()
    work.cluster.broker.stop_node(node, kill=True)
    work.note_hit()
    rig.send(MORE)
    wait(lambda: rig.applied() == rig.logged(), work.engine, what="the engine to go on with two brokers")
    work.cluster.start()
    rig.send(MORE)
    return work.finish()


def slow_the_connections(rig: Rig) -> bool:
    """Each 16 KiB either way wait up to 0.1 s, while clicks come."""
    work = AtWork(rig, by_proxy=True)
    assert work.cluster.proxy is not None
    work.cluster.proxy.delay_s = SLOW_S
    for _ in range(CUTS):
        with work.sending():
            time.sleep(rig.random.uniform(0.0, 0.3))
            work.note_hit()
    work.cluster.proxy.delay_s = 0.0
    return work.finish()


def cut_the_connections(rig: Rig) -> bool:
    """Every connection breaks off in the middle of what it carries, again and again, while clicks come."""
    work = AtWork(rig, by_proxy=True)
    assert work.cluster.proxy is not None
    for _ in range(CUTS):
        with work.sending():
            time.sleep(rig.random.uniform(0.0, 0.3))
            work.note_hit()
            work.cluster.proxy.cut()
    return work.finish()


def silence_the_connections(rig: Rig) -> bool:
    """Connections stay open, and nothing comes through for longer than the session lasts."""
    work = AtWork(rig, by_proxy=True)
    assert work.cluster.proxy is not None
    work.send_more()
    work.cluster.proxy.passing.clear()
    work.note_hit()
    time.sleep(rig.settings.session_timeout_s + BEYOND_THE_SESSION_S)
    work.cluster.proxy.passing.set()
    return work.finish()


async def _coordinator(settings: Settings) -> int:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        return int(await admin.find_coordinator(settings.consumer_group))
    finally:
        await admin.close()


BROKER_FAULTS: dict[str, Callable[[Rig], bool]] = {
    "killed-broker": kill_the_broker,
    "paused-broker": pause_the_broker,
    "lost-coordinator": lose_the_coordinator,
    "slow-connections": slow_the_connections,
    "cut-connections": cut_the_connections,
    "silent-connections": silence_the_connections,
}
"""Rounds by the name that `--fault` takes."""
NEED_THREE_NODES = {"lost-coordinator"}
