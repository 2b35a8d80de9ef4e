"""Lists a second in the steady stream, one new click a user at a time, against lists made the plain way.

Users with a window each click 20 times in turn; after each click all of them are refreshed in micro-batches: windows to
interests, interests to lists. **Ours** is the engine's own model and recaller with its shipped settings and lists of
100, over the index that `auto` chooses when a version is loaded, the calibrated graph, exact search or exact search in
half precision: only interests that moved search, the others score again what they found; sampled lists are also made
exactly, in the time measured.
**Plain** is `plain_recall.py` over the same graph, with the narrowest search that reaches .98.
Recall is the share of an exact list's items, by the same rules, that a list holds; it is given for the worst step.

Without `--data` the shop is synthetic: clustered items, users with a few clusters each, a model that is not trained.
With it, `mindstream evaluate`'s reader takes sessions or users from there, and the `recommended` preset is trained on
them first. The curve is over the bound, the share of its length that an interest may move without a new search.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plain_recall import PlainRecall
from report import at_least, conclude, machine

from engine.ann import ItemIndex
from engine.ann.calibration import choose
from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.live import with_room
from engine.ann.memory import keep_large_pieces_apart
from engine.catalog import Catalog
from engine.model import InterestModel, Interests, MindConfig, UserInput, Vocabulary
from engine.model.network import MindNetwork
from engine.recaller import Recaller, Wishes
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.snapshot import PopularLists, ServingSnapshot, canary_interests
from engine.streams.garbage import seldom_collect_garbage

STEPS, LIST, BATCH = 20, 100, 256
TURNS = 5
"""Times that both ways make the lists in turns, with the shipped bound, so that a busy moment hits both alike."""
DIMENSIONS, INTERESTS, WINDOW = 64, 4, 50
RECALL = 0.98
TIMES_PLAIN = {"clustered": 4.0, "data": 4.0, "million": 3.0}
BOUNDS = (0.0, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5)
WIDTHS = (100, 150, 200, 300, 400, 600, 800)
"""Candidates that the plain way may look at, narrowest first."""


@dataclass(frozen=True)
class Shop:
    """A model, and windows step by step: `windows[step][user]` are item ids, oldest first."""

    model: InterestModel
    windows: Sequence[Sequence[Sequence[str]]]


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    seldom_collect_garbage()  # as an engine does, both
    keep_large_pieces_apart()
    figures: dict[str, Any] = {"machine": described(arguments.threads), "runs": {}}
    runs = figures["runs"]
    print(f"refresh ({figures['machine']}), lists of {LIST}, {arguments.users} users, {arguments.steps} clicks each")
    asked = {"users": arguments.users, "steps": arguments.steps, "window": arguments.window}
    runs["clustered"] = measure("clustered", synthetic(arguments.items, **asked), arguments)
    if arguments.data:
        runs["data"] = measure("data", trained(arguments), arguments)
    if arguments.million:
        runs["million"] = measure("million", synthetic(1_000_000, **asked), arguments)
    figures["checks"] = [check for name, run in runs.items() for check in checks_of(name, run)]
    if arguments.plot:
        draw(arguments.plot, runs)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10,000 items, 256 users, 6 clicks each, two bounds")
    parser.add_argument("--items", type=int, help="of the synthetic shop; 100,000 by default")
    parser.add_argument(
        "--window", type=int, default=WINDOW, help="clicks in a window at the end; shorter ones move more"
    )
    parser.add_argument("--users", type=int, help="refreshed after each click; 512 by default")
    parser.add_argument("--data", type=Path, help="real users or sessions, as `mindstream evaluate --data` takes them")
    parser.add_argument("--train-seconds", type=float, default=600.0, help="the most that training on them takes")
    parser.add_argument("--million", action="store_true", help="a synthetic shop of a million items too; some minutes")
    parser.add_argument("--threads", type=int, default=1, help="of torch and hnswlib, on both sides")
    parser.add_argument("--directory", type=Path, help="where graphs lie meanwhile; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--plot", type=Path, help="draw the curves over the bound, in PNG")
    arguments = parser.parse_args()
    arguments.items = arguments.items or (10_000 if arguments.quick else 100_000)
    arguments.users = arguments.users or (256 if arguments.quick else 512)
    arguments.steps = 6 if arguments.quick else STEPS
    arguments.bounds = (0.0, Settings().pool_bound) if arguments.quick else BOUNDS
    return arguments


def described(threads: int) -> str:
    """Return the machine, and what both sides run with."""
    return machine(f"torch {torch.__version__}", f"{threads} thread{'s' if threads > 1 else ''} on both sides")


# --- shops


def synthetic(items: int, *, users: int, steps: int, window: int = WINDOW) -> Shop:
    """Return users of three to five clusters each, who click within one of them at a time."""
    print(f"clustered: {items:,} items", flush=True)
    rng = np.random.default_rng(20_261_128)
    clusters = max(50, items // 250)
    centers = rng.normal(size=(clusters, DIMENSIONS))
    cluster_of = rng.integers(clusters, size=items)
    vectors = centers[cluster_of] + 0.7 * rng.normal(size=(items, DIMENSIONS))
    vectors *= rng.uniform(0.8, 1.6, size=(items, 1)) / np.linalg.norm(vectors, axis=1, keepdims=True)
    members = np.argsort(cluster_of, kind="stable")
    starts = np.searchsorted(cluster_of[members], np.arange(clusters + 1))
    ids = [f"i{row:07d}" for row in range(items)]
    sequences = []
    for _ in range(users):
        favorites = rng.integers(clusters, size=rng.integers(3, 6))
        chosen = rng.choice(favorites, p=rng.dirichlet(np.full(len(favorites), 2.0)), size=window)
        rows = [members[rng.integers(starts[one], max(starts[one + 1], starts[one] + 1))] for one in chosen.tolist()]
        sequences.append([ids[row] for row in rows])
    return Shop(untrained(ids, vectors.astype(np.float32)), in_steps(sequences, steps))


def untrained(ids: Sequence[str], vectors: np.ndarray) -> InterestModel:
    """Return a model of the default config whose items have these vectors."""
    torch.manual_seed(7)
    vocabulary = Vocabulary.build(ids, {}, [])
    config = MindConfig(dimensions=DIMENSIONS, hidden=(DIMENSIONS,), interests=INTERESTS)
    rows = torch.zeros(len(ids) + 1, len(vocabulary.item_fields), dtype=torch.int64)
    network = MindNetwork(config, vocabulary, rows)
    with torch.no_grad():
        network.item_ids.weight[1:] = torch.from_numpy(vectors)
    return InterestModel(network, vocabulary)


def trained(arguments: argparse.Namespace) -> Shop:
    """Return the users of the data with the longest histories, and a model trained on everybody's."""
    from trainer.offline.neural import train_method
    from trainer.offline.readers import read_sequences
    from trainer.offline.splits import FITTING, split_sequences
    from trainer.presets import recommended

    sequences = read_sequences(arguments.data)
    made = split_sequences(sequences, FITTING[sequences.kind][0])
    config, options = recommended(sessions=made.of_sessions)
    config = replace(config, dimensions=DIMENSIONS, hidden=(DIMENSIONS,), interests=INTERESTS)
    options = replace(options, max_seconds=arguments.train_seconds)
    print(f"data: {made.item_count:,} items of {arguments.data.name}, training ...", flush=True)
    model = train_method(made, made.final_train, config, options, name="recommended").model
    torch.set_num_threads(arguments.threads)  # training has its own
    known = model.vocabulary.item_rows
    histories = [
        [item_id for row in sequences.sequence(user).tolist() if (item_id := sequences.item_ids[row - 1]) in known]
        for user in np.flatnonzero(np.diff(sequences.starts) >= arguments.steps + 4).tolist()
    ]
    long = [history[-arguments.window :] for history in histories if len(history) >= arguments.steps + 4]
    return Shop(model, in_steps(long[-arguments.users :], arguments.steps))


