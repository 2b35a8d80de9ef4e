"""A TCP proxy on loopback that passes bytes on, until it is told to be slow, to break off, or to say nothing."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time

CHUNK_BYTES = 16_384
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: the other side meets a reset, as of a machine that is gone


class Proxy:
    """Listens on a port of its own and connects each client to *target_port*; any thread may change what it does."""

    def __init__(self, target_port: int, *, seed: int = 0) -> None:
        self._target_port = target_port
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections: set[_Connection] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.delay_s = 0.0
        """Each chunk of at most 16 KiB waits up to twice so long."""
        self.passing = threading.Event()
        """Cleared: connections stay open, and nothing passes."""
        self.passing.set()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """Break off every connection, after half of the next chunk where one comes within 50 ms; return how many."""
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.break_off()
        time.sleep(0.05)
        for connection in connections:
            connection.close()
        return len(connections)

    def close(self) -> None:
        """Listen no more, and break off what is open."""
        self._closed = True
        self._listener.close()
        self.passing.set()
        self.cut()

    def pause_s(self) -> float:
        """Return how long the next chunk waits."""
        return self._random.uniform(0.0, 2.0 * self.delay_s) if self.delay_s else 0.0

    def forget(self, connection: _Connection) -> None:
        """Note that *connection* is closed."""
        with self._lock:
            self._connections.discard(connection)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target_port))
            except OSError:  # nobody there now, and so nobody here
                client.close()
                continue
            connection = _Connection(self, client, server)
            with self._lock:
                self._connections.add(connection)
            connection.start()


class _Connection:
    """One client's connection: a thread each way."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy, self._ends = proxy, (client, server)
        self._breaks_off = False
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def start(self) -> None:
        client, server = self._ends
        for source, sink in ((client, server), (server, client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def break_off(self) -> None:
        self._breaks_off = True

    def close(self) -> None:
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._proxy.forget(self)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while chunk := source.recv(CHUNK_BYTES):
                time.sleep(self._proxy.pause_s())
                self._proxy.passing.wait()
                if self._breaks_off:
                    sink.sendall(chunk[: len(chunk) // 2])
                    break
                sink.sendall(chunk)
        except OSError:
            pass
        self.close()
