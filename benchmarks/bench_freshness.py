"""Click to fresh list, as a client sees it: one fresh user a probe, against a running system.

Start one with `make up` in another terminal, then run this. Each probe posts one click of a user nobody has seen and
asks for that user's list until it is personal and reflects the click. The clock starts before the POST and stops
when the answer holds the click in its window and in an interest's clicks. The reference in the same run is the bare
round trip: the time of one query of that user's list.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import httpx
from report import at_most, conclude, machine

BARS = {"p50": 0.3, "p99": 1.0}
GIVE_UP_S = 20.0


def main() -> int:
    arguments = parse_arguments()
    with httpx.Client(base_url=arguments.address, headers=headers(arguments.token), timeout=10) as client:
        items = known_items(client)
        chosen = random.Random(7)
        run = uuid.uuid4().hex[:8]
        probes = [probe(client, f"probe-{run}-{number}", chosen.choice(items)) for number in range(arguments.probes)]
        bare = sorted(round_trip(client, f"probe-{run}-0") for _ in range(arguments.probes))
    figures = summarize(sorted(probes), bare)
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="http://127.0.0.1:8080", help="the query service of a running system")
    parser.add_argument("--token", help="its bearer token, where it demands one")
    parser.add_argument("--quick", action="store_true", help="20 probes in place of 200")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    arguments.probes = 20 if arguments.quick else 200
    return arguments


def headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def known_items(client: httpx.Client) -> list[str]:
    """Return items that the version in service knows: those of its popular list."""
    try:
        answer = client.get("/v1/users/nobody-yet/recall", params={"limit": 100}).raise_for_status().json()
    except httpx.HTTPError as error:
        sys.exit(
            f"no ready system at {client.base_url} ({error}); start one with `make up`, or name one with --address"
        )
    return [entry["item_id"] for entry in answer["items"]]


def probe(client: httpx.Client, user_id: str, item_id: str) -> float:
    """Return the seconds from sending one click to a list that reflects it."""
    clicked_at_ms = time.time_ns() // 1_000_000
    started = time.perf_counter()
    click = {"user_id": user_id, "item_id": item_id, "clicked_at_ms": clicked_at_ms}
    client.post("/v1/clicks", json=click).raise_for_status()
    while time.perf_counter() - started < GIVE_UP_S:
        answer = client.get(f"/v1/users/{user_id}/recall", params={"limit": 10, "explain": "true"}).json()
        if answer.get("source") == "personal" and reflects(answer, item_id, clicked_at_ms):
            return time.perf_counter() - started
        time.sleep(0.002)
    sys.exit(f"a click of {user_id} on {item_id} was not in its list within {GIVE_UP_S} s")


def reflects(answer: dict[str, Any], item_id: str, clicked_at_ms: int) -> bool:
    in_window = any(
        click["item_id"] == item_id and click["clicked_at_ms"] == clicked_at_ms for click in answer["window"]
    )
    forming = {click["item_id"] for interest in answer["interests"] for click in interest["clicks"]}
    return answer["as_of_ms"] >= clicked_at_ms and in_window and item_id in forming


def round_trip(client: httpx.Client, user_id: str) -> float:
    started = time.perf_counter()
    client.get(f"/v1/users/{user_id}/recall", params={"limit": 10, "explain": "true"}).raise_for_status()
    return time.perf_counter() - started


def summarize(probes: list[float], bare: list[float]) -> dict[str, Any]:
    p50, p99 = percentile(probes, 0.5), percentile(probes, 0.99)
    return {
        "machine": machine(),
        "probes": len(probes),
        "click_to_list_p50_s": p50,
        "click_to_list_p99_s": p99,
        "click_to_list_max_s": probes[-1],
        "bare_query_p50_s": percentile(bare, 0.5),
        "bare_query_p99_s": percentile(bare, 0.99),
        "ratio_to_bare_query_p50": p50 / percentile(bare, 0.5),
        "mean_s": statistics.fmean(probes),
        "checks": [
            at_most(f"click to list {name}, s", value, BARS[name]) for name, value in (("p50", p50), ("p99", p99))
        ],
    }


def percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(figures: dict[str, Any]) -> None:
    p50_ms, p99_ms = figures["click_to_list_p50_s"] * 1000, figures["click_to_list_p99_s"] * 1000
    print(
        f"freshness ({figures['machine']}): {figures['probes']} probes, p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms; "
        f"a bare query p50 {figures['bare_query_p50_s'] * 1000:.1f} ms (ratio {figures['ratio_to_bare_query_p50']:.0f})"
    )


if __name__ == "__main__":
    sys.exit(main())
