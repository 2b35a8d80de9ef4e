"""The HTTP interface: last of the files one click passes through; a list is read here.

Each route reads its request strictly (`queries`, `intake`), asks the service's parts once, and answers JSON; what is
refused is refused in one shape (`refusals`). The recall routes build their bytes themselves: no schema library stands
between the stored list and the answer. docs/api.md describes every route.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match

from engine import metrics
from engine.log import Position
from engine.log.partitioning import partition_of
from engine.serving import answers, intake, openapi, queries, refusals, workout
from engine.serving.adhoc import read_ad_hoc
from engine.serving.answers import Answer, Held, answer_query, encode_answer
from engine.serving.gate import Gate
from engine.serving.page import page_routes
from engine.serving.queries import RecallQuery
from engine.serving.refusals import Refusal, json_response
from engine.serving.service import QueryService, wall_ms
from engine.store.lists import ListStore

METRICS_KEPT_S = 1.0

log = structlog.get_logger()


def create_app(service: QueryService) -> FastAPI:
    """Return the application that answers from *service*, and starts and stops it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="MindStream query service",
        version="1",
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    routes = Routes(service)
    for path, method, handler, described in (
        ("/v1/users/{user_id}/recall", "GET", routes.recall, openapi.RECALL),
        ("/v1/users/{user_id}/window", "GET", routes.window, openapi.WINDOW),
        ("/v1/users/{user_id}/interests", "GET", routes.interests, openapi.INTERESTS),
        ("/v1/users/{user_id}", "DELETE", routes.erase_user, openapi.ERASE_USER),
        ("/v1/recall", "POST", routes.recall_ad_hoc, openapi.RECALL_AD_HOC),
        ("/v1/recall:batch", "POST", routes.recall_batch, openapi.RECALL_BATCH),
        ("/v1/clicks", "POST", routes.post_clicks, openapi.POST_CLICKS),
        ("/v1/items/{item_id}/neighbors", "GET", routes.neighbors, openapi.NEIGHBORS),
        ("/v1/items/{item_id}", "PUT", routes.put_item, openapi.PUT_ITEM),
        ("/v1/items/{item_id}", "DELETE", routes.delete_item, openapi.DELETE_ITEM),
        ("/v1/status", "GET", routes.status, openapi.STATUS),
        ("/health/live", "GET", routes.live, openapi.LIVE),
        ("/health/ready", "GET", routes.ready, openapi.READY),
        ("/metrics", "GET", routes.metrics, openapi.METRICS),
    ):
        app.add_api_route(path, handler, methods=[method], response_class=Response, **openapi.described(described))
    app.router.routes.extend(page_routes())
    app.add_middleware(Gate, settings=service.settings)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _failed)
    return app


