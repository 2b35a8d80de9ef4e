"""Parts of a query service for tests: lists, items, a service without Kafka, and requests as uvicorn hands them on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from engine.events import ItemEvent, encode_item
from engine.log import Epoch, Record
from engine.recall import FormingClick, InterestSummary, RankedItem, RecallList, WindowClick, encode_list
from engine.serving.api import create_app
from engine.serving.service import QueryService, wall_ms
from engine.settings import Settings
from engine.snapshot import PopularLists, ServingSnapshot
from engine.store.lists import ListStore
from tests.builders import NOON_MS
from tests.served import make_popular_snapshot

CLICKS_EPOCH = Epoch("cluster-1", "topic-1", 4)
"""Of `clicks`; u1 is in partition 0, u2 in 2."""
EPOCH = CLICKS_EPOCH.text


def make_list(
    user_id: str = "u1",
    *,
    items: Sequence[tuple[str, int]] = (("i1", 0), ("i2", 1), ("i3", 0)),
    computed_at_ms: int = NOON_MS,
    accepted_at_ms: int | None = NOON_MS - 100,
    window_offset: int = 7,
    activation: int = 1,
    window: Sequence[str] = ("c1", "c2"),
) -> RecallList:
    """Return a personal list; *items* are (item id, interest), best first."""
    interests = sorted({interest for _, interest in items})
    return RecallList(
        user_id=user_id,
        items=[RankedItem(item_id, round(1 - 0.1 * at, 3), interest) for at, (item_id, interest) in enumerate(items)],
        interests=[
            InterestSummary(each, round(1 / len(interests), 3), [FormingClick(item_id, 0.8) for item_id in window])
            for each in interests
        ],
        window=[WindowClick(item_id, NOON_MS + at, "click") for at, item_id in enumerate(window)],
        as_of_ms=NOON_MS,
        accepted_at_ms=accepted_at_ms,
        computed_at_ms=computed_at_ms,
        window_offset=window_offset,
        activation=activation,
        epoch=EPOCH,
        model_version="0001",
    )


def list_headers(recall_list: RecallList) -> dict[str, bytes]:
    return {
        "epoch": recall_list.epoch.encode(),
        "window_offset": str(recall_list.window_offset).encode(),
        "activation": str(recall_list.activation).encode(),
    }


def list_record(recall_list: RecallList, *, offset: int) -> Record:
    key = recall_list.user_id.encode()
    return Record("recall-lists", 0, offset, wall_ms(), key, encode_list(recall_list), list_headers(recall_list))


def item_record(item: ItemEvent, *, offset: int = 0) -> Record:
    return Record("items", 0, offset, wall_ms(), item.item_id.encode(), encode_item(item), {})


def make_snapshot(*, popular: Sequence[str] = ("p1", "p2", "p3"), activation: int = 1) -> ServingSnapshot:
    lists = PopularLists(tuple(popular), {"lighting": ("p3", "p2")})
    return make_popular_snapshot(lists, item_ids=tuple(popular), activation=activation)


@contextmanager
def open_service(path: Path, *, snapshot: ServingSnapshot | None, **settings: Any) -> Iterator[QueryService]:
    """Yield a service with its lists open and nothing connected."""
    service = QueryService(Settings(data_dir=path, broker_port=1, **settings))
    service.clicks_epoch = CLICKS_EPOCH
    service.lists = ListStore.open(path / "serve" / "lists", topic=EPOCH, now_ms=wall_ms())
    if snapshot is not None:
        service.holder.swap(snapshot)
    try:
        yield service
    finally:
        service.lists.close()


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str | None:
        return self.json.get("error") if self.status >= 400 else None


async def ask(
    app: FastAPI | QueryService,
    method: str,
    target: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    chunks: Sequence[bytes] | None = None,
) -> Answered:
    """Send one request through the whole application, its target byte for byte as a client would write it."""
    application = create_app(app) if isinstance(app, QueryService) else app
    given = list(headers.items() if isinstance(headers, Mapping) else headers)
    if body is not None:
        chunks = [body if isinstance(body, bytes) else json.dumps(body).encode()]
        if not any(name.lower() == "content-type" for name, _ in given):
            given.append(("content-type", "application/json"))
        given.append(("content-length", str(len(chunks[0]))))
    raw_path, _, query = target.encode("latin-1").partition(b"?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": raw_path.decode("latin-1"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in given],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8080),
        "state": {},
    }
    pending = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks or ()]
    pending.append({"type": "http.request", "body": b"", "more_body": False})
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return pending.pop(0) if pending else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await application(scope, receive, send)
    answered = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
    return Answered(sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:]))
