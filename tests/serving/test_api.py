"""The HTTP interface without Kafka: every route's good answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from engine.events import ItemEvent
from engine.serving.api import create_app
from engine.serving.service import QueryService
from tests.serving.parts import ask, item_record, list_record, make_list, open_service


async def test_a_known_user_gets_the_personal_list_in_its_order(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall")

    assert answer.status == 200
    assert answer.json["source"] == "personal"
    assert [(item["item_id"], item["interest"]) for item in answer.json["items"]] == [("i1", 0), ("i2", 1), ("i3", 0)]


async def test_an_answer_carries_the_fields_of_the_contract_and_its_age(service: QueryService):
    answer = (await ask(service, "GET", "/v1/users/u1/recall")).json

    assert set(answer) == {
        *("user_id", "items", "as_of_ms", "accepted_at_ms", "computed_at_ms", "age_ms"),
        *("window_offset", "activation", "epoch", "model_version", "source"),
    }
    assert answer["age_ms"] > 0


async def test_an_unknown_user_gets_the_popular_items_with_200(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/stranger/recall")

    assert answer.status == 200
    assert (answer.json["user_id"], answer.json["source"], answer.json["model_version"]) == (
        "stranger",
        "popular",
        "0000",
    )
    assert [item["item_id"] for item in answer.json["items"]] == ["p1", "p2", "p3"]


async def test_without_list_and_model_version_the_answer_says_what_to_do(tmp_path: Path):
    with open_service(tmp_path, snapshot=None) as service:
        answer = await ask(service, "GET", "/v1/users/stranger/recall")

    assert (answer.status, answer.error) == (503, "no_model_version")
    assert "mindstream train" in answer.json["message"]


async def test_limit_and_offset_cut_a_page_out_of_the_list(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall?limit=1&offset=1")

    assert [item["item_id"] for item in answer.json["items"]] == ["i2"]


async def test_an_offset_past_the_end_gets_an_empty_personal_page(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall?offset=99")

    assert (answer.json["items"], answer.json["source"]) == ([], "personal")


async def test_excluded_items_are_left_out_and_the_page_stays_full(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall?limit=2&exclude=i1&exclude=zzz")

    assert [item["item_id"] for item in answer.json["items"]] == ["i2", "i3"]


async def test_unavailable_and_removed_items_are_dropped_at_query_time(own_service: QueryService):
    await own_service.catalog.apply(
        [
            item_record(ItemEvent(item_id="i1", available=False)),
            item_record(ItemEvent(item_id="i2", removed=True)),
            item_record(ItemEvent(item_id="p1", removed=True)),
        ]
    )

    known = await ask(own_service, "GET", "/v1/users/u1/recall")
    unknown = await ask(own_service, "GET", "/v1/users/stranger/recall")

    assert [item["item_id"] for item in known.json["items"]] == ["i3"]
    assert [item["item_id"] for item in unknown.json["items"]] == ["p2", "p3"]


async def test_a_list_with_nothing_left_falls_back_to_popular_items(service: QueryService):
    answer = await ask(service, "GET", "/v1/users/u1/recall?exclude=i1&exclude=i2&exclude=i3&exclude=p1")

    assert answer.json["source"] == "popular"
    assert [item["item_id"] for item in answer.json["items"]] == ["p2", "p3"]


async def test_titles_stand_beside_the_items_that_the_catalog_knows(own_service: QueryService):
    await own_service.catalog.apply([item_record(ItemEvent(item_id="i2", title="A lamp"))])

    answer = await ask(own_service, "GET", "/v1/users/u1/recall")

    assert [item.get("title") for item in answer.json["items"]] == [None, "A lamp", None]


async def test_explain_adds_interests_and_window_with_titles(own_service: QueryService):
    await own_service.catalog.apply([item_record(ItemEvent(item_id="c1", title="A cup"))])

    answer = (await ask(own_service, "GET", "/v1/users/u1/recall?explain=true")).json

    assert [interest["interest"] for interest in answer["interests"]] == [0, 1]
    assert answer["interests"][0]["clicks"][0] == {"item_id": "c1", "weight": 0.8, "title": "A cup"}
    assert [click["item_id"] for click in answer["window"]] == ["c1", "c2"]


async def test_explain_of_a_user_without_a_list_is_empty_not_missing(service: QueryService):
    answer = (await ask(service, "GET", "/v1/users/stranger/recall?explain=true")).json

    assert (answer["interests"], answer["window"]) == ([], [])


@pytest.mark.parametrize(
    "path",
    [
        *("/../../etc/passwd", "//", "/./", "/%2e%2e/%2e%2e/etc/passwd", "/static/../page.py", "/static/page.py"),
        *("/static/%2e%2e/api.py", "/v1/users//recall", "/v1/users/u1/recall/", "/nothing", "/docs", "/redoc", "/v1"),
    ],
)
async def test_a_path_that_leads_nowhere_gets_404_in_the_one_shape(service: QueryService, path: str):
    answer = await ask(service, "GET", path)

    assert (answer.status, answer.error) == (404, "not_found")
    assert set(answer.json) == {"error", "message"}


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/users/u1/recall", "GET"),
        ("DELETE", "/v1/users/u1/recall", "GET"),
        ("GET", "/v1/users/u1", "DELETE"),
        ("TRACE", "/v1/users/u1/recall", "GET"),
        ("OPTIONS", "/v1/clicks", "POST"),
        ("GET", "/v1/clicks?_method=POST", "POST"),
        ("POST", "/v1/items/i1", "DELETE, PUT"),
        ("BREW", "/health/live", "GET"),
        ("POST", "/", "GET, HEAD"),
    ],
)
async def test_a_wrong_method_gets_405_with_what_is_allowed(
    service: QueryService, method: str, path: str, allowed: str
):
    answer = await ask(
        service, method, path, headers={"origin": "http://elsewhere.example", "x-http-method-override": "GET"}
    )

    assert (answer.status, answer.error, answer.headers["allow"]) == (405, "method_not_allowed", allowed)
    assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_batch_answers_every_user_in_the_order_asked_for_twice_if_asked_twice(service: QueryService):
    answer = await ask(
        service, "POST", "/v1/recall:batch", {"user_ids": ["x", "u1", "x"], "limit": 2, "exclude": ["i1"]}
    )

    lists = answer.json["lists"]
    assert [(each["user_id"], each["source"]) for each in lists] == [
        ("x", "popular"),
        ("u1", "personal"),
        ("x", "popular"),
    ]
    assert [item["item_id"] for item in lists[1]["items"]] == ["i2", "i3"]


async def test_a_service_that_is_not_connected_is_live_and_names_what_it_waits_for(tmp_path: Path):
    with open_service(tmp_path, snapshot=None) as service:
        live, ready = await ask(service, "GET", "/health/live"), await ask(service, "GET", "/health/ready")

    assert (live.status, live.json) == (200, {"status": "live"})
    assert (ready.status, ready.error) == (503, "not_ready")
    assert ready.json["failing"] == ["broker", "lists", "items", "model"]


async def test_metrics_are_the_same_whatever_the_query_says(service: QueryService):
    answer = await ask(service, "GET", "/metrics?name[]=python_info", headers={"accept": "a" * 5_000})

    assert answer.status == 200
    assert b"mindstream_click_to_visible_seconds_bucket" in answer.body


async def test_answers_are_counted_by_source_and_requests_by_route(service: QueryService):
    app = create_app(service)
    await ask(app, "GET", "/v1/users/u1/recall")
    await ask(app, "GET", "/nowhere")

    text = (await ask(app, "GET", "/metrics")).body.decode()

    assert 'mindstream_http_requests_total{route="/v1/users/{user_id}/recall",status="200"}' in text
    assert 'mindstream_http_requests_total{route="none",status="404"}' in text
    assert 'mindstream_answers_total{source="personal"}' in text
    assert "u1" not in text


async def test_the_status_of_a_fresh_service_has_every_figure(service: QueryService):
    status = (await ask(service, "GET", "/v1/status")).json

    assert set(status) == {"now_ms", "failing", "freshness", "clicks", "lists", "model", "recent_users"}
    assert len(status["freshness"]["series"]) == 60
    assert status["model"]["version"] == "0000"


async def test_a_mistake_of_ours_is_answered_without_a_trace(own_service: QueryService):
    assert own_service.lists is not None
    record = list_record(make_list("broken"), offset=1)
    own_service.lists.apply([replace(record, value=b"not json")])
    app = create_app(own_service)

    with pytest.raises(Exception):  # noqa: B017, PT011 - Starlette answers, then hands it to the server's log
        await ask(app, "GET", "/v1/users/broken/recall")
    after = await ask(app, "GET", "/v1/users/u1/recall")

    assert after.status == 200
