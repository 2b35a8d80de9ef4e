"""`mindstream serve`: one process, one uvicorn server, one query service.

The port is taken first, so a taken one is a clear sentence before anything starts. A client that opens a connection and
never finishes a request's head is cut off; bodies have their own deadline (`intake`). SIGINT and SIGTERM end the
process with 0 within seconds: open requests get a moment, then the parts are stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
from collections.abc import Iterator
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from engine.errors import EngineError, SetupError
from engine.serving.api import create_app
from engine.serving.service import QueryService
from engine.settings import Settings

HEAD_WITHIN_S = 10.0
KEEP_ALIVE_S = 15
MAX_CONNECTIONS = 2_000
MAX_HEAD_BYTES = 32 * 1024
STOP_WITHIN_S = 3
BACKLOG = 1_024

log = structlog.get_logger()


def run_server(settings: Settings) -> None:
    """Answer queries until SIGINT or SIGTERM.

    Raises:
        SetupError: the port is taken, or the address is not this machine's.
        EngineError: a part of the service failed for good.
    """
    listener = listen(settings)
    log.info("query_service_starts", **settings.public())
    asyncio.run(serve(settings, listener))


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens on the service's address.

    Raises:
        SetupError: it can't be had.
    """
    host, port = settings.serve_host, settings.serve_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio turns Nagle's delay off only where it sees the protocol: without it each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SetupError(
                f"port {port} of {host} is taken by another process",
                remedy="stop that one, or set MINDSTREAM_SERVE_PORT",
            ) from error
        raise SetupError(
            f"the query service can't listen on {host}:{port} ({error.strerror})", remedy="set MINDSTREAM_SERVE_HOST"
        ) from error
    listener.setblocking(False)
    return listener


async def serve(settings: Settings, listener: socket.socket) -> None:
    """Answer on *listener* until a signal comes, or a part of the service fails and raises."""
    service = QueryService(settings)
    config = uvicorn.Config(
        create_app(service),
        http=GuardedProtocol,
        ws="none",
        access_log=False,
        log_config=None,
        lifespan="on",
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_WITHIN_S,
        limit_concurrency=MAX_CONNECTIONS,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )
    server = _Server(config)
    log.info("query_service_listens", address="http://{}:{}".format(*listener.getsockname()[:2]))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    failing = asyncio.create_task(_first_failure(service))
    await asyncio.wait([serving, failing], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving
    failing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        failure = await failing
        if failure is not None:
            raise failure
    log.info("query_service_stopped")


async def _first_failure(service: QueryService) -> BaseException | None:
    """Return what ended the service, our own error rather than the group it came in; wait for ever while it runs."""
    await service.started.wait()
    failure = await service.failure()
    while isinstance(failure, BaseExceptionGroup):
        ours = failure.subgroup(EngineError)
        failure = (ours or failure).exceptions[0]
    return failure


class _Server(uvicorn.Server):
    """Uvicorn's server, which would end the process by the signal that stopped it; ours ends with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ask the server to stop on SIGINT and SIGTERM."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


class GuardedProtocol(H11Protocol):
    """Uvicorn's connection with a deadline for the head of each request, which it lacks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the first request's deadline."""
        super().connection_made(transport)
        self._head_deadline = self.loop.call_later(HEAD_WITHIN_S, self._cut_off)

    def data_received(self, data: bytes) -> None:
        """Take in *data*; a head that has begun and not ended keeps the deadline that runs, or gets one."""
        requests_before = self.cycle
        super().data_received(data)
        waiting = self.cycle is None or (self.cycle is requests_before and self.cycle.response_complete)
        if not waiting:
            self._end_deadline()
        elif self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_WITHIN_S, self._cut_off)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the deadline with the connection."""
        self._end_deadline()
        super().connection_lost(exc)

    def _end_deadline(self) -> None:
        if self._head_deadline is not None:
            self._head_deadline.cancel()
            self._head_deadline = None

    def _cut_off(self) -> None:
        self._head_deadline = None
        if not self.transport.is_closing():
            self.transport.close()
