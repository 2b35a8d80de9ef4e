"""Refusals: every answer of the HTTP interface that is not a success, in one shape.

A handler raises a `Refusal`; the application writes `{"error": code, "message": sentence}`. A sentence names what was
expected, where, and what to do; it never repeats what the client sent, so nothing is reflected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

API_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
CLOSE = {"connection": "close"}
"""Sent where the rest of the request is not going to be read."""


class Refusal(Exception):
    """A request that is not answered as asked; becomes one HTTP error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        self.status, self.code, self.message = status, code, message
        self.headers, self.details = dict(headers or {}), dict(details or {})
        super().__init__(message)

    def response(self) -> Response:
        """Return the refusal as an HTTP answer."""
        return json_response(
            {"error": self.code, "message": self.message, **self.details}, status=self.status, headers=self.headers
        )


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return *content* as an answer that no cache keeps; bytes are taken as JSON already."""
    body = content if isinstance(content, bytes) else msgspec.json.encode(content)
    return Response(body, status, {**API_HEADERS, **(headers or {})}, "application/json")


def no_route() -> Refusal:
    """Return the refusal of a path that leads nowhere."""
    return Refusal(404, "not_found", "there is nothing at this path; /openapi.json lists what there is")


def wrong_method(allowed: str) -> Refusal:
    """Return the refusal of a method that the path does not take."""
    return Refusal(405, "method_not_allowed", f"this path takes {allowed}", headers={"allow": allowed})


def bad_path(problem: str) -> Refusal:
    """Return the refusal of a path that can't be decoded."""
    return Refusal(400, "bad_path", f"the path {problem}; percent-encode ids as UTF-8, once")


def path_too_long(limit: int) -> Refusal:
    """Return the refusal of an overlong path."""
    return Refusal(
        414, "path_too_long", f"path and query must be shorter than {limit} bytes; POST /v1/recall:batch takes more"
    )


def headers_too_large(limit: int) -> Refusal:
    """Return the refusal of overlong headers."""
    return Refusal(431, "headers_too_large", f"the headers together must be at most {limit} bytes", headers=CLOSE)


def no_token() -> Refusal:
    """Return the refusal of a request that doesn't prove it may ask; it says nothing about why."""
    return Refusal(
        401,
        "unauthorized",
        "send the service's token in one header, Authorization: Bearer TOKEN",
        headers={"www-authenticate": "Bearer", **CLOSE},
    )


def body_too_large(limit: int) -> Refusal:
    """Return the refusal of an overlong body, which is not read to its end."""
    return Refusal(413, "body_too_large", f"the body must be at most {limit} bytes; send it in parts", headers=CLOSE)


def body_too_slow(limit_s: float) -> Refusal:
    """Return the refusal of a body that does not arrive."""
    return Refusal(408, "body_too_slow", f"the body must arrive within {limit_s:g} s; send it again", headers=CLOSE)


def not_json() -> Refusal:
    """Return the refusal of a body that is declared as something else."""
    return Refusal(
        415,
        "unsupported_media_type",
        "the body must be sent with Content-Type: application/json, in UTF-8 and without Content-Encoding",
        headers=CLOSE,
    )


def too_many(what: str, *, limit: int) -> Refusal:
    """Return the refusal of a request with too many parts."""
    return Refusal(413, f"too_many_{what}", f"one request takes at most {limit} {what}; send several requests")


def bad(name: str, expected: str) -> Refusal:
    """Return the refusal of the parameter or field *name*."""
    return Refusal(400, f"bad_{name}", f"{name} must be {expected}")


def unknown_parameter(known: str) -> Refusal:
    """Return the refusal of a parameter that is none; *known* names those that are."""
    return Refusal(400, "unknown_parameter", f"the parameters that the query knows: {known}")


def bad_at(name: str, index: int, expected: str) -> Refusal:
    """Return the refusal of one entry of a list; nothing of the request was done."""
    return Refusal(
        400,
        f"bad_{name}",
        f"{name}[{index}] must be {expected}; nothing of this request was done",
        details={"index": index},
    )