def in_steps(sequences: Sequence[Sequence[str]], steps: int) -> list[list[Sequence[str]]]:
    """Return each user's window before the last *steps* clicks, and after each of them."""
    return [[sequence[: len(sequence) - steps + step] for sequence in sequences] for step in range(steps + 1)]


# --- measuring


def measure(name: str, shop: Shop, arguments: argparse.Namespace) -> dict[str, Any]:
    ids, vectors = shop.model.all_item_vectors()
    vectors = with_room(vectors)[: len(ids)]  # as an engine holds them
    began_s = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as folder:
        file = Path(folder) / "index.hnsw"
        HnswIndex.build(vectors, threads=os.cpu_count() or 1).save(file)
        graph = HnswIndex.load(file, vectors, threads=arguments.threads)
        plain_way = PlainRecall(
            file,
            items=len(ids),
            dimensions=DIMENSIONS,
            interests=INTERESTS,
            max_clicks=arguments.window,
            size=LIST,
            threads=arguments.threads,
        )
    settings = Settings(list_size=LIST, max_query_items=LIST)
    choice = choose(
        graph,
        ExactIndex(vectors),
        canary_interests("0001", shop.model, ids, vectors),
        k=max(settings.candidates, settings.index_ef),
        target=settings.recall_target,
        most=settings.index_ef_max,
    )
    print(
        f"  graph built, saved and loaded in {time.perf_counter() - began_s:.0f} s; calibrated to ef {choice.ef}, "
        f"as an engine does: {choice.graph_ms:.2f} ms a query, exact {choice.exact_ms:.2f}, in half precision "
        f"{'not tried' if choice.half_ms is None else f'{choice.half_ms:.2f}'}: {choice.backend}",
        flush=True,
    )
    interests = [shop.model.interests([UserInput(window) for window in windows]) for windows in shop.windows]
    rows_of = {item_id: row for row, item_id in enumerate(ids)}
    rows = [[[rows_of[item_id] for item_id in window] for window in windows] for windows in shop.windows]
    exact = exact_lists(shop, ids, vectors, interests)
    plain = best_plain(plain_way, vectors, interests, rows)
    curve = [ours(shop, ids, choice.index, exact, bound=bound) for bound in arguments.bounds]
    shipped = next(point for point in curve if point["bound"] == Settings().pool_bound)
    shipped["lists_per_s"], plain["lists_per_s"] = in_turns(
        lambda: ours(shop, ids, choice.index, exact, bound=shipped["bound"])["lists_per_s"],
        lambda: plain_lists(plain_way, interests, rows)[0],
    )
    moved = movement(interests)
    print(
        f"  an interest moved by {moved['p25']:.2f} / {moved['p50']:.2f} / {moved['p75']:.2f} of its length (quartiles)"
    )
    return {
        "items": len(ids),
        "users": len(shop.windows[0]),
        "moved": moved,
        "ef": choice.ef,
        "backend": choice.backend,
        "plain": plain,
        "ours": shipped,
        "curve": curve,
        "ratio": shipped["lists_per_s"] / plain["lists_per_s"],
    }


