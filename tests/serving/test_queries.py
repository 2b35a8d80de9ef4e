"""Queries that are not exactly right are refused by name, in the query string as in the body of a batch."""

from __future__ import annotations

import json
from urllib.parse import quote

import pytest

from engine.serving.service import QueryService
from tests.serving.parts import ask

STRANGE_IDS = ["../", "a/b", "ä", "日本", "a b", "%41", "😀", "a+b", "a:b", "{x}", ".", "..", "'\"<>&;", "\u202e"]


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
        ("exclude=%ff", "bad_exclude"),
        ("exclude=%zz", "bad_exclude"),
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
