"""The classic MIND tutorial, from feature columns to the top N, without Kafka.

    python examples/tutorial.py                      the simulated shop, under a minute
    python examples/tutorial.py PATH                 ml-1m (gender, age, occupation, genres), Online Retail, or your own

Sparse, dense and variable-length features in; the user's interests and the items' vectors out, as two outputs; then
the top N by inner product, and how often a click that came later is among them. It reads from top to bottom.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np

from engine.events import ClickEvent, ItemEvent
from engine.model import InterestModel, ItemInput
from engine.model.feature_columns import DenseFeat, Fields, MindOptions, SparseFeat, VarLenSparseFeat, from_columns
from engine.simulate import SimulatedShop
from engine.sources import EventSource, open_source
from trainer.evaluate import split_by_time
from trainer.loop import Progress, train
from trainer.options import TrainOptions
from trainer.popular import popular_items
from trainer.samples import ClickLog, UserHistory, item_input

SIZE = 32
"""Length of item vectors and interests."""
MIDDLE_AGES = {"18-24": 21.0, "25-34": 29.5, "35-49": 42.0, "50-64": 57.0, "65+": 70.0}
"""The simulated shop knows bands; a dense feature wants a number."""


def main(arguments: Sequence[str] | None = None) -> float:
    """Run the tutorial and return the share of users whose list holds one of their later items."""
    options = parse(arguments)
    source = open_source(options.path) if options.path else SimulatedShop(7, items=1_500, users=1_000, clicks=40_000)
    log = read(source, most_clicks=options.clicks)
    print(f"1. {source.name}: {log.click_count} clicks of {len(log.histories)} users on {len(log.items)} items")

    fields = columns_of(log)
    print(f"2. profile {fields.profile}, item features {fields.item_features}, history {fields.history}")
    print(f"   {fields.config}")

    before, later = split_by_time(keep_fields(log, fields), 0.1)
    # Theirs, but for one thing: with one length for all interests, an item's own length can carry its popularity.
    config = replace(fields.config, normalize_interests=True)
    learning = TrainOptions(**fields.training, epochs=options.epochs, max_seconds=options.seconds, learning_rate=5e-3)
    print(f"3. training on {before.click_count} clicks, {later.click_count} later ones kept for the end")
    model = train(before, config, learning, tell)

    users = [history for history in before.histories if history.clicks]
    windows = [[click.item_id for click in history.clicks] for history in users]
    vectors, mask = model.user_vectors(windows, [history.profile for history in users])
    items = [item_input(item) for item in before.items.values()]
    candidates = model.item_vectors(items)
    in_use = mask.sum(axis=1).mean()
    print(f"4. user output {vectors.shape}, {in_use:.2f} interests in use; item output {candidates.shape}")

    found = top_items(vectors, mask, candidates, items, windows, count=options.top)
    show(model, users[0], found[0], before.items)
    ours, most, judged = judge(later, users, windows, found, popular_items(before).overall, top=options.top)
    hits = f"{ours:.1%}, the popular list for {most:.1%}"
    print(f"6. of {judged} users, the top {options.top} holds a later item for {hits}")
    return ours


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", nargs="?", type=Path, help="a data set; left out: the simulated shop")
    parser.add_argument("--top", type=int, default=50, help="N, items a list (50)")
    parser.add_argument("--clicks", type=int, default=200_000, help="the newest clicks to use (200000)")
    parser.add_argument("--epochs", type=float, default=3.0, help="passes over the clicks (3)")
    parser.add_argument("--seconds", type=float, default=40.0, help="most seconds of training (40)")
    return parser.parse_args(arguments)


def read(source: EventSource, *, most_clicks: int) -> ClickLog:
    """Return the newest clicks of *source* by user, and its catalog."""
    by_user: dict[str, list[ClickEvent]] = defaultdict(list)
    for click in list(source.clicks())[-most_clicks:]:
        by_user[click.user_id].append(click)
    histories = [UserHistory(user, clicks, dense_age(clicks[-1].profile or {})) for user, clicks in by_user.items()]
    clicked = {click.item_id for clicks in by_user.values() for click in clicks}
    catalog = {item.item_id: item for item in source.items() if item.item_id in clicked and not item.removed}
    return ClickLog(histories, catalog)


def dense_age(profile: Mapping[str, str | float]) -> dict[str, str | float]:
    """Return *profile* with the age as a number: the middle of a band, or the text's number."""
    found = dict(profile)
    band = found.pop("age_band", None) or found.pop("age", None)
    if band is not None:
        found["age"] = MIDDLE_AGES[str(band)] if str(band) in MIDDLE_AGES else float(band)
    return found


