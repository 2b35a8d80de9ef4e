"""What /openapi.json says of each route: parameters, bodies and answers, beside the code that keeps the promise.

The routes read their requests themselves, so nothing here is derived; tests/serving/test_openapi.py provokes each
refusal and compares.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

DESCRIPTION = (
    "Recall lists that reflect a click within a fraction of a second. "
    'Every error is {"error": code, "message": sentence}. '
    "Where a token is set, send it as Authorization: Bearer TOKEN."
)
_ID = {"type": "string", "minLength": 1, "maxLength": 256}
_NULLABLE_INT = {"type": ["integer", "null"]}
_POSITION = {
    "type": "object",
    "required": ["partition", "offset"],
    "properties": {"partition": {"type": "integer"}, "offset": {"type": "integer"}},
}
_TITLED = {"item_id": _ID, "title": {"type": "string"}}
_LIST = {
    "type": "object",
    "required": [
        "user_id",
        "items",
        "as_of_ms",
        "accepted_at_ms",
        "computed_at_ms",
        "age_ms",
        "window_offset",
        "activation",
        "epoch",
        "model_version",
        "source",
    ],
    "properties": {
        "user_id": _ID,
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["item_id", "score", "interest"],
                "properties": {**_TITLED, "score": {"type": "number"}, "interest": _NULLABLE_INT},
            },
        },
        "as_of_ms": {**_NULLABLE_INT, "description": "event time of the newest click taken in"},
        "accepted_at_ms": {
            **_NULLABLE_INT,
            "description": "when the log accepted the oldest click that this list is the first to reflect",
        },
        "computed_at_ms": {"type": "integer"},
        "age_ms": {"type": "integer", "description": "now minus computed_at_ms"},
        "window_offset": {"type": "integer"},
        "activation": {"type": "integer"},
        "epoch": {"type": "string"},
        "model_version": {"type": "string"},
        "source": {
            "enum": ["personal", "popular", "searched", "ad_hoc"],
            "description": "searched: made on the spot, because a filter would have left the stored list short",
        },
        "interests": {"type": "array", "description": "with explain: each interest and the clicks that formed it"},
        "window": {"type": "array", "description": "with explain: the user's last clicks, oldest first"},
        "without": {
            "type": "array",
            "description": "with explain=without: by click, newest first, the items that leave when it is undone",
        },
        "min_offset_reached": {"type": "boolean", "description": "with min_offset: whether the list reflects it"},
    },
}
_AD_HOC_LIST = {**_LIST, "properties": {**_LIST["properties"], "user_id": {"type": "null"}}}  # type: ignore[dict-item]
_STAMPS = {
    "as_of_ms": _NULLABLE_INT,
    "computed_at_ms": _NULLABLE_INT,
    "window_offset": {"type": "integer"},
    "activation": {"type": "integer"},
    "epoch": {"type": "string"},
    "model_version": {"type": ["string", "null"]},
}
_CLICK = {
    "type": "object",
    "required": ["user_id", "item_id"],
    "properties": {
        "user_id": _ID,
        "item_id": _ID,
        "clicked_at_ms": {"type": "integer", "description": "UTC milliseconds; now where it is left out"},
        "event_id": _ID,
        "event_type": {"type": "string", "default": "click"},
        "weight": {"type": "number", "default": 1.0},
        "profile": {"type": "object"},
    },
}
_AD_HOC_CLICK = {
    "type": "object",
    "required": ["item_id"],
    "properties": {name: value for name, value in _CLICK["properties"].items() if name != "user_id"},  # type: ignore[attr-defined]
}
_ITEM = {
    "type": "object",
    "properties": {
        "title": {"type": "string"},
        "category": {"type": "string"},
        "brand": {"type": "string"},
        "shop": {"type": "string"},
        "features": {"type": "object"},
        "available": {"type": "boolean", "default": True},
    },
}
_ERROR = {
    "type": "object",
    "required": ["error", "message"],
    "properties": {"error": {"type": "string"}, "message": {"type": "string"}},
}
_ERROR_NAMES = {
    400: "a parameter, the path or the body is wrong; `error` names which",
    404: "the item has no vector",
    401: "the token is missing or wrong",
    408: "the body did not arrive in time",
    413: "too much in one request",
    415: "the body is not declared as JSON",
    503: "not ready yet, too busy, or Kafka did not acknowledge in time",
}


@dataclass(frozen=True, slots=True)
class Description:
    """One route as OpenAPI tells it."""

    name: str
    summary: str
    answer: dict[str, Any]
    errors: tuple[int, ...] = ()
    parameters: tuple[dict[str, Any], ...] = ()
    body: dict[str, Any] | None = None
    media_type: str = field(default="application/json")
    status: int = 200


def described(route: Description) -> dict[str, Any]:
    """Return *route* as the arguments of FastAPI's `add_api_route`."""
    extra: dict[str, Any] = {"parameters": list(route.parameters)} if route.parameters else {}
    if route.body is not None:
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": route.body}}}
    responses: dict[int | str, dict[str, Any]] = {
        route.status: {"description": "done", "content": {route.media_type: {"schema": route.answer}}}
    }
    for status in route.errors:
        responses[status] = {
            "description": _ERROR_NAMES[status],
            "content": {"application/json": {"schema": _ERROR}},
        }
    return {"name": route.name, "summary": route.summary, "responses": responses, "openapi_extra": extra}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": _ID}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


