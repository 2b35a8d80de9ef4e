"""Recall queries that take more than the stored list: filters, what-ifs, one's own click."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.events import ItemEvent
from engine.recall import encode_list
from engine.serving.api import create_app
from engine.serving.service import QueryService
from engine.snapshot import PopularLists
from tests.builders import NOON_MS, make_click
from tests.serving.parts import CLICKS_EPOCH, ask, item_record, list_record, make_list, make_snapshot, open_service
from tests.serving.trained import make_engine_list, open_trained

CLICKS = [
    make_click(item_id=f"i{at * 37 % 400:03d}", clicked_at_ms=NOON_MS + at, weight=1 + at % 3) for at in range(12)
]
LAMPS = [ItemEvent(item_id=f"i{at:03d}", category="lamps") for at in range(60)]
LAMP_IDS = {lamp.item_id for lamp in LAMPS} - {click.item_id for click in CLICKS}


@pytest.fixture
def trained(tmp_path: Path) -> Iterator[QueryService]:
    """A service that holds the engine's list of u1's clicks."""
    with open_trained(tmp_path) as service:
        assert service.lists is not None
        made = make_engine_list(service, tmp_path / "store", CLICKS)
        service.lists.apply([list_record(made, offset=0)])
        yield service


async def test_a_category_that_leaves_the_list_short_is_searched_for(trained: QueryService):
    await trained.catalog.apply([item_record(lamp) for lamp in LAMPS])

    answer = (await ask(trained, "GET", "/v1/users/u1/recall?category=lamps&limit=40")).json

    ids = [item["item_id"] for item in answer["items"]]
    assert answer["source"] == "searched"
    assert len(ids) == 40
    assert set(ids) <= LAMP_IDS
    assert (answer["user_id"], answer["window_offset"]) == ("u1", len(CLICKS) - 1)


async def test_a_search_scores_an_item_as_the_list_does(trained: QueryService):
    listed = (await ask(trained, "GET", "/v1/users/u1/recall?limit=50")).json["items"]
    excluded = "&".join(f"exclude={item['item_id']}" for item in listed[1:])

    searched = (await ask(trained, "GET", f"/v1/users/u1/recall?limit=50&{excluded}")).json

    assert searched["source"] == "searched"
    assert searched["items"][0] == listed[0]
    assert len(searched["items"]) == 50
    assert not {item["item_id"] for item in listed[1:]} & {item["item_id"] for item in searched["items"]}


async def test_a_page_that_the_filter_leaves_full_comes_from_the_list(trained: QueryService):
    listed = (await ask(trained, "GET", "/v1/users/u1/recall?limit=10")).json["items"]

    answer = (await ask(trained, "GET", f"/v1/users/u1/recall?limit=9&exclude={listed[0]['item_id']}")).json

    assert (answer["source"], answer["items"]) == ("personal", listed[1:])


async def test_what_was_seen_before_the_window_is_in_no_list_and_no_search(tmp_path: Path):
    few = {"window_max_clicks": 4}
    with open_trained(tmp_path / "all", **few) as service:
        made = make_engine_list(service, tmp_path / "store", CLICKS)
        before = {click.item_id for click in CLICKS[:-4]} & {item.item_id for item in made.items}
        assert "seen" not in msgspec.json.decode(encode_list(made))
    assert before

    with open_trained(tmp_path / "seen", seen_days=1, **few) as service:
        assert service.lists is not None
        made = make_engine_list(service, tmp_path / "store-seen", CLICKS)
        service.lists.apply([list_record(made, offset=0)])
        listed = (await ask(service, "GET", "/v1/users/u1/recall?limit=50")).json["items"]
        excluded = "&".join(f"exclude={item['item_id']}" for item in listed[1:])
        searched = (await ask(service, "GET", f"/v1/users/u1/recall?limit=50&{excluded}")).json

    clicked = {click.item_id for click in CLICKS}
    assert set(made.seen) == {click.item_id for click in CLICKS[:-4]}
    assert searched["source"] == "searched"
    assert not clicked & {item["item_id"] for item in (*listed, *searched["items"])}
    assert len(listed) == len(searched["items"]) == 50


async def test_a_category_without_items_is_an_empty_searched_list(trained: QueryService):
    answer = (await ask(trained, "GET", "/v1/users/u1/recall?category=none")).json

    assert (answer["source"], answer["items"]) == ("searched", [])


async def test_without_a_trained_version_the_filter_leaves_what_the_list_holds(tmp_path: Path):
    with open_service(tmp_path, snapshot=make_snapshot()) as service:
        assert service.lists is not None
        service.lists.apply([list_record(make_list("u1"), offset=0)])
        await service.catalog.apply([item_record(ItemEvent(item_id="i2", category="lamps"))])

        answer = (await ask(service, "GET", "/v1/users/u1/recall?category=lamps")).json

    assert (answer["source"], [item["item_id"] for item in answer["items"]]) == ("personal", ["i2"])


async def test_a_user_without_a_list_gets_what_is_popular_in_the_category(tmp_path: Path):
    with open_service(tmp_path, snapshot=make_snapshot()) as service:
        lamps = [ItemEvent(item_id=item_id, category="lighting") for item_id in ("p2", "p3")]
        await service.catalog.apply([item_record(lamp) for lamp in lamps])

        answer = (await ask(service, "GET", "/v1/users/stranger/recall?category=lighting")).json

    assert (answer["source"], [item["item_id"] for item in answer["items"]]) == ("popular", ["p3", "p2"])


async def test_a_window_without_personal_items_gets_what_is_popular_in_its_categories(tmp_path: Path):
    popular = PopularLists(("p1", "p2"), {"lighting": ("l1", "l2")})
    with open_service(tmp_path, snapshot=replace(make_snapshot(), popular=popular)) as service:
        assert service.lists is not None
        service.lists.apply([list_record(make_list("u1", items=(), window=("c1",)), offset=0)])
        await service.catalog.apply([item_record(ItemEvent(item_id="c1", category="lighting"))])

        answer = (await ask(service, "GET", "/v1/users/u1/recall")).json

    assert answer["source"] == "popular"
    assert [item["item_id"] for item in answer["items"]] == ["l1", "p1", "l2", "p2"]


async def test_without_names_items_of_the_list_that_leave_with_a_click(trained: QueryService):
    answer = (await ask(trained, "GET", "/v1/users/u1/recall?limit=20&explain=without")).json

    listed = [item["item_id"] for item in answer["items"]]
    assert [told["item_id"] for told in answer["without"]] == [click.item_id for click in CLICKS[:1:-1]]
    assert {item_id for told in answer["without"] for item_id in told["leave"]} <= set(listed)
    assert any(told["leave"] for told in answer["without"])
    assert (answer["source"], len(answer["window"])) == ("personal", len(CLICKS))


async def test_window_and_interests_are_those_of_the_list(trained: QueryService):
    explained = (await ask(trained, "GET", "/v1/users/u1/recall?explain=true")).json

    window = (await ask(trained, "GET", "/v1/users/u1/window")).json
    interests = (await ask(trained, "GET", "/v1/users/u1/interests")).json

    assert window["window"] == explained["window"]
    assert interests["interests"] == explained["interests"]
    assert window["window_offset"] == interests["window_offset"] == len(CLICKS) - 1


async def test_a_user_never_seen_has_an_empty_window_and_no_interests(trained: QueryService):
    window = await ask(trained, "GET", "/v1/users/stranger/window")
    interests = await ask(trained, "GET", "/v1/users/stranger/interests")

    assert (window.status, window.json["window"], window.json["as_of_ms"]) == (200, [], None)
    assert (interests.status, interests.json["interests"], interests.json["model_version"]) == (200, [], None)


@pytest.mark.parametrize(
    "query",
    [
        *("category=", "category=a&category=b", "category=%ff", "explain=why", "min_offset=1", "min_offset=-1:2"),
        *("min_offset=0:1&min_offset=0:2", "wait_ms=5", "min_offset=0:1&wait_ms=10001", "min_offset=0:1&wait_ms=x"),
    ],
)
async def test_a_parameter_out_of_its_range_is_refused_by_its_name(service: QueryService, query: str):
    answer = await ask(service, "GET", f"/v1/users/u1/recall?{query}")

    assert answer.status == 400
    assert answer.error == "bad_" + query.rpartition("&")[2].partition("=")[0]


@pytest.mark.parametrize(("offset", "reached"), [(7, True), (8, False)])
async def test_a_wait_of_zero_says_whether_the_list_is_there(service: QueryService, offset: int, reached: bool):
    answer = (await ask(service, "GET", f"/v1/users/u1/recall?min_offset=0:{offset}&wait_ms=0")).json

    assert (answer["min_offset_reached"], answer["source"]) == (reached, "personal")


async def test_a_list_of_a_log_that_was_made_anew_reflects_no_click_of_the_new_one(own_service: QueryService):
    own_service.clicks_epoch = replace(CLICKS_EPOCH, topic_id="topic-2")

    answer = (await ask(create_app(own_service), "GET", "/v1/users/u1/recall?min_offset=0:0&wait_ms=0")).json

    assert (answer["min_offset_reached"], answer["window_offset"]) == (False, 7)


async def test_a_place_in_another_partition_than_the_users_is_refused(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall?min_offset=1:7&wait_ms=0")

    assert (answer.status, answer.error) == (400, "bad_min_offset")
    assert "partition is 0" in answer.json["message"]


async def test_a_wait_that_runs_out_answers_what_there_is(service: QueryService):
    answer = (await ask(service, "GET", "/v1/users/u1/recall?min_offset=0:8&wait_ms=20")).json

    assert (answer["min_offset_reached"], answer["window_offset"]) == (False, 7)


async def test_a_waiting_query_is_woken_by_the_list_that_reflects_the_click(own_service: QueryService):
    lists, app = own_service.lists, create_app(own_service)
    assert lists is not None
    waiting = asyncio.create_task(ask(app, "GET", "/v1/users/u1/recall?min_offset=0:9&wait_ms=10000"))
    others = asyncio.create_task(ask(app, "GET", "/v1/users/u2/recall?min_offset=2:9&wait_ms=200"))

    for offset in (8, 9):
        await asyncio.sleep(0.01)
        assert not waiting.done()
        record = list_record(make_list("u1", window_offset=offset), offset=offset)
        own_service.arrivals.tell(lists.apply([record]))
    answer = (await waiting).json

    assert (answer["min_offset_reached"], answer["window_offset"]) == (True, 9)
    assert (await others).json["min_offset_reached"] is False


async def test_more_than_may_wait_are_refused_and_given_up_waits_are_forgotten(
    own_service: QueryService, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("engine.serving.arrivals.MAX_WAITING", 1)
    app, target = create_app(own_service), "/v1/users/u1/recall?min_offset=0:9&wait_ms=10000"
    waiting = asyncio.create_task(ask(app, "GET", target))
    await asyncio.sleep(0.01)

    refused = await ask(app, "GET", target)
    waiting.cancel()
    await asyncio.wait([waiting])
    after = await ask(app, "GET", "/v1/users/u1/recall?min_offset=0:9&wait_ms=1")

    assert (refused.status, refused.error) == (503, "too_many_waiting")
    assert (after.status, after.json["min_offset_reached"]) == (200, False)


async def test_a_list_held_under_an_older_shape_is_read(own_service: QueryService):
    assert own_service.lists is not None
    record = list_record(make_list("u9"), offset=1)
    fields = msgspec.json.decode(record.value or b"")
    del fields["epoch"]
    own_service.lists.apply([replace(record, value=msgspec.json.encode(fields))])

    answer = await ask(own_service, "GET", "/v1/users/u9/window")

    assert (answer.status, answer.json["epoch"]) == (200, "")