def bad_click(index: int, reason: str, detail: str) -> Refusal:
    """Return the refusal of one click; none of the request's clicks was sent."""
    return Refusal(
        400,
        "bad_click",
        f"clicks[{index}] can't be taken, {reason}: {detail}; none of this request's clicks was sent",
        details={"index": index, "reason": reason},
    )


def bad_item(reason: str, detail: str) -> Refusal:
    """Return the refusal of an item's fields."""
    return Refusal(400, "bad_item", f"the item can't be taken, {reason}: {detail}", details={"reason": reason})


def bad_profile(reason: str, detail: str) -> Refusal:
    """Return the refusal of a profile."""
    return Refusal(400, "bad_profile", f"the profile can't be taken, {reason}: {detail}", details={"reason": reason})


def no_interests(model_version: str) -> Refusal:
    """Return the refusal of clicks that no interest can be made of."""
    return Refusal(
        400,
        "no_interests",
        f"the clicks form no interest under model version {model_version}; send at least one click on an item that it "
        "knows and the catalog has not removed, that is no dislike and has a weight",
    )


def unknown_item(model_version: str) -> Refusal:
    """Return the answer for an item without a vector."""
    return Refusal(
        404,
        "unknown_item",
        f"model version {model_version} has no vector of this item, or the catalog has removed it; "
        "an item sent since joins with a later version",
    )


def too_busy(limit: int) -> Refusal:
    """Return the answer while as many requests are worked out as may be at once."""
    return Refusal(
        503,
        "too_busy",
        f"{limit} requests are being worked out, which is all that MINDSTREAM_MAX_RECALLS_AT_ONCE allows; "
        "ask again in a second",
        headers={"retry-after": "1"},
    )


def too_many_waiting(limit: int) -> Refusal:
    """Return the answer while as many requests wait for their lists as may at once."""
    return Refusal(
        503,
        "too_many_waiting",
        f"{limit} requests wait for their lists already; ask again in a second, or with wait_ms=0",
        headers={"retry-after": "1"},
    )


def no_trained_version() -> Refusal:
    """Return the answer where there is no version that routes and searches."""
    return Refusal(
        503,
        "no_trained_version",
        "no trained model version is in service, so nothing can be worked out; "
        "run `mindstream train` once clicks have been sent, or ask again in a few seconds",
        headers={"retry-after": "2"},
    )


def log_unavailable(what: str) -> Refusal:
    """Return the answer when Kafka did not acknowledge in time."""
    return Refusal(
        503,
        "log_unavailable",
        f"Kafka did not acknowledge the {what} in time; they may have been kept, so send the same ones again",
        headers={"retry-after": "2"},
    )


def not_ready(problems: Mapping[str, str]) -> Refusal:
    """Return the answer of a service that can't do its work yet, each failing part with what is wrong."""
    sentence = "; ".join(f"{part}: {problem}" for part, problem in problems.items())
    return Refusal(503, "not_ready", sentence, headers={"retry-after": "2"}, details={"failing": list(problems)})


def no_lists_yet() -> Refusal:
    """Return the answer when there is neither a list of the user nor a model version to fall back on."""
    return Refusal(
        503,
        "no_model_version",
        "there is no personal list and no model version to answer from yet; "
        "run `mindstream train --version-zero` once clicks have been sent, or ask again in a few seconds",
        headers={"retry-after": "2"},
    )


def store_opening() -> Refusal:
    """Return the answer while the lists on disk can't be read yet."""
    return Refusal(
        503,
        "starting",
        "the query service has not reached Kafka and opened its lists yet; /health/ready says what it waits for",
        headers={"retry-after": "1"},
    )


def failed() -> Refusal:
    """Return the answer when the mistake is ours."""
    return Refusal(500, "internal_error", "the query service failed to answer; its log says why")