_LIMIT = {
    "type": "integer",
    "minimum": 1,
    "maximum": 1000,
    "default": 50,
    "description": "at most MINDSTREAM_MAX_QUERY_ITEMS, 200 unless set",
}
_OFFSET = {"type": "integer", "minimum": 0, "default": 0}
_EXPLAIN = {"enum": [True, False, "without"], "default": False}
RECALL = Description(
    "recall",
    "One user's recall list",
    _LIST,
    errors=(400, 401, 503),
    parameters=(
        _path("user_id"),
        _query("limit", _LIMIT, "how many items at the most"),
        _query("offset", _OFFSET, "how many of the best to leave out"),
        _query("exclude", {"type": "array", "items": _ID}, "items that are not wanted; repeat for several"),
        _query("category", {"type": "string"}, "items of this category alone"),
        _query("explain", _EXPLAIN, "add interests and window; `without` adds what each of the newest clicks brought"),
        _query("min_offset", {"type": "string", "pattern": "^[0-9]+:[0-9]+$"}, "wait for the click at this place"),
        _query(
            "wait_ms", {"type": "integer", "minimum": 0, "maximum": 10_000, "default": 1000}, "how long, at the most"
        ),
    ),
)
WINDOW = Description(
    "window",
    "The clicks that the user's list was made of, oldest first",
    {"type": "object", "properties": {"user_id": _ID, "window": {"type": "array"}, **_STAMPS}},
    errors=(400, 401, 503),
    parameters=(_path("user_id"),),
)
INTERESTS = Description(
    "interests",
    "The interests of the user's list, and the clicks that formed them",
    {"type": "object", "properties": {"user_id": _ID, "interests": {"type": "array"}, **_STAMPS}},
    errors=(400, 401, 503),
    parameters=(_path("user_id"),),
)
RECALL_AD_HOC = Description(
    "recall_ad_hoc",
    "The list of clicks that are nobody's: routed and searched on the spot, never logged",
    _AD_HOC_LIST,
    errors=(400, 401, 408, 413, 415, 503),
    body={
        "type": "object",
        "required": ["clicks"],
        "additionalProperties": False,
        "properties": {
            "clicks": {"type": "array", "items": _AD_HOC_CLICK, "minItems": 1, "maxItems": 1000},
            "profile": {"type": "object"},
            "limit": _LIMIT,
            "offset": _OFFSET,
            "exclude": {"type": "array", "items": _ID, "maxItems": 1000},
            "category": {"type": "string"},
            "explain": _EXPLAIN,
        },
    },
)
NEIGHBORS = Description(
    "neighbors",
    "The items whose vectors have the greatest inner product with the item's",
    {
        "type": "object",
        "properties": {
            "item_id": _ID,
            "model_version": {"type": "string"},
            "items": {
                "type": "array",
                "items": {"type": "object", "properties": {**_TITLED, "score": {"type": "number"}}},
            },
        },
    },
    errors=(400, 401, 404, 503),
    parameters=(_path("item_id"), _query("limit", _LIMIT, "how many items at the most")),
)
RECALL_BATCH = Description(
    "recall_batch",
    "The recall lists of up to 1000 users, in their order; all or none",
    {"type": "object", "required": ["lists"], "properties": {"lists": {"type": "array", "items": _LIST}}},
    errors=(400, 401, 408, 413, 415, 503),
    body={
        "type": "object",
        "required": ["user_ids"],
        "additionalProperties": False,
        "properties": {
            "user_ids": {"type": "array", "items": _ID, "minItems": 1, "maxItems": 1000},
            "limit": _LIMIT,
            "offset": _OFFSET,
            "exclude": {"type": "array", "items": _ID, "maxItems": 1000},
            "explain": {"type": "boolean", "default": False},
        },
    },
)
POST_CLICKS = Description(
    "post_clicks",
    "Log one click or up to 1000; answered when Kafka has all of them",
    {"type": "array", "items": _POSITION},
    errors=(400, 401, 408, 413, 415, 503),
    body={"oneOf": [_CLICK, {"type": "array", "items": _CLICK, "minItems": 1, "maxItems": 1000}]},
)
PUT_ITEM = Description(
    "put_item",
    "Set an item's fields; they replace what was known of it",
    {**_POSITION, "properties": {"item_id": _ID, **_POSITION["properties"]}},  # type: ignore[dict-item]
    errors=(400, 401, 408, 413, 415, 503),
    parameters=(_path("item_id"),),
    body=_ITEM,
)
DELETE_ITEM = Description(
    "delete_item",
    "Remove an item: no list shows it any more",
    {**_POSITION, "properties": {"item_id": _ID, "removed": {"type": "boolean"}, **_POSITION["properties"]}},  # type: ignore[dict-item]
    errors=(400, 401, 503),
    parameters=(_path("item_id"),),
)
ERASE_USER = Description(
    "erase_user",
    "Forget a user: every click logged so far is ignored from now on; asking again does no harm",
    {
        "type": "object",
        "required": ["user_id", "partition", "offset"],
        "properties": {
            "user_id": _ID,
            "partition": {"type": "integer"},
            "offset": {
                "type": "integer",
                "minimum": -1,
                "description": "the last offset of that partition of `clicks` that is ignored for this user",
            },
        },
    },
    errors=(400, 401, 503),
    parameters=(_path("user_id"),),
    status=202,
)
STATUS = Description("status", "The figures that the page draws", {"type": "object"}, errors=(401,))
LIVE = Description("live", "Whether the process runs; needs no token", {"type": "object"})
READY = Description(
    "ready", "Whether queries should be sent here; names the failing part", {"type": "object"}, errors=(401, 503)
)
METRICS = Description(
    "metrics", "Prometheus metrics", {"type": "string"}, errors=(401,), media_type=CONTENT_TYPE_LATEST
)
