"""Lists of clicks that are in no log, asked for over HTTP."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.events import ItemEvent
from engine.recall import WindowClick
from engine.serving.api import create_app
from engine.serving.service import QueryService
from tests.builders import NOON_MS, make_click
from tests.serving.parts import ask, item_record, make_snapshot, open_service
from tests.serving.trained import make_engine_list, open_trained

CLICKS = [
    make_click(item_id=f"i{at * 37 % 400:03d}", clicked_at_ms=NOON_MS + at, weight=1 + at % 3) for at in range(12)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueryService]:
    with open_trained(tmp_path_factory.mktemp("trained")) as service:
        yield service


def sent(clicks: list[Any] = CLICKS, **fields: Any) -> dict[str, Any]:
    named = ("item_id", "clicked_at_ms", "event_type", "weight")
    return {"clicks": [{name: getattr(click, name) for name in named} for click in clicks], **fields}


async def recall(service: QueryService, **fields: Any) -> Any:
    answer = await ask(service, "POST", "/v1/recall", fields)
    assert answer.status == 200, answer.json
    return answer.json


async def test_the_same_clicks_give_the_same_bytes_as_the_engines_list(trained: QueryService, tmp_path: Path):
    by_engine = make_engine_list(trained, tmp_path / "store", CLICKS)

    answer = await recall(trained, **sent(limit=50, explain=True))

    for name in ("items", "interests"):
        assert msgspec.json.encode(answer[name]) == msgspec.json.encode(getattr(by_engine, name))
    assert msgspec.convert(answer["window"], list[WindowClick]) == by_engine.window
    assert (answer["as_of_ms"], answer["model_version"]) == (by_engine.as_of_ms, by_engine.model_version)
    assert (answer["user_id"], answer["source"]) == (None, "ad_hoc")
    assert len(answer["items"]) == 50


async def test_clicks_without_times_stand_in_the_order_given(trained: QueryService):
    timed = await recall(trained, **sent(limit=50))

    untimed = await recall(trained, clicks=[{"item_id": c.item_id, "weight": c.weight} for c in CLICKS], limit=50)

    assert untimed["items"] == timed["items"]
    assert untimed["as_of_ms"] is None


async def test_only_the_newest_clicks_are_taken_whatever_their_order(tmp_path: Path):
    with open_trained(tmp_path, window_max_clicks=5) as service:
        all_clicks = await recall(service, **sent(CLICKS[::-1], explain=True))
        newest = await recall(service, **sent(CLICKS[-5:], explain=True))

    assert [click["item_id"] for click in all_clicks["window"]] == [click.item_id for click in CLICKS[-5:]]
    assert all_clicks["items"] == newest["items"]


async def test_what_was_seen_behind_the_window_stays_out_as_of_an_engines_list(tmp_path: Path):
    with open_trained(tmp_path, window_max_clicks=5, seen_days=1.0) as service:
        by_engine = make_engine_list(service, tmp_path / "store", CLICKS)
        answer = await recall(service, **sent(limit=50))

    assert by_engine.seen
    assert not {*by_engine.seen} & {item["item_id"] for item in answer["items"]}
    assert msgspec.json.encode(answer["items"]) == msgspec.json.encode(by_engine.items)


async def test_seen_disliked_excluded_and_unavailable_items_stay_out_and_the_list_full(tmp_path: Path):
    with open_trained(tmp_path, exclude_seen=False) as service:
        first = [item["item_id"] for item in (await recall(service, **sent(limit=50)))["items"]]
        gone, unwanted, excluded = first[0], first[1], first[2]
        await service.catalog.apply([item_record(ItemEvent(item_id=gone, available=False))])
        disliked = make_click(item_id=unwanted, clicked_at_ms=NOON_MS + 50, event_type="dislike")
        second = (await recall(service, **sent([*CLICKS, disliked], limit=50, exclude=[excluded])))["items"]

    assert len(second) == 50
    assert not {gone, unwanted, excluded} & {item["item_id"] for item in second}
    assert {click.item_id for click in CLICKS} & {item["item_id"] for item in second}


async def test_a_category_holds_its_items_alone(tmp_path: Path):
    with open_trained(tmp_path) as service:
        lamps = [ItemEvent(item_id=f"i{at:03d}", category="lamps") for at in range(100, 110)]
        await service.catalog.apply([item_record(item) for item in lamps])
        items = (await recall(service, **sent(category="lamps")))["items"]

    clicked = {click.item_id for click in CLICKS}
    assert {item["item_id"] for item in items} == {item.item_id for item in lamps} - clicked
    assert [item["score"] for item in items] == sorted((item["score"] for item in items), reverse=True)


async def test_without_tells_what_each_of_the_newest_clicks_brought(trained: QueryService):
    answer = await recall(trained, **sent(limit=20, explain="without"))

    rest = CLICKS[:-1]
    without_newest = await recall(trained, **sent(rest, limit=20, exclude=[CLICKS[-1].item_id]))
    expected = [
        item["item_id"]
        for item in answer["items"]
        if item["item_id"] not in {left["item_id"] for left in without_newest["items"]}
    ]
    assert [told["item_id"] for told in answer["without"]] == [click.item_id for click in CLICKS[:1:-1]]
    assert answer["without"][0]["leave"] == expected
    assert any(told["leave"] for told in answer["without"])


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "bad_body"),
        (b"[]", "bad_body"),
        (b'{"clicks": {}}', "bad_body"),
        (b'{"clicks": [], "unknown": 1}', "bad_body"),
        (b'{"clicks": []}', "bad_clicks"),
        (b'{"clicks": ["i001"]}', "bad_clicks"),
        (b'{"clicks": [{"item_id": "i001"}, {"item_id": "i002", "clicked_at_ms": 5}]}', "bad_clicks"),
        (b'{"clicks": [{}]}', "bad_click"),
        (b'{"clicks": [{"item_id": 5}]}', "bad_click"),
        (b'{"clicks": [{"item_id": " "}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "a", "item_id": "b"}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "i001", "user_id": "u1"}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "i001", "weight": 1e400}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "i001", "weight": -1}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "i001", "clicked_at_ms": 1e30}]}', "bad_click"),
        (b'{"clicks": [{"item_id": "i001", "weight": NaN}]}', "bad_body"),
        (b'{"clicks": [{"item_id": "i001"}], "profile": []}', "bad_profile"),
        (b'{"clicks": [{"item_id": "i001"}], "profile": {"age": 1e400}}', "bad_profile"),
        (b'{"clicks": [{"item_id": "i001"}], "limit": 51}', "bad_limit"),
        (b'{"clicks": [{"item_id": "i001"}], "category": ""}', "bad_category"),
        (b'{"clicks": [{"item_id": "i001"}], "explain": "why"}', "bad_explain"),
        (b'{"clicks": [{"item_id": "nowhere"}]}', "no_interests"),
        (b'{"clicks": [{"item_id": "i001", "event_type": "dislike"}]}', "no_interests"),
    ],
)
async def test_what_can_not_be_taken_is_refused_with_400(trained: QueryService, body: bytes, error: str):
    answer = await ask(trained, "POST", "/v1/recall", body)

    assert (answer.status, answer.error) == (400, error)


async def test_too_many_clicks_are_refused(trained: QueryService):
    answer = await ask(trained, "POST", "/v1/recall", {"clicks": [{"item_id": "i001"}] * 1_001})

    assert (answer.status, answer.error) == (413, "too_many_clicks")


@pytest.mark.parametrize("weight", [0, 1e-300, 1e6])
async def test_a_strange_weight_never_is_our_mistake(trained: QueryService, weight: float):
    answer = await ask(trained, "POST", "/v1/recall", {"clicks": [{"item_id": "i001", "weight": weight}] * 3})

    assert answer.status in (200, 400)


async def test_popular_lists_alone_can_not_route(tmp_path: Path):
    with open_service(tmp_path, snapshot=make_snapshot()) as service:
        answer = await ask(service, "POST", "/v1/recall", sent())
        service.spot.stop()

    assert (answer.status, answer.error) == (503, "no_trained_version")
    assert "mindstream train" in answer.json["message"]


async def test_more_than_may_be_worked_out_at_once_is_refused_and_plain_answers_go_on(tmp_path: Path):
    with open_trained(tmp_path, max_recalls_at_once=2) as service:
        app, go_on = create_app(service), threading.Event()
        held = asyncio.create_task(service.spot.run(lambda _: go_on.wait(60)))
        queued = asyncio.create_task(ask(app, "POST", "/v1/recall", sent()))
        await asyncio.sleep(0.05)

        refused = await ask(app, "POST", "/v1/recall", sent())
        plain = await ask(app, "GET", "/v1/users/stranger/recall")
        go_on.set()
        await held
        after = await queued

    assert (refused.status, refused.error, refused.headers["retry-after"]) == (503, "too_busy", "1")
    assert (plain.status, after.status) == (200, 200)


async def test_a_request_that_was_given_up_in_the_queue_frees_its_place(tmp_path: Path):
    with open_trained(tmp_path, max_recalls_at_once=2) as service:
        go_on = threading.Event()
        held = asyncio.create_task(service.spot.run(lambda _: go_on.wait(60)))
        queued = asyncio.create_task(service.spot.run(lambda _: None))
        await asyncio.sleep(0.05)
        queued.cancel()
        await asyncio.wait([queued])
        next_one = asyncio.create_task(service.spot.run(lambda _: "done"))
        go_on.set()
        await held

        assert await next_one == "done"


async def test_neighbors_are_the_items_of_the_greatest_inner_product(trained: QueryService):
    answer = (await ask(trained, "GET", "/v1/items/i007/neighbors?limit=10")).json

    snapshot = trained.holder.current
    assert snapshot is not None
    vectors = snapshot.index.vectors  # type: ignore[union-attr]
    row = snapshot.item_ids.index("i007")
    scores = vectors @ vectors[row]
    best = [snapshot.item_ids[at] for at in (-scores).argsort(kind="stable") if at != row][:10]
    assert [item["item_id"] for item in answer["items"]] == best
    assert (answer["item_id"], answer["model_version"]) == ("i007", snapshot.model_version)


async def test_neighbors_leave_out_what_is_unavailable(tmp_path: Path):
    with open_trained(tmp_path) as service:
        first = (await ask(service, "GET", "/v1/items/i007/neighbors?limit=3")).json["items"]
        await service.catalog.apply([item_record(ItemEvent(item_id=first[0]["item_id"], removed=True))])
        second = (await ask(service, "GET", "/v1/items/i007/neighbors?limit=2")).json["items"]

    assert second == first[1:]


async def test_an_item_that_is_unknown_or_removed_has_no_neighbors(tmp_path: Path):
    with open_trained(tmp_path) as service:
        await service.catalog.apply([item_record(ItemEvent(item_id="i007", removed=True))])
        unknown = await ask(service, "GET", "/v1/items/nowhere/neighbors")
        removed = await ask(service, "GET", "/v1/items/i007/neighbors")

    assert (unknown.status, unknown.error) == (removed.status, removed.error) == (404, "unknown_item")
