from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def echo(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # the proxy may have cut it in the middle of an answer
            while data := connection.recv(65_536):
                connection.sendall(data)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=echo, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    made = Proxy(server.getsockname()[1])
    yield made
    made.close()
    server.close()


def connect(proxy: Proxy) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", proxy.port), timeout=10.0)
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"
    return connection


def is_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def test_every_connection_is_cut_and_the_next_one_passes(proxy: Proxy) -> None:
    connections = [connect(proxy) for _ in range(3)]

    assert proxy.cut() == 3

    for connection in connections:
        with connection:
            assert is_ended(connection)
    connect(proxy).close()
    assert proxy.cut() <= 1


def test_half_of_what_a_connection_carries_when_it_is_cut_arrives(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        [carried] = list(proxy._connections)
        carried.break_off()
        connection.sendall(b"0123456789")
        received = b""
        try:
            while data := connection.recv(100):
                received += data
        except OSError:
            pass

    assert len(received) <= 5
    assert b"0123456789".startswith(received)


def test_silence_keeps_what_is_sent_until_it_ends(proxy: Proxy) -> None:
    with connect(proxy) as connection:
        proxy.passing.clear()
        connection.sendall(b"later")
        connection.settimeout(0.2)
        with pytest.raises(TimeoutError):
            connection.recv(100)

        proxy.passing.set()
        connection.settimeout(10.0)

        assert connection.recv(100) == b"later"


def test_a_slow_connection_carries_everything(proxy: Proxy) -> None:
    proxy.delay_s = 0.01
    sent = bytes(range(256)) * 300
    with connect(proxy) as connection:
        connection.sendall(sent)
        received = b""
        while len(received) < len(sent):
            received += connection.recv(65_536)

    assert received == sent
