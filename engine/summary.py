"""What one run of `mindstream up` measured: read from the parts' metrics, shown to a newcomer, written as a report.

Freshness comes from the query service, which sees each new list last: click accepted by the log -> list that a query
answers with, over the last minute. The backlog's drain is a figure of its own and not part of it.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import shlex
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.metrics import scrape
from engine.settings import PREFIX, Settings

OBSERVE_EVERY_S = 0.5
UNANSWERED = (OSError, ValueError, http.client.HTTPException)
"""What asking a part raises that is starting, has crashed, or crashes in the middle of its answer."""


@dataclass(slots=True)
class Measured:
    """Figures of one run; times are seconds, `*_at` are readings of the monotonic clock."""

    source: str
    simulated: bool
    live_rate: float = 20.0
    """Live clicks per second; so many are always on their way."""
    broker_ready_at: float = 0.0
    replayed: int = 0
    replayed_at: float | None = None
    live_sent: int = 0
    first_personal_list_s: float | None = None
    drained_s: float | None = None
    users: int = 0
    lists_personal: int = 0
    versions: list[str] = field(default_factory=list)
    freshness: dict[str, Any] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    engine: dict[str, float] = field(default_factory=dict)
    applied_by_dead_engines: float = 0.0

    def note_replayed(self, clicks: int) -> None:
        """Remember that the replay is over and how many clicks it sent."""
        self.replayed, self.replayed_at = clicks, time.monotonic()

    def note_freshness(self) -> None:
        """Keep the last minute's freshness, now that it is of live traffic alone."""
        self.freshness = dict(self.status.get("freshness", {}))

    def note_drained(self) -> None:
        """Remember when every user's list first stood on the first trained version."""
        self.drained_s = time.monotonic() - self.broker_ready_at

    @property
    def clicks_applied(self) -> int:
        """Clicks the engine has put into windows, crashed engines' included."""
        return int(self.applied_by_dead_engines + self.engine.get("applied", 0.0))

    @property
    def model(self) -> dict[str, Any]:
        """What the query service says of its model version; empty while it has none."""
        return self.status.get("model") or {}

    @property
    def is_applied(self) -> bool:
        """The engine has its partitions and has caught up with the log; one that just started says nothing yet."""
        return self.engine.get("owned", 0.0) > 0 and self.engine.get("lag", 1.0) <= max(50.0, self.live_rate)

    @property
    def has_trained_version(self) -> bool:
        """The query service holds a version with a model in it, and lists made by it."""
        return self.model.get("version", "0000") != "0000" and self.lists_personal > 0

    @property
    def has_applied_everything(self) -> bool:
        """No click is left to apply, and none to put into a list."""
        return self.is_applied and self.engine["lag"] == 0 and self.engine["dirty"] == 0

    @property
    def is_drained(self) -> bool:
        """Every list stands on the current version, and no user waits but those of the last second."""
        waiting = self.engine.get("dirty", 1e9)
        return self.is_applied and self.engine["on_current"] >= 0.99 and waiting <= max(20.0, self.live_rate)

    def take_engine(self, figures: dict[str, float]) -> None:
        """Take a scrape of the engine; a counter that went back belongs to a new process."""
        if figures["applied"] < self.engine.get("applied", 0.0):
            self.applied_by_dead_engines += self.engine["applied"]
        self.engine = figures


async def observe(settings: Settings, measured: Measured) -> None:
    """Keep *measured* up to date until cancelled; parts that don't answer yet are asked again."""
    while True:
        await asyncio.to_thread(_observe_once, settings, measured)
        await asyncio.sleep(OBSERVE_EVERY_S)


def _observe_once(settings: Settings, measured: Measured) -> None:
    try:
        values = scrape(f"http://{settings.metrics_host}:{settings.engine_metrics_port}/metrics")
        measured.take_engine(
            {
                "applied": values.get('mindstream_clicks_total{outcome="applied"}', 0.0),
                "rejected": values.get('mindstream_clicks_total{outcome="rejected"}', 0.0),
                "owned": values.get("mindstream_owned_partitions", 0.0),
                "lag": values.get("mindstream_consumer_lag", 1e9),
                "dirty": values.get("mindstream_dirty_users", 1e9),
                "on_current": values.get("mindstream_lists_on_current_version_ratio", 0.0),
            }
        )
    except UNANSWERED:
        pass
    try:
        measured.status = ask(settings, "/v1/status")
    except UNANSWERED:
        return
    measured.lists_personal = int(measured.status["lists"]["held"])
    version = measured.model.get("version")
    if version is not None and version not in measured.versions:
        measured.versions.append(version)
    if measured.first_personal_list_s is None and measured.lists_personal:
        measured.first_personal_list_s = time.monotonic() - measured.broker_ready_at


