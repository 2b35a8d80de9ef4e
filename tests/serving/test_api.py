"""The HTTP interface without Kafka: every route's good answer and every kind of bad request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from pydantic import SecretStr

from engine.events import ItemEvent
from engine.serving.api import create_app
from engine.serving.gate import OPEN_PATHS
from engine.serving.service import QueryService
from engine.settings import Settings
from tests.serving.parts import ask, item_record, list_record, make_list, make_snapshot, open_service

TOKEN = "correct-horse-battery"
STRANGE_IDS = ["../", "a/b", "ä", "日本", "a b", "%41", "😀", "a+b", "a:b", "{x}", ".", "..", "'\"<>&;", "\u202e"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QueryService]:
    """A service that knows u1, for tests that only ask."""
    with open_service(tmp_path_factory.mktemp("shared"), snapshot=make_snapshot()) as opened:
        assert opened.lists is not None
        opened.lists.apply([list_record(make_list("u1"), offset=0)])
        yield opened


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[QueryService]:
    """A service that knows u1, for a test that changes it."""
    with open_service(tmp_path, snapshot=make_snapshot()) as opened:
        assert opened.lists is not None
        opened.lists.apply([list_record(make_list("u1"), offset=0)])
        yield opened


# --- recall


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


BAD_LIMITS = [
    "0",
    "-1",
    "1.5",
    "abc",
    "",
    "1000000000",
    "1e3",
    "%D9%A3",
    "0x10",
    "201",
    "+5",
    "5%20",
    "99999999999999999",
]


@pytest.mark.parametrize("limit", BAD_LIMITS)
async def test_a_limit_that_is_no_whole_number_in_range_is_refused_and_named(service: QueryService, limit: str):
    answer = await ask(service, "GET", f"/v1/users/u1/recall?limit={limit}")

    assert (answer.status, answer.error) == (400, "bad_limit")
    assert "1 to 200" in answer.json["message"]


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("limit=1&limit=1", "bad_limit"),
        ("offset=-1", "bad_offset"),
        ("offset=1&offset=2", "bad_offset"),
        ("explain=yes", "bad_explain"),
        ("exclude=", "bad_exclude"),
        ("exclude=%00", "bad_exclude"),
        ("exclude=%ff", "bad_path"),
        ("exclude=%zz", "bad_path"),
        ("n=5", "unknown_parameter"),
        ("limit=5&", "unknown_parameter"),
        ("exclude=a&" * 1001 + "limit=1", "path_too_long"),
    ],
)
async def test_a_query_that_is_not_exactly_right_is_refused(service: QueryService, query: str, error: str):
    answer = await ask(service, "GET", f"/v1/users/u1/recall?{query}")

    assert (answer.status, answer.error) == (414 if error == "path_too_long" else 400, error)


@pytest.mark.parametrize("user_id", STRANGE_IDS)
async def test_any_id_of_the_contract_is_decoded_once(service: QueryService, user_id: str):
    answer = await ask(service, "GET", f"/v1/users/{quote(user_id, safe='')}/recall")

    assert (answer.status, answer.json["user_id"]) == (200, user_id)


@pytest.mark.parametrize("user_id", ["%00", "%0A", "%7F", "%C2%85", "%1b%5B", "x" * 257, "%20"])
async def test_an_id_with_control_characters_or_of_wrong_length_is_refused(service: QueryService, user_id: str):
    answer = await ask(service, "GET", f"/v1/users/{user_id}/recall")

    assert (answer.status, answer.error) == (400, "bad_user_id")


@pytest.mark.parametrize("user_id", ["%zz", "%", "%f", "%ff", "%ed%a0%80", "%c0%ae"])
async def test_a_path_that_is_not_percent_encoded_utf8_is_refused(service: QueryService, user_id: str):
    answer = await ask(service, "GET", f"/v1/users/{user_id}/recall")

    assert (answer.status, answer.error) == (400, "bad_path")


@pytest.mark.parametrize("size", [8_192, 20_000])
async def test_a_path_of_8_kb_or_more_is_refused(service: QueryService, size: int):
    answer = await ask(service, "GET", "/v1/users/" + "x" * size + "/recall")

    assert (answer.status, answer.error) == (414, "path_too_long")


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


async def test_a_colon_may_be_percent_encoded(service: QueryService):
    answer = await ask(service, "POST", "/v1/recall%3Abatch", {"user_ids": ["u1"]})

    assert answer.status == 200


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/users/u1/recall", "GET"),
        ("DELETE", "/v1/users/u1/recall", "GET"),
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


# --- batch


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


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (b"{", 400, "bad_body"),
        (b"", 400, "bad_body"),
        (b"[]", 400, "bad_body"),
        (b'{"user_ids": "u1"}', 400, "bad_user_ids"),
        (b'{"user_ids": []}', 400, "bad_user_ids"),
        (b"{}", 400, "bad_body"),
        (b'{"user_ids": ["u1"], "limt": 5}', 400, "bad_body"),
        (b'{"user_ids": ["u1"], "limit": 0}', 400, "bad_limit"),
        (b'{"user_ids": ["u1"], "limit": 1.0}', 400, "bad_limit"),
        (b'{"user_ids": ["u1"], "limit": true}', 400, "bad_limit"),
        (b'{"user_ids": ["u1"], "offset": "1"}', 400, "bad_offset"),
        (b'{"user_ids": ["u1"], "explain": 1}', 400, "bad_explain"),
        (b'{"user_ids": ["u1"], "exclude": "i1"}', 400, "bad_exclude"),
        (b'{"user_ids": ["u1"], "exclude": ["i1", ""]}', 400, "bad_exclude"),
        (json.dumps({"user_ids": ["u"] * 1_001}).encode(), 413, "too_many_user_ids"),
        (json.dumps({"user_ids": ["u"] * 1_000_000}).encode(), 413, "body_too_large"),
        (b'{"user_ids": ["\\ud800"]}', 400, "bad_body"),
        (b'{"user_ids": ["\xff"]}', 400, "bad_body"),
        (b'{"user_ids": ' + b"[" * 100_000, 400, "bad_body"),
        (b"[" * 100_000, 400, "bad_body"),
    ],
)
async def test_a_batch_that_is_not_exactly_right_is_refused(
    service: QueryService, body: bytes, status: int, error: str
):
    answer = await ask(service, "POST", "/v1/recall:batch", body)

    assert (answer.status, answer.error) == (status, error)


@pytest.mark.parametrize("bad", [5, None, "", "a\u0000", ["u1"], {"a": 1}, 1.5, True])
async def test_one_bad_user_refuses_the_whole_batch_and_is_named_by_its_index(service: QueryService, bad: object):
    answer = await ask(service, "POST", "/v1/recall:batch", {"user_ids": ["u1", "u2", bad]})

    assert (answer.status, answer.error, answer.json["index"]) == (400, "bad_user_ids", 2)
    assert "user_ids[2]" in answer.json["message"]


# --- bodies


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


async def test_overlong_headers_are_refused(service: QueryService):
    answer = await ask(service, "GET", "/health/live", headers={"x-long": "x" * 17_000})

    assert (answer.status, answer.error) == (431, "headers_too_large")


# --- clicks and items: nothing of a bad request is sent; good ones need Kafka (test_server.py)


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


async def test_clicks_and_items_wait_for_kafka_no_longer_than_it_takes_to_say_so(service: QueryService):
    click = await ask(service, "POST", "/v1/clicks", GOOD_CLICK.encode())
    item = await ask(service, "PUT", "/v1/items/i1", {"title": "Lamp"})
    removal = await ask(service, "DELETE", "/v1/items/i1")

    assert {each.status for each in (click, item, removal)} == {503}
    assert {each.error for each in (click, item, removal)} == {"log_unavailable"}


# --- health and metrics


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


# --- the token


def secured(tmp_path: Path) -> QueryService:
    return QueryService(Settings(data_dir=tmp_path, broker_port=1, api_token=SecretStr(TOKEN)))


async def test_every_route_but_life_and_the_page_demands_the_token(tmp_path: Path):
    app = create_app(secured(tmp_path))

    for route in app.routes:
        path = route.path.replace("{user_id}", "u1").replace("{item_id}", "i1")
        for method in route.methods:
            answer = await ask(app, method, path, headers={"content-type": "application/json"})
            assert (answer.status == 401) == (path not in OPEN_PATHS), (method, path)


async def test_a_path_that_leads_nowhere_demands_the_token_too(tmp_path: Path):
    app = create_app(secured(tmp_path))

    answers = [await ask(app, "GET", path) for path in ("/nothing", "/v1/users/%zz/recall")]

    assert [answer.status for answer in answers] == [401, 401]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("authorization", "")],
        [("authorization", "Bearer")],
        [("authorization", "Bearer ")],
        [("authorization", f"Bearer {TOKEN}x")],
        [("authorization", f"Bearer {TOKEN[:-1]}")],
        [("authorization", f"Basic {TOKEN}")],
        [("authorization", TOKEN)],
        [("authorization", "Bearer " + "x" * 10_000)],
        [("authorization", f"Bearer {TOKEN}"), ("authorization", f"Bearer {TOKEN}")],
        [("authorization", "Bearer \xe9")],
        [("x-token", TOKEN)],
        [("cookie", f"token={TOKEN}")],
    ],
)
async def test_anything_but_the_one_token_is_refused_without_saying_why(tmp_path: Path, headers: list[tuple[str, str]]):
    answer = await ask(create_app(secured(tmp_path)), "GET", f"/v1/status?token={TOKEN}", headers=headers)

    assert (answer.status, answer.error) == (401, "unauthorized")
    assert TOKEN not in answer.body.decode()
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_the_token_opens_every_route(tmp_path: Path):
    answer = await ask(create_app(secured(tmp_path)), "GET", "/v1/status", headers={"authorization": f"Bearer {TOKEN}"})

    assert answer.status == 200


# --- our own mistakes


async def test_a_mistake_of_ours_is_answered_without_a_trace(own_service: QueryService):
    assert own_service.lists is not None
    record = list_record(make_list("broken"), offset=1)
    own_service.lists.apply([replace(record, value=b"not json")])
    app = create_app(own_service)

    with pytest.raises(Exception):  # noqa: B017, PT011 - Starlette answers, then hands it to the server's log
        await ask(app, "GET", "/v1/users/broken/recall")
    after = await ask(app, "GET", "/v1/users/u1/recall")

    assert after.status == 200