def in_turns(*ways: Callable[[], float]) -> list[float]:
    """Return the median answer of each of *ways*, asked one after the other `TURNS` times."""
    turns = [[way() for way in ways] for _ in range(TURNS)]
    return [statistics.median(each) for each in zip(*turns, strict=True)]


def movement(interests: Sequence[Interests]) -> dict[str, float]:
    """Return how far interests moved with one click, as shares of their length."""
    shares: list[np.ndarray] = []
    for before, after in itertools.pairwise(interests):
        both = before.mask & after.mask
        steps = np.linalg.norm(after.vectors - before.vectors, axis=2)[both]
        shares.append(steps / np.linalg.norm(after.vectors, axis=2)[both])
    found = np.percentile(np.concatenate(shares), [25, 50, 75, 90])
    return dict(zip(("p25", "p50", "p75", "p90"), found.tolist(), strict=True))


def recaller(shop: Shop, index: Any, ids: Sequence[str], *, keeps_pools: bool, **changed: Any) -> Recaller:
    settings = Settings(list_size=LIST, max_query_items=LIST, **changed)
    snapshot = ServingSnapshot("0001", 0, 0, shop.model, index, ids, PopularLists())
    served = ServedItems(settings, snapshot, Catalog(settings))
    return Recaller(settings, served, interests=INTERESTS, keeps_pools=keeps_pools)


def exact_lists(
    shop: Shop, ids: Sequence[str], vectors: np.ndarray, interests: Sequence[Interests]
) -> list[list[set[str]]]:
    """Return the item ids of every list by exact search, step by step."""
    exact = recaller(shop, ExactIndex(vectors), ids, keeps_pools=False, index_backend="exact")
    users = [str(user) for user in range(len(shop.windows[0]))]
    return [
        [{item.item_id for item in made} for made in exact.recall(users, found, [Wishes(set(one)) for one in windows])]
        for found, windows in zip(interests, shop.windows, strict=True)
    ]


