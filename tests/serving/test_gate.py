"""What every request passes before a route sees it: paths, headers and the token, without Kafka."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import SecretStr

from engine import metrics
from engine.serving.api import create_app
from engine.serving.gate import OPEN_PATHS
from engine.serving.service import QueryService
from engine.settings import Settings
from tests.serving.parts import ask

TOKEN = "correct-horse-battery"


@pytest.mark.parametrize("user_id", ["%zz", "%", "%f", "%ff", "%ed%a0%80", "%c0%ae"])
async def test_a_path_that_is_not_percent_encoded_utf8_is_refused(service: QueryService, user_id: str):
    answer = await ask(service, "GET", f"/v1/users/{user_id}/recall")

    assert (answer.status, answer.error) == (400, "bad_path")


@pytest.mark.parametrize("size", [8_192, 20_000])
async def test_a_path_of_8_kb_or_more_is_refused(service: QueryService, size: int):
    answer = await ask(service, "GET", "/v1/users/" + "x" * size + "/recall")

    assert (answer.status, answer.error) == (414, "path_too_long")


async def test_a_colon_may_be_percent_encoded(service: QueryService):
    answer = await ask(service, "POST", "/v1/recall%3Abatch", {"user_ids": ["u1"]})

    assert answer.status == 200


async def test_overlong_headers_are_refused(service: QueryService):
    answer = await ask(service, "GET", "/health/live", headers={"x-long": "x" * 17_000})

    assert (answer.status, answer.error) == (431, "headers_too_large")


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


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/openapi.json", "/health/live"])
async def test_what_is_not_about_a_user_or_item_is_counted_under_its_path(service: QueryService, path: str):
    before = answered(path)

    await ask(service, "GET", path)

    assert answered(path) == before + 1


def answered(route: str) -> float:
    return metrics.REQUESTS.labels(route, 200)._value.get()
