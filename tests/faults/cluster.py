"""The brokers that a rig runs on, and the proxy that stands before the first of them."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from engine.settings import Settings
from engine.streams.broker_config import HOST, ports_of
from engine.streams.local_broker import LocalBroker
from tests.conftest import free_port
from tests.faults.proxy import Proxy


class Cluster:
    """One or three nodes, which may be harmed; started by `start`."""

    def __init__(self, folder: Path, *, nodes: int = 1) -> None:
        self._base = Settings(
            data_dir=folder,
            broker_port=free_port(2 * nodes + 1),
            broker_heap_mb=512,
            replication_factor=nodes,
        )
        ports = ports_of(self._base, 1)
        proxied = self._base.broker_port + 2 * nodes
        self.proxy = Proxy(proxied) if nodes == 1 else None
        """Before the only node, at `proxied`; None before several."""
        own = {}
        if self.proxy is not None:
            own = {
                "listeners": f"PLAINTEXT://{HOST}:{ports.client},CONTROLLER://{HOST}:{ports.controller},"
                f"PROXIED://{HOST}:{proxied}",
                "advertised.listeners": f"PLAINTEXT://{HOST}:{ports.client},PROXIED://{HOST}:{self.proxy.port}",
                "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            }
        self.broker = LocalBroker(self._base, nodes, properties=own)

    @property
    def settings(self) -> Settings:
        """Of clients that go to the nodes themselves."""
        return self._base.model_copy(update={"kafka_bootstrap_servers": self.broker.bootstrap_servers})

    @property
    def proxied(self) -> str:
        """Address of the proxy, from where clients go on by the proxy."""
        assert self.proxy is not None
        return f"{HOST}:{self.proxy.port}"

    def start(self) -> Self:
        """Start the nodes that don't run, and wait until clients are answered."""
        self.broker.start()
        return self

    def stop(self) -> None:
        """Stop everything."""
        if self.proxy is not None:
            self.proxy.close()
        self.broker.stop()