def ours(
    shop: Shop, ids: Sequence[str], index: ItemIndex, exact: list[list[set[str]]], *, bound: float
) -> dict[str, Any]:
    engine = recaller(shop, index, ids, keeps_pools=True, pool_bound=bound)
    users = [str(user) for user in range(len(shop.windows[0]))]
    seconds, searched, in_use, recalls = 0.0, 0, 0, []
    for step, windows in enumerate(shop.windows):
        lists = []
        for start in range(0, len(users), BATCH):
            part = slice(start, start + BATCH)
            began_s = time.perf_counter()
            found = shop.model.interests([UserInput(window) for window in windows[part]])
            lists += engine.recall(users[part], found, [Wishes(set(window)) for window in windows[part]])
            if step:
                seconds += time.perf_counter() - began_s
                searched += engine.searched
                in_use += int(found.mask.sum())
        if step:
            recalls.append(recall([{item.item_id for item in made} for made in lists], exact[step]))
    point = {
        "bound": bound,
        "lists_per_s": len(users) * (len(shop.windows) - 1) / seconds,
        "searched": searched / in_use,
        "worst_recall": min(recalls),
        "mean_recall": float(np.mean(recalls)),
    }
    print(
        f"  ours, bound {bound:.2f}: {point['lists_per_s']:,.0f} lists/s, {point['searched']:.0%} of the interests "
        f"searched, recall {point['mean_recall']:.4f}, in the worst step {point['worst_recall']:.4f}",
        flush=True,
    )
    return point


def best_plain(
    plain: PlainRecall, vectors: np.ndarray, interests: Sequence[Interests], rows: list[list[list[int]]]
) -> dict[str, Any]:
    """Return the plain way's figures with the narrowest search that reaches the recall."""
    some = plain_steps(rows)
    exact = {step: plain_exact(vectors, interests[step], rows[step]) for step in some}
    for ef in WIDTHS:
        plain.look_at(ef)
        lists_per_s, lists = plain_lists(plain, interests, rows)
        worst = min(recall([{row for row, _ in made} for made in lists[step]], exact[step]) for step in some)
        if worst >= RECALL:
            break
    print(f"  plain, ef {ef}: {lists_per_s:,.0f} lists/s, recall in the worst step {worst:.4f}", flush=True)
    return {"ef": ef, "lists_per_s": lists_per_s, "worst_recall": worst}


def plain_steps(rows: list[list[list[int]]]) -> range:
    """Return the steps that the plain way, to which all are alike, is measured with."""
    return range(1, len(rows), 4)


def plain_lists(
    plain: PlainRecall, interests: Sequence[Interests], rows: list[list[list[int]]]
) -> tuple[float, dict[int, list[list[tuple[int, float]]]]]:
    """Return lists a second, and the lists of some steps."""
    seconds, made = 0.0, dict[int, list[list[tuple[int, float]]]]()
    for step in plain_steps(rows):
        made[step] = []
        for start in range(0, len(rows[step]), BATCH):
            part = slice(start, start + BATCH)
            found, windows = interests[step], rows[step][part]
            began_s = time.perf_counter()
            plain.route(windows)
            made[step] += plain.search(found.vectors[part], found.mask[part], [set(window) for window in windows])
            seconds += time.perf_counter() - began_s
    return len(rows[0]) * len(made) / seconds, made


def plain_exact(vectors: np.ndarray, found: Interests, windows: Sequence[Sequence[int]]) -> list[set[int]]:
    lists = []
    for own, used, window in zip(found.vectors, found.mask, windows, strict=True):
        scores = (own[used] @ vectors.T).max(axis=0)
        scores[window] = -np.inf
        lists.append(set(np.argpartition(-scores, LIST)[:LIST].tolist()))
    return lists


def recall(lists: Sequence[set[Any]], exact: Sequence[set[Any]]) -> float:
    return float(np.mean([len(made & true) / len(true) for made, true in zip(lists, exact, strict=True)]))


def checks_of(name: str, run: dict[str, Any]) -> list[dict[str, Any]]:
    ratio, worst = run["ratio"], run["ours"]["worst_recall"]
    print(f"{name}: ours over plain {ratio:.2f}, medians of {TURNS} turns")
    return [
        at_least(f"lists a second over plain, {name}", ratio, TIMES_PLAIN[name]),
        at_least(f"recall in the worst step, {name}", worst, RECALL),
    ]


def draw(path: Path, runs: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    sheet = Figure(figsize=(9.0, 3.6), layout="constrained")
    speed, held = sheet.subplots(1, 2)
    for name, run in runs.items():
        shares = [point["searched"] for point in run["curve"]]
        speed.plot(
            shares, [point["lists_per_s"] / run["plain"]["lists_per_s"] for point in run["curve"]], "o-", label=name
        )
        held.plot(shares, [point["worst_recall"] for point in run["curve"]], "o-", label=name)
    for axes, title in ((speed, "lists a second, times the plain way"), (held, "recall in the worst step")):
        axes.set_xlabel("share of interests that searched")
        axes.set_title(title)
        axes.legend()
    held.axhline(RECALL, color="gray", linewidth=0.8)
    sheet.savefig(path, dpi=100)
    print(f"plot: {path}")


if __name__ == "__main__":
    sys.exit(main())
