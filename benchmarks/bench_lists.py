"""What a longer list costs: time to make and encode one, its bytes, and what of it the log and a query service keep.

Users with windows of 50 click once more, as in `bench_refresh.py`, and every list is made by the engine's own recaller
and encoded as it goes into `recall-lists`; the log compresses batches with zstd. Ratios are to a list of 200, the
default, in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cramjam
import torch
from bench_refresh import INTERESTS, Shop, described, synthetic

from engine.ann.hnsw import HnswIndex
from engine.catalog import Catalog
from engine.events import ClickEvent
from engine.model import UserInput
from engine.recall import RecallList, describe_window, encode_list, summarize_interests
from engine.recaller import Recaller, Wishes
from engine.served_items import ServedItems
from engine.settings import Settings
from engine.snapshot import PopularLists, ServingSnapshot
from engine.window import BehaviorWindow

SIZES, SHIPPED = (50, 100, 200, 500, 1_000), 200
TOGETHER = 64
"""Lists in one compressed batch."""
NOON_MS = 1_291_204_800_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--users", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8, help="clicks of each user")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shop = synthetic(arguments.items, users=arguments.users, steps=arguments.steps)
    ids, vectors = shop.model.all_item_vectors()
    graph = HnswIndex.build(vectors, threads=2)
    snapshot = ServingSnapshot("0001", 0, 0, shop.model, graph, ids, PopularLists())
    print(f"lists ({described(1)}), {arguments.items:,} items, {arguments.users} users")
    figures = {size: weigh(shop, snapshot, size) for size in SIZES}
    print(
        f"{'items':>8}{'us a list':>12}{'us to encode':>14}{'bytes':>10}{'zstd':>9}{'stored':>9}{'time':>7}{'zstd':>7}"
    )
    base = figures[SHIPPED]
    for size, found in figures.items():
        both_us, base_us = found["make_us"] + found["encode_us"], base["make_us"] + base["encode_us"]
        print(
            f"{size:8,}{found['make_us']:12.0f}{found['encode_us']:14.0f}{found['bytes']:10,.0f}{found['zstd']:9,.0f}"
            f"{found['stored']:9,.0f}{both_us / base_us:6.2f}x{found['zstd'] / base['zstd']:6.2f}x"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": described(1), "sizes": figures}, indent=2) + "\n")
    return 0


def weigh(shop: Shop, snapshot: ServingSnapshot, size: int) -> dict[str, float]:
    """Return microseconds to make and to encode a list of *size* items, its bytes, and its share of a zstd batch."""
    settings = Settings(list_size=size, max_query_items=min(size, 200))
    served = ServedItems(settings, snapshot, Catalog(settings))
    recaller = Recaller(settings, served, interests=INTERESTS, keeps_pools=True)
    users = [str(user) for user in range(len(shop.windows[0]))]
    made_s, encoded_s, encoded = 0.0, 0.0, list[bytes]()
    for step, windows in enumerate(shop.windows):
        began_s = time.perf_counter()
        found = shop.model.interests([UserInput(window) for window in windows])
        lists = recaller.recall(users, found, [Wishes(set(window)) for window in windows])
        made = time.perf_counter() - began_s
        summaries = summarize_interests(found.shares, found.routing_weights, found.mask, windows)
        whole = [
            RecallList(
                user_id=user,
                items=items,
                interests=summaries[at],
                window=describe_window(window_of(user, windows[at])),
                as_of_ms=NOON_MS,
                accepted_at_ms=NOON_MS,
                computed_at_ms=NOON_MS,
                activation=1,
                epoch="0" * 16,
                model_version="0001",
            )
            for at, (user, items) in enumerate(zip(users, lists, strict=True))
        ]
        began_s = time.perf_counter()
        encoded = [encode_list(one) for one in whole]
        if step:  # the first click of everybody searches with every interest
            made_s += made
            encoded_s += time.perf_counter() - began_s
    batches = [b"".join(encoded[start : start + TOGETHER]) for start in range(0, len(encoded), TOGETHER)]
    count = len(users) * (len(shop.windows) - 1)
    return {
        "make_us": made_s / count * 1e6,
        "encode_us": encoded_s / count * 1e6,
        "bytes": sum(map(len, encoded)) / len(encoded),
        "zstd": sum(len(bytes(cramjam.zstd.compress(batch))) for batch in batches) / len(encoded),
        "stored": sum(len(bytes(cramjam.lz4.compress_block(one))) for one in encoded) / len(encoded),
    }


def window_of(user: str, item_ids: Sequence[str]) -> BehaviorWindow:
    times = range(NOON_MS, NOON_MS + 60_000 * len(item_ids), 60_000)
    clicks = [
        ClickEvent(user_id=user, item_id=item, clicked_at_ms=at) for item, at in zip(item_ids, times, strict=True)
    ]
    return BehaviorWindow(tuple(clicks))


if __name__ == "__main__":
    sys.exit(main())
