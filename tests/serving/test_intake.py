"""Bodies, clicks and items: nothing of a bad request is sent; good ones need Kafka (test_server.py)."""

from __future__ import annotations

import pytest

from engine.serving.service import QueryService
from tests.serving.parts import ask


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": ""},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": "application/json", "content-encoding": "gzip"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/recall:batch"), ("POST", "/v1/clicks"), ("PUT", "/v1/items/i")]
)
async def test_a_body_that_is_not_declared_as_plain_json_is_refused(
    service: QueryService, headers: dict[str, str], method: str, path: str
):
    answer = await ask(service, method, path, b"{}", headers=headers)

    assert (answer.status, answer.error) == (415, "unsupported_media_type")


async def test_a_body_without_a_stated_length_is_read_no_further_than_allowed(service: QueryService):
    chunks = [b"x" * 100_000] * 1_000

    answer = await ask(service, "POST", "/v1/clicks", headers={"content-type": "application/json"}, chunks=chunks)

    assert (answer.status, answer.error, answer.headers["connection"]) == (413, "body_too_large", "close")


GOOD_CLICK = '{"user_id": "u1", "item_id": "i1"}'


@pytest.mark.parametrize(
    ("click", "reason"),
    [
        ("5", "type"),
        ('"text"', "type"),
        ("null", "type"),
        ("{}", "missing"),
        ('{"user_id": "u1"}', "missing"),
        ('{"user_id": 5, "item_id": "i1"}', "type"),
        ('{"user_id": "u1", "item_id": true}', "type"),
        ('{"user_id": "", "item_id": "i1"}', "user_id"),
        ('{"user_id": "u\\u0000", "item_id": "i1"}', "user_id"),
        ('{"user_id": "u1", "item_id": "' + "i" * 257 + '"}', "item_id"),
        ('{"user_id": "u1", "item_id": "i1", "clicked_at_ms": null}', "type"),
        ('{"user_id": "u1", "item_id": "i1", "clicked_at_ms": 1.5}', "type"),
        ('{"user_id": "u1", "item_id": "i1", "clicked_at_ms": 4102444800000}', "future"),
        ('{"user_id": "u1", "user_id": "u2", "item_id": "i1"}', "duplicate_key"),
        ('{"user_id": "u1", "item_id": "i1", "weight": -1}', "range"),
        ('{"user_id": "u1", "item_id": "i1", "x": ' + "[" * 500 + "]" * 500 + "}", "depth"),
    ],
)
async def test_a_bad_click_is_named_by_index_and_reason(service: QueryService, click: str, reason: str):
    alone = await ask(service, "POST", "/v1/clicks", click.encode())
    listed = await ask(service, "POST", "/v1/clicks", f"[{GOOD_CLICK}, {click}]".encode())

    assert (alone.status, alone.error, alone.json["index"], alone.json["reason"]) == (400, "bad_click", 0, reason)
    assert (listed.status, listed.error, listed.json["index"], listed.json["reason"]) == (400, "bad_click", 1, reason)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"", 400, "bad_click"),
        (b"[]", 400, "bad_body"),
        (b"[" + GOOD_CLICK.encode(), 400, "bad_body"),
        (b"}{", 400, "bad_click"),
        (b'{"user_id": "\xff", "item_id": "i1"}', 400, "bad_click"),
        (b'[{"user_id": "\xff", "item_id": "i1"}]', 400, "bad_click"),
        (b"\xff\xfe{}", 400, "bad_click"),
        (b"[" + b",".join([GOOD_CLICK.encode()] * 1_001) + b"]", 413, "too_many_clicks"),
        (b"[" * 100_000, 400, "bad_body"),
    ],
)
async def test_a_body_that_holds_no_clicks_is_refused(service: QueryService, body: bytes, status: int, error: str):
    answer = await ask(service, "POST", "/v1/clicks", body)

    assert (answer.status, answer.error) == (status, error)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[]", "bad_body"),
        (b"{", "bad_body"),
        (b'{"x": ' + b"[" * 100_000, "bad_body"),
        (b'{"item_id": "other"}', "bad_item"),
        (b'{"title": 5}', "bad_item"),
        (b'{"features": {"a": [1]}}', "bad_item"),
        (b'{"title": "x", "title": "y"}', "bad_item"),
    ],
)
async def test_an_item_that_can_not_be_taken_is_refused(service: QueryService, body: bytes, error: str):
    answer = await ask(service, "PUT", "/v1/items/i1", body)

    assert (answer.status, answer.error) == (400, error)


async def test_clicks_and_items_before_kafka_was_reached_are_refused_at_once_as_not_sent(service: QueryService):
    click = await ask(service, "POST", "/v1/clicks", GOOD_CLICK.encode())
    item = await ask(service, "PUT", "/v1/items/i1", {"title": "Lamp"})
    removal = await ask(service, "DELETE", "/v1/items/i1")

    assert {each.status for each in (click, item, removal)} == {503}
    assert {each.error for each in (click, item, removal)} == {"starting"}