def columns_of(log: ClickLog) -> Fields:
    """Return what the feature columns of *log*, written as in DeepMatch's tutorial, come to here."""
    profiles = {name for history in log.histories for name in history.profile if name != "zip"}
    named = {name for item in log.items.values() for name in item.features}
    named |= {name for name in ("category", "brand", "shop") for item in log.items.values() if getattr(item, name)}
    user = [
        SparseFeat("user_id", len(log.histories) + 1, embedding_dim=16),
        *(DenseFeat(name) if name == "age" else SparseFeat(name, embedding_dim=16) for name in sorted(profiles)),
        VarLenSparseFeat(
            SparseFeat("hist_item_id", embedding_dim=SIZE, embedding_name="item_id"), 50, "mean", "length"
        ),
    ]
    item = [
        SparseFeat("item_id", len(log.items) + 1, embedding_dim=SIZE),
        *(SparseFeat(name, embedding_dim=SIZE) for name in sorted(named)),
    ]
    options = MindOptions(k_max=4, dynamic_k=True, p=10.0, num_sampled=512, user_dnn_hidden_units=(64, SIZE))
    return from_columns(user, item, options)


def keep_fields(log: ClickLog, fields: Fields) -> ClickLog:
    """Return *log* with the profile attributes and item features that *fields* names, and no others."""
    histories = []
    for history in log.histories:
        profile = {name: history.profile[name] for name in fields.profile if name in history.profile}
        # A log's profile is what its clicks say, so each click says it.
        clicks = [msgspec.structs.replace(click, profile=profile) for click in history.clicks]
        histories.append(UserHistory(history.user_id, clicks, profile))
    return ClickLog(histories, log.items)


def tell(progress: Progress) -> None:
    """Print where training stands, now and then."""
    if progress.step % 50 == 0 or progress.step == progress.steps:
        print(f"   step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, {progress.seconds:.0f} s")


def top_items(
    vectors: np.ndarray,
    mask: np.ndarray,
    candidates: np.ndarray,
    items: Sequence[ItemInput],
    windows: Sequence[Sequence[str]],
    *,
    count: int,
) -> list[list[str]]:
    """Return each user's best items outside the window: the greatest inner product with any interest in use."""
    place = {item.item_id: row for row, item in enumerate(items)}
    lists = []
    for interests, used, window in zip(vectors, mask, windows, strict=True):
        scores = (interests[used] @ candidates.T).max(axis=0)
        scores[[place[item] for item in window if item in place]] = -np.inf
        lists.append([items[row].item_id for row in np.argsort(-scores, kind="stable")[:count]])
    return lists


def show(model: InterestModel, user: UserHistory, found: Sequence[str], catalog: Mapping[str, ItemEvent]) -> None:
    """Print one user's newest clicks and first items."""

    def named(item_id: str) -> str:
        item = catalog.get(item_id)
        return f"{(item and item.title) or item_id} ({item.category if item else None})"

    print(f"5. user {user.user_id}, {user.profile}")
    print("   clicked     " + "; ".join(named(click.item_id) for click in user.clicks[-4:]))
    print("   recommended " + "; ".join(named(item) for item in found[:4]))


def judge(
    later: ClickLog,
    users: Sequence[UserHistory],
    windows: Sequence[Sequence[str]],
    lists: Sequence[Sequence[str]],
    popular: Sequence[str],
    *,
    top: int,
) -> tuple[float, float, int]:
    """Return the share of *lists*, and of popular ones, that hold a later item new to the user; and of how many."""
    clicked_later = {history.user_id: {click.item_id for click in history.clicks} for history in later.histories}
    hits: list[tuple[bool, bool]] = []
    for user, window, found in zip(users, windows, lists, strict=True):
        wanted = clicked_later[user.user_id] - set(window)
        if wanted:
            others = [item for item in popular if item not in window][:top]
            hits.append((bool(wanted & set(found)), bool(wanted & set(others))))
    ours, most = np.mean(hits, axis=0)
    return float(ours), float(most), len(hits)


if __name__ == "__main__":
    started = time.monotonic()
    main()
    print(f"done in {time.monotonic() - started:.0f} s")