def ask(settings: Settings, path: str) -> dict[str, Any]:
    """Return the query service's JSON answer to GET *path*.

    Raises:
        OSError: it does not answer, or with an error.
        HTTPException: it broke off in the middle of its answer.
    """
    request = urllib.request.Request(service_address(settings) + path)
    if settings.api_token is not None:
        request.add_header("Authorization", f"Bearer {settings.api_token.get_secret_value()}")
    with urllib.request.urlopen(request, timeout=5) as answer:
        loaded: dict[str, Any] = json.loads(answer.read())
        return loaded


def service_address(settings: Settings) -> str:
    """Return the address of the query service as a person on this machine would type it."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.serve_host, settings.serve_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.serve_port}"


def write_report(measured: Measured, path: Path) -> None:
    """Write the figures of the run as JSON, atomically."""
    temporary = path.with_suffix(path.suffix + ".part")
    temporary.write_text(json.dumps(report(measured), indent=2) + "\n")
    temporary.replace(path)


def report(measured: Measured) -> dict[str, Any]:
    """Return what `--report` writes; the names are a contract."""
    freshness = measured.freshness
    metrics = measured.model.get("metrics", {})
    return {
        "source": measured.source,
        "simulated": measured.simulated,
        "clicks_sent": measured.replayed + measured.live_sent,
        "clicks_applied": measured.clicks_applied,
        "clicks_rejected": int(measured.engine.get("rejected", 0)),
        "users": measured.users,
        "lists_personal": measured.lists_personal,
        "first_personal_list_s": _rounded(measured.first_personal_list_s),
        "backlog_drained_s": _rounded(measured.drained_s),
        "versions": measured.versions,
        "click_to_visible_p50_s": _in_seconds(freshness.get("p50_ms")),
        "click_to_visible_p99_s": _in_seconds(freshness.get("p99_ms")),
        "click_to_visible_count": freshness.get("count"),
        "recall_at_50": metrics.get("recall_at_50"),
        "recall_at_50_standard_error": metrics.get("standard_error"),
        "popular_recall_at_50": metrics.get("popular_recall_at_50"),
        "itemcf_recall_at_50": metrics.get("itemcf_recall_at_50"),
    }


def show_summary(console: Console, settings: Settings, measured: Measured) -> None:
    """Print what a newcomer wants to see after the replay: figures, the page, and what to try."""
    figures = report(measured)
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_row("clicks sent / applied", f"{figures['clicks_sent']:,} / {figures['clicks_applied']:,}")
    table.add_row("users with a personal list", f"{figures['lists_personal']:,}")
    table.add_row("first personal list", f"{_seconds(figures['first_personal_list_s'])} after the broker was ready")
    table.add_row("backlog drained", f"{_seconds(figures['backlog_drained_s'])} after the broker was ready")
    table.add_row("model version", str(measured.model.get("version", "-")))
    table.add_row("Recall@50 on later clicks", _recall_line(figures))
    table.add_row(
        "click -> fresh list, live",
        f"p50 {_milliseconds(figures['click_to_visible_p50_s'])}, p99 "
        f"{_milliseconds(figures['click_to_visible_p99_s'])} ({figures['click_to_visible_count'] or 0} lists)",
    )
    console.print(table, highlight=False)
    console.print(f"Page: [bold]{service_address(settings)}/[/bold]", highlight=False)
    console.print("Try:", highlight=False)
    for line in _things_to_try(settings, measured):
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _things_to_try(settings: Settings, measured: Measured) -> list[str]:
    """Return commands for a shell, whatever characters the ids hold."""
    address, user = service_address(settings), next(iter(measured.status.get("recent_users", [])), "u1")
    path = f"/v1/users/{urllib.parse.quote(user, safe='')}/recall"
    try:
        listed = ask(settings, f"{path}?limit=1")["items"]
    except UNANSWERED:
        listed = []
    click = json.dumps({"user_id": user, "item_id": listed[0]["item_id"] if listed else "i1"})
    curl = "curl" if settings.api_token is None else f'curl -H "Authorization: Bearer ${PREFIX}API_TOKEN"'
    return [
        f"{curl} '{address}{path}?limit=5'",
        f"{curl} -X POST {address}/v1/clicks -H 'content-type: application/json' -d {shlex.quote(click)}",
        f"{curl} '{address}{path}?limit=5&explain=true'",
    ]


def _recall_line(figures: dict[str, Any]) -> str:
    if figures["recall_at_50"] is None:
        return "-"
    return (
        f"{figures['recall_at_50']:.4f} ± {figures['recall_at_50_standard_error'] or 0:.4f} "
        f"(popular {figures['popular_recall_at_50']:.4f}, item-CF {figures['itemcf_recall_at_50']:.4f})"
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def _in_seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f} ms"
