"""What /openapi.json and docs/api.md promise, compared with what is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engine.serving import refusals
from engine.serving.api import create_app
from engine.serving.page import FILES
from engine.serving.service import QueryService
from engine.settings import Settings
from tests.serving.parts import ask, make_snapshot, open_service

DOCUMENT = Path(__file__).parents[2] / "docs" / "api.md"


async def test_every_route_is_described_with_its_answers_and_errors(tmp_path: Path):
    app = create_app(QueryService(Settings(data_dir=tmp_path, broker_port=1)))

    described = (await ask(app, "GET", "/openapi.json")).json["paths"]

    routed = {(route.path, method.lower()) for route in app.routes for method in route.methods - {"HEAD"}}
    routed -= {(path, "get") for path in (*FILES, "/openapi.json")}
    assert {(path, method) for path, methods in described.items() for method in methods} == routed
    for methods in described.values():
        for each in methods.values():
            assert each["summary"]
            assert each["responses"]["200"]["description"]


async def test_an_answer_has_the_fields_that_are_described(tmp_path: Path):
    with open_service(tmp_path, snapshot=make_snapshot()) as service:
        described = (await ask(service, "GET", "/openapi.json")).json["paths"]["/v1/users/{user_id}/recall"]["get"]
        answered = (await ask(service, "GET", "/v1/users/u1/recall?explain=without&min_offset=0:1&wait_ms=0")).json

    schema = described["responses"]["200"]["content"]["application/json"]["schema"]
    assert (
        set(schema["required"]) | {"interests", "window", "without", "min_offset_reached"}
        == set(schema["properties"])
        == set(answered)
    )


def test_every_route_and_error_code_is_documented(tmp_path: Path):
    app = create_app(QueryService(Settings(data_dir=tmp_path, broker_port=1)))
    document = DOCUMENT.read_text()
    source = "".join((Path(refusals.__file__).parent / name).read_text() for name in ("refusals.py", "queries.py"))

    codes = set(re.findall(r"Refusal\(\s*\d+,\s*\"([a-z_]+)\"", source))

    assert {route.path for route in app.routes if route.path not in FILES and route.path not in document} == set()
    assert {code for code in codes if f"`{code}`" not in document} == set()


LARGE = b"[" + b"1," * 600_000 + b"1]"


@pytest.mark.parametrize(
    ("method", "target", "path", "body", "status"),
    [
        ("GET", "/v1/users/u1/recall?limit=0", "/v1/users/{user_id}/recall", None, 400),
        ("GET", "/v1/users/u1/recall", "/v1/users/{user_id}/recall", None, 503),
        ("GET", "/v1/users/u1/window?a=b", "/v1/users/{user_id}/window", None, 400),
        ("GET", "/v1/users/u1/interests?a=b", "/v1/users/{user_id}/interests", None, 400),
        ("POST", "/v1/recall", "/v1/recall", b"{", 400),
        ("POST", "/v1/recall", "/v1/recall", LARGE, 413),
        ("POST", "/v1/recall", "/v1/recall", b'{"clicks": [{"item_id": "i1"}]}', 503),
        ("GET", "/v1/items/i1/neighbors?limit=0", "/v1/items/{item_id}/neighbors", None, 400),
        ("GET", "/v1/items/i1/neighbors", "/v1/items/{item_id}/neighbors", None, 503),
        ("POST", "/v1/recall:batch", "/v1/recall:batch", b"{", 400),
        ("POST", "/v1/recall:batch", "/v1/recall:batch", LARGE, 413),
        ("POST", "/v1/clicks", "/v1/clicks", b"{", 400),
        ("POST", "/v1/clicks", "/v1/clicks", LARGE, 413),
        ("POST", "/v1/clicks", "/v1/clicks", b'{"user_id": "u1", "item_id": "i1"}', 503),
        ("PUT", "/v1/items/i1", "/v1/items/{item_id}", b"[]", 400),
        ("PUT", "/v1/items/i1", "/v1/items/{item_id}", LARGE, 413),
        ("PUT", "/v1/items/i1", "/v1/items/{item_id}", b"{}", 503),
        ("DELETE", "/v1/items/i1", "/v1/items/{item_id}", None, 503),
        ("DELETE", "/v1/users/u1?a=b", "/v1/users/{user_id}", None, 400),
        ("DELETE", "/v1/users/u1", "/v1/users/{user_id}", None, 503),
        ("GET", "/health/ready", "/health/ready", None, 503),
    ],
)
async def test_every_refusal_is_one_that_is_described(
    tmp_path: Path, method: str, target: str, path: str, body: bytes | None, status: int
):
    with open_service(tmp_path, snapshot=None) as service:
        described = (await ask(service, "GET", "/openapi.json")).json["paths"]
        answer = await ask(service, method, target, body)

    assert answer.status == status
    assert str(status) in described[path][method.lower()]["responses"]
    assert f"`{answer.error}`" in DOCUMENT.read_text()


async def test_metrics_come_in_the_type_that_is_described(tmp_path: Path):
    with open_service(tmp_path, snapshot=None) as service:
        described = (await ask(service, "GET", "/openapi.json")).json["paths"]["/metrics"]["get"]
        answer = await ask(service, "GET", "/metrics")

    assert list(described["responses"]["200"]["content"]) == [answer.headers["content-type"]]