class Routes:
    """One method a route; all on the event loop.

    None waits for anything but Kafka's acknowledgement, the list of one's own click, and the thread of `Spot`.
    """

    def __init__(self, service: QueryService) -> None:
        self._service = service
        self._settings = service.settings
        self._metrics: tuple[float, bytes, str] = (float("-inf"), b"", "")
        self._answered = {source: metrics.ANSWERS.labels(source) for source in metrics.ANSWER_SOURCES}

    async def recall(self, request: Request) -> Response:
        """Answer one user's list."""
        user_id = _path_id(request, "user_id")
        query = queries.read_query(request.scope["query_string"], self._settings)
        if query.min_offset is not None or query.is_filtered or query.explain_without:
            answer = await self._work_out(user_id, query)
        else:
            answer = self._answer(user_id, query)
        self._answered[answer.source].inc()
        return json_response(encode_answer(answer))

    async def recall_ad_hoc(self, request: Request) -> Response:
        """Answer the list of clicks that are in the body and in no log."""
        asked = read_ad_hoc(await intake.read_body(request, self._settings), self._settings)
        answer = await workout.answer_ad_hoc(asked, self._service.spot, catalog=self._service.catalog, now_ms=wall_ms())
        self._answered[answer.source].inc()
        return json_response(encode_answer(answer))

    async def neighbors(self, request: Request) -> Response:
        """Answer the items nearest to one."""
        item_id = _path_id(request, "item_id")
        limit = queries.read_limit(request.scope["query_string"], self._settings)
        return json_response(
            await workout.find_neighbors(item_id, limit, self._service.spot, catalog=self._service.catalog)
        )

    async def window(self, request: Request) -> Response:
        """Answer the clicks that a user's list was made of."""
        user_id, (held, window, _) = self._held(request)
        return json_response({"user_id": user_id, "window": window, **_stamps(held)})

    async def interests(self, request: Request) -> Response:
        """Answer the interests of a user's list."""
        user_id, (held, _, interests) = self._held(request)
        return json_response({"user_id": user_id, "interests": interests, **_stamps(held)})

    async def recall_batch(self, request: Request) -> Response:
        """Answer the lists of many users, in the order asked for; all of them or none."""
        body = await intake.read_body(request, self._settings)
        user_ids, query = queries.read_batch(body, self._settings)
        lists = [self._answer(user_id, query) for user_id in user_ids]
        for answer in lists:
            self._answered[answer.source].inc()
        return json_response(encode_answer({"lists": lists}))

    async def post_clicks(self, request: Request) -> Response:
        """Log clicks, and answer where once Kafka has all of them."""
        body = await intake.read_body(request, self._settings)
        messages = intake.read_clicks(body, self._settings, now_ms=wall_ms())
        positions = await self._service.publish(messages, what="clicks")
        return json_response([_place(position) for position in positions])

    async def put_item(self, request: Request) -> Response:
        """Log an item's fields, which replace what was known of it."""
        item_id = _path_id(request, "item_id")
        message = intake.read_item(await intake.read_body(request, self._settings), item_id, self._settings)
        [position] = await self._service.publish([message], what="item")
        return json_response({"item_id": item_id, **_place(position)})

    async def delete_item(self, request: Request) -> Response:
        """Log an item's removal."""
        item_id = _path_id(request, "item_id")
        [position] = await self._service.publish([intake.removal(item_id, self._settings)], what="removal")
        return json_response({"item_id": item_id, "removed": True, **_place(position)})

    async def erase_user(self, request: Request) -> Response:
        """Log that everything a user has clicked so far is to be forgotten."""
        user_id = _path_id(request, "user_id")
        queries.no_parameters(request.scope["query_string"])
        erasure = await self._service.erase(user_id)
        content = {"user_id": user_id, "partition": erasure.partition, "offset": erasure.offset}
        return json_response(content, status=202)

    async def status(self, request: Request) -> Response:
        """Answer the figures that the page draws."""
        return json_response(self._service.status())

    async def live(self, request: Request) -> Response:
        """Answer that the process runs."""
        return json_response({"status": "live"})

    async def ready(self, request: Request) -> Response:
        """Answer whether queries should be sent here, and which part is why not."""
        problems = self._service.problems()
        if problems:
            raise refusals.not_ready(problems)
        return json_response({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Answer the metrics, counted at most once a second, whatever the query says."""
        made_at, content, content_type = self._metrics
        if time.monotonic() - made_at > METRICS_KEPT_S:
            content, content_type = metrics.render()
            self._metrics = (time.monotonic(), content, content_type)
        return Response(content, headers=refusals.API_HEADERS | {"content-type": content_type})

    def _answer(self, user_id: str, query: RecallQuery) -> Answer:
        return answer_query(
            self._lists.get(user_id),
            query,
            user_id=user_id,
            snapshot=self._service.holder.current,
            catalog=self._service.catalog,
            now_ms=wall_ms(),
        )

    async def _work_out(self, user_id: str, query: RecallQuery) -> Answer:
        """Return an answer that takes waiting for a click, searching for what a filter leaves out, or a what-if."""
        service, reached = self._service, None
        if query.min_offset is not None:
            place = query.min_offset
            self._check_partition(user_id, place)
            reached = await service.arrivals.wait(
                user_id, lambda: self._window_offset(user_id) >= place.offset, wait_ms=query.wait_ms
            )
        stored = self._lists.get(user_id)
        answer = self._answer(user_id, query)
        snapshot, catalog = service.holder.current, service.catalog
        can_search = snapshot is not None and snapshot.model is not None
        if stored is not None and can_search and query.is_filtered and answers.is_cut_short(stored, query, catalog):
            answer = await workout.fill_short(answer, stored, query, service.spot, catalog=catalog, now_ms=wall_ms())
        if query.explain_without:
            answer.without = await workout.tell_without(user_id, stored, query, service.spot, catalog=catalog)
        answer.min_offset_reached = reached
        return answer

    @property
    def _lists(self) -> ListStore:
        lists = self._service.lists
        if lists is None:
            raise refusals.store_opening()
        return lists

    def _check_partition(self, user_id: str, place: Position) -> None:
        """Raise Refusal where *place* can't be that of one of the user's clicks."""
        epoch = self._service.clicks_epoch
        if epoch is not None and place.partition != (own := partition_of(user_id.encode(), epoch.partitions)):
            raise refusals.bad("min_offset", f"the place of a click of this user, whose partition is {own}")

    def _window_offset(self, user_id: str) -> int:
        """Return the offset that the user's list reflects; -1 without one, or where it counts in another log."""
        stored, epoch = self._lists.get(user_id), self._service.clicks_epoch
        held = None if stored is None else answers.decode_held(stored)
        return held.window_offset if held is not None and epoch is not None and held.epoch == epoch.text else -1

    def _held(self, request: Request) -> tuple[str, tuple[Held, list[dict[str, Any]], list[dict[str, Any]]]]:
        user_id = _path_id(request, "user_id")
        queries.no_parameters(request.scope["query_string"])
        return user_id, answers.explain_held(self._lists.get(user_id), self._service.catalog)


def _stamps(held: Held) -> dict[str, Any]:
    names = ("as_of_ms", "computed_at_ms", "window_offset", "activation", "epoch", "model_version")
    return {name: getattr(held, name) for name in names}


def _path_id(request: Request, name: str) -> str:
    return queries.read_id(queries.decode_component(request.path_params[name].encode()), name)


def _place(position: Position) -> dict[str, int]:
    return {"partition": position.partition, "offset": position.offset}


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return error.response()


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        methods: set[str] = set()
        for route in request.app.routes:
            if route.matches(request.scope)[0] is Match.PARTIAL:
                methods |= route.methods
        return refusals.wrong_method(", ".join(sorted(methods))).response()
    return refusals.no_route().response()


async def _gone(request: Request, error: Exception) -> Response:
    return refusals.bad("body", "sent to its end").response()


async def _failed(request: Request, error: Exception) -> Response:
    route = getattr(request.scope.get("route"), "path", "none")
    log.error("request_failed", route=route, error=type(error).__name__)
    return refusals.failed().response()
