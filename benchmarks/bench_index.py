"""The item index at rest and at work: searches a second, and a catalog that changes under the searches.

**At rest**: queries a second and recall of the graph and of exact search, and of the live index over the graph with
changes beside it, against one plain numpy product and sort over the same vectors.

**Live**: the engine's own catalog, items and live index, a thread that applies item events (new, changed, removed,
unavailable and back) and one that searches. Each second some answers are compared with exact search over the items of
that moment. Removed items must be in no answer of a search that began after they were applied.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import at_least, at_most, conclude, machine

from engine.ann.calibration import choose
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import Vectors
from engine.ann.live import LiveIndex
from engine.catalog import Catalog
from engine.events import ItemEvent, encode_item
from engine.log import Record
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.features import ItemInput
from engine.model.network import MindNetwork
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.snapshot import PopularLists, ServingSnapshot

DIMENSIONS, INTERESTS, TOP = 64, 4, 100
UPSERTS_PER_S, SEARCHES_PER_S = 1_000, 200
EVENTS_AT_ONCE, MOST_AT_ONCE, USERS_A_COMPARISON = 50, 64, 40
RECALL, REST_RECALL = 0.97, 0.98
WIDER = (300, 400, 600, 800, 1_000)
CATEGORY_ITEMS = 200


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    words = machine("one thread searches")
    print(f"index ({words}), top {TOP} of D = {DIMENSIONS}")
    figures: dict[str, Any] = {"machine": words, "rest": rest(arguments)}
    figures["live"] = live(arguments)
    figures["checks"] = checks_of(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the live run; the bar is ten minutes")
    parser.add_argument("--users-per-s", type=int, default=100, help="who search in the live run, by K = 4 interests")
    parser.add_argument("--queries", type=int, default=512, help="of each search at rest")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args()


# --- items


def described(items: int) -> dict[str, ItemInput]:
    """Return items of many categories and fewer brands."""
    rng = random.Random(20_261_128)
    categories = max(10, items // CATEGORY_ITEMS)
    return {
        f"i{at:07d}": ItemInput(
            f"i{at:07d}", category=f"c{rng.randrange(categories)}", brand=f"b{rng.randrange(categories // 5)}"
        )
        for at in range(items)
    }


def make_model(items: dict[str, ItemInput]) -> InterestModel:
    """Return an untrained model: an item lies near those of its category and brand."""
    torch.manual_seed(7)
    vocabulary = Vocabulary.build(list(items), items, [])
    rows = torch.tensor([vocabulary.field_rows(None), *(vocabulary.field_rows(item) for item in items.values())])
    config = MindConfig(dimensions=DIMENSIONS, hidden=(DIMENSIONS,), interests=INTERESTS)
    network = MindNetwork(config, vocabulary, rows)
    with torch.no_grad():
        network.item_ids.weight *= 0.5
    return InterestModel(network, vocabulary)


def clustered(items: int, dimensions: int = DIMENSIONS) -> Vectors:
    """Return (N, D) vectors in clusters, of different lengths."""
    rng = np.random.default_rng(7)
    centers = rng.normal(size=(max(10, items // CATEGORY_ITEMS), dimensions))
    vectors = centers[rng.integers(len(centers), size=items)] + 0.7 * rng.normal(size=(items, dimensions))
    vectors *= rng.uniform(0.8, 1.6, size=(items, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


# --- at rest


def rest(arguments: argparse.Namespace) -> dict[str, Any]:
    vectors = clustered(arguments.items)
    rng = np.random.default_rng(8)
    queries = vectors[rng.integers(len(vectors), size=arguments.queries)]
    queries = (queries + 0.3 / np.sqrt(DIMENSIONS) * rng.normal(size=queries.shape)).astype(np.float32)
    truth, plain_per_s = timed(lambda: plain_search(vectors, queries), len(queries))
    began_s = time.perf_counter()
    graph = HnswIndex.build(vectors, threads=os.cpu_count() or 1)
    built_s = time.perf_counter() - began_s
    print(f"graph of {len(vectors):,} items built in {built_s:.0f} s; plain numpy: {plain_per_s:,.0f} queries/s")
    print(f"{'':24}{'queries/s':>12}{'of plain':>10}{'recall':>9}")
    rows: dict[str, dict[str, float]] = {}

    def show(name: str, search: Callable[[], Sequence[Sequence[int]]], expected: Sequence[Sequence[int]]) -> None:
        found, per_s = timed(search, len(queries))
        rows[name] = {"per_s": per_s, "of_plain": per_s / plain_per_s, "recall": recall(found, expected)}
        print(f"{name:24}{per_s:12,.0f}{per_s / plain_per_s:10.2f}{rows[name]['recall']:9.4f}")

    show("graph", lambda: graph.search(queries, TOP)[0].tolist(), truth)
    for ef in WIDER:
        if rows["graph"]["recall"] >= REST_RECALL:
            break
        rows[f"graph, ef {graph.ef}"] = rows["graph"]
        graph.widen(ef)
        show("graph", lambda: graph.search(queries, TOP)[0].tolist(), truth)
    exact = ExactIndex(vectors)
    show("exact", lambda: exact.search(queries, TOP)[0].tolist(), truth)
    for changed in (1_000, 10_000):
        changed = min(changed, len(vectors) // 10)
        index = LiveIndex(graph, build=HnswIndex.build, rebuild_at=10**9)
        at = rng.choice(len(vectors), size=changed, replace=False)
        index.put(at, vectors[rng.permutation(at)])
        expected = plain_search(index.vectors, queries)
        show(f"live, {changed:,} changed", partial(rows_of, index, queries), expected)
    return {"items": len(vectors), "built_s": built_s, "plain_per_s": plain_per_s, "rows": rows}


def rows_of(index: LiveIndex, queries: Vectors) -> list[list[int]]:
    """Return the best rows of each query."""
    found: list[list[int]] = index.search(queries, TOP)[0].tolist()
    return found


def plain_search(vectors: Vectors, queries: Vectors) -> list[list[int]]:
    """Return the best rows of each query: one product and one sort, query by query."""
    found = []
    for query in queries:
        scores = vectors @ query
        best = np.argpartition(-scores, TOP)[:TOP]
        found.append(best[np.argsort(-scores[best])].tolist())
    return found


def timed(search: Callable[[], Any], queries: int) -> tuple[Any, float]:
    """Return what *search* found and its queries a second, the best of three."""
    best_s = float("inf")
    for _ in range(3):
        began_s = time.perf_counter()
        found = search()
        best_s = min(best_s, time.perf_counter() - began_s)
    return found, queries / best_s


def recall(found: Sequence[Sequence[int]], expected: Sequence[Sequence[int]]) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)]))


# --- live


@dataclass
class LiveRun:
    """What happened in a live run."""

    upserts: int = 0
    users: int = 0
    stale: int = 0
    """Removed items in answers that began after their removal was applied."""
    latencies_s: list[float] = field(default_factory=list)
    recalls: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def live(arguments: argparse.Namespace) -> dict[str, Any]:
    items = described(arguments.items)
    model = make_model(items)
    ids, vectors = model.all_item_vectors()
    settings = Settings(list_size=TOP, max_query_items=TOP)
    graph = HnswIndex.build(vectors, threads=os.cpu_count() or 1)
    catalog = Catalog(settings)
    changes = Changes(items, catalog)
    changes.tell([ItemEvent(item_id=one.item_id, category=one.category, brand=one.brand) for one in items.values()])
    around = vectors[:256] + 0.1 * np.random.default_rng(4).normal(size=(256, DIMENSIONS)).astype(np.float32)
    choice = choose(
        graph,
        ExactIndex(vectors),
        around,
        k=settings.index_ef,
        target=settings.recall_target,
        most=settings.index_ef_max,
    )
    served = ServedItems(settings, ServingSnapshot("0001", 0, 0, model, choice.index, ids, PopularLists()), catalog)
    served.catch_up()
    run, done = LiveRun(), threading.Event()
    writer = threading.Thread(target=changes.keep_coming, args=(run, done))
    writer.start()
    backend = f"a graph with ef {choice.ef}" if choice.index is graph else choice.backend
    print(
        f"live: {arguments.seconds:g} s, {UPSERTS_PER_S:,} item events/s beside {arguments.users_per_s} users/s who "
        f"search by {INTERESTS} interests, "
        f"auto chose {backend} ({choice.recall:.4f} at {choice.graph_ms:.2f} ms, exact {choice.exact_ms:.2f} ms)"
    )
    try:
        search_for(arguments, served, changes, run)
    finally:
        done.set()
        writer.join()
    worst = [float(np.mean(run.recalls[at : at + 50])) for at in range(0, len(run.recalls), 50)]
    p50, p99 = np.percentile(run.latencies_s, [50, 99])
    figures = {
        "seconds": arguments.seconds,
        "backend": backend,
        "upserts_per_s": run.upserts / arguments.seconds,
        "users_per_s": run.users / arguments.seconds,
        "items_at_the_end": served.index.size,
        "rebuilds": served.index.generation,
        "recall": float(np.mean(run.recalls)),
        "worst_recall": min(worst),
        "stale": run.stale,
        "p50_ms": float(p50 * 1e3),
        "p99_ms": float(p99 * 1e3),
        "failures": run.failures,
    }
    print(
        f"  {run.upserts:,} events ({figures['upserts_per_s']:,.0f}/s), {run.users:,} users searched "
        f"({figures['users_per_s']:.0f}/s), {figures['rebuilds']} rebuilds, {figures['items_at_the_end']:,} items\n"
        f"  recall {figures['recall']:.4f}, worst ten seconds {figures['worst_recall']:.4f}; removed items in answers: "
        f"{run.stale}; a user waited and took {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms"
    )
    return figures


class Changes:
    """Item events as a shop sends them, and what they leave behind."""

    def __init__(self, items: dict[str, ItemInput], catalog: Catalog) -> None:
        self._catalog, self._rng, self._loop = catalog, random.Random(3), asyncio.new_event_loop()
        self._ids = list(items)
        self._categories = max(10, len(items) // CATEGORY_ITEMS)
        self.removed: dict[str, float] = {}
        """When each item that is gone was applied as gone, by the clock of `perf_counter`."""

    def tell(self, events: Sequence[ItemEvent]) -> None:
        """Apply *events* to the catalog."""
        records = [Record("items", 0, 0, 0, one.item_id.encode(), encode_item(one), {}) for one in events]
        self._loop.run_until_complete(self._catalog.apply(records))

    def keep_coming(self, run: LiveRun, done: threading.Event) -> None:
        """Apply events at the rate of the run until *done*."""
        began_s = time.perf_counter()
        try:
            while not done.is_set():
                due = int((time.perf_counter() - began_s) * UPSERTS_PER_S)
                if due - run.upserts < EVENTS_AT_ONCE:
                    time.sleep(0.005)
                    continue
                events = [self._draw() for _ in range(EVENTS_AT_ONCE)]
                for one in events:
                    self.removed.pop(one.item_id, None)
                self.tell(events)
                gone = {one.item_id: one.removed for one in events}  # of an item told twice the last counts
                self.removed.update({item_id: time.perf_counter() for item_id, is_gone in gone.items() if is_gone})
                run.upserts += len(events)
        except BaseException as error:
            run.failures.append(f"{type(error).__name__}: {error}")

    def _draw(self) -> ItemEvent:
        draw, item_id = self._rng.random(), self._rng.choice(self._ids)
        category, brand = f"c{self._rng.randrange(self._categories)}", f"b{self._rng.randrange(self._categories // 5)}"
        if draw < 0.05:
            item_id = f"n{len(self._ids):07d}"
            self._ids.append(item_id)
        elif draw < 0.10:
            return ItemEvent(item_id=item_id, removed=True)
        return ItemEvent(item_id=item_id, category=category, brand=brand, available=draw > 0.15)


def search_for(arguments: argparse.Namespace, served: ServedItems, changes: Changes, run: LiveRun) -> None:
    """Search at the rate of the run for so long: all users who are due together, as a refresh loop does."""
    seconds, per_s = arguments.seconds, arguments.users_per_s
    rng = np.random.default_rng(5)
    began_s = time.perf_counter()
    said_s, compared = began_s, 0
    while (started_s := time.perf_counter()) - began_s < seconds and not run.failures:
        due = min(int((started_s - began_s) * per_s) - run.users, MOST_AT_ONCE)
        if due < 1:
            time.sleep(0.001)
            continue
        gone = [item_id for item_id, at_s in list(changes.removed.items()) if at_s < started_s]
        served.catch_up()
        index = served.index
        around = index.vectors[rng.integers(len(index.vectors), size=due * INTERESTS)]
        interests = (around + 0.1 * rng.normal(size=around.shape)).astype(np.float32)
        rows, _ = index.search(interests, TOP)
        ended_s = time.perf_counter()
        numbers = range(run.users, run.users + due)
        run.latencies_s += [ended_s - began_s - number / per_s for number in numbers]
        run.users += due
        if run.users // USERS_A_COMPARISON > compared:
            compared = run.users // USERS_A_COMPARISON
            run.recalls.append(recall_now(index, interests[:INTERESTS], rows[:INTERESTS]))
            found = {served.rows.item_ids[row] for row in np.unique(rows).tolist() if not served.unavailable[row]}
            run.stale += len(found & {item_id for item_id in gone if item_id in changes.removed})
        if ended_s - said_s > 60.0:
            said_s = ended_s
            print(
                f"  {said_s - began_s:4.0f} s: {run.upserts:,} events, {run.users:,} users, recall of the last "
                f"minute {np.mean(run.recalls[-300:]):.4f}, {index.delta_size:,} items beside the graph, "
                f"{index.generation} rebuilds",
                flush=True,
            )


def recall_now(index: LiveIndex, interests: Vectors, rows: Any) -> float:
    """Return the share of the exact answers that *rows* hold."""
    shares = []
    for interest, found in zip(interests, rows, strict=True):
        exact = set(index.search_exactly(interest[None], TOP)[0].tolist())
        shares.append(len(exact & set(found.tolist())) / len(exact))
    return float(np.mean(shares))


# --- checks


def checks_of(figures: dict[str, Any]) -> list[dict[str, Any]]:
    run = figures["live"]
    graph = figures["rest"]["rows"]["graph"]
    wanted = (
        ("recall of the graph at rest", graph["recall"], REST_RECALL, True),
        ("recall in the worst ten seconds of the live run", run["worst_recall"], RECALL, True),
        ("item events a second, share of those asked for", run["upserts_per_s"] / UPSERTS_PER_S, 0.95, True),
        ("searches a second", run["users_per_s"] * INTERESTS, SEARCHES_PER_S, True),
        ("removed items in answers, and failures", run["stale"] + len(run["failures"]), 0, False),
    )
    return [(at_least if is_least else at_most)(name, value, bar) for name, value, bar, is_least in wanted]


if __name__ == "__main__":
    sys.exit(main())
