"""A user takes up a new interest: after how many clicks has it a vector of its own, and its items in the list?

    python examples/new_interest.py                      the simulated shop, a minute
    python examples/new_interest.py --plot new.png       and a plot
    python examples/new_interest.py --set interests=2    another model; any field of MindConfig or TrainOptions

The shop knows the true interests behind its clicks. The model is trained once; then a user's window is continued with
clicks on another user's main interest, one more at a time, and nothing is trained again. It reads from top to bottom.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from engine.events import ClickEvent
from engine.model import InterestModel, MindConfig, UserInput
from engine.simulate import SimulatedShop, coverage
from trainer.evaluate import split_by_time
from trainer.loop import train
from trainer.options import TrainOptions
from trainer.presets import overridden
from trainer.samples import ClickLog, UserHistory

MOST_CLICKS = 12
LISTED = 50
ENOUGH = 5
"""So many items of the new interest among the first 50 count as "in the list"."""


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Run the experiment; return the shares of users by number of new clicks, 0 to 12."""
    options = parse(arguments)
    shop = SimulatedShop(7, items=1_000, users=600, clicks=options.clicks)
    before, _later = split_by_time(read(shop), 0.1)
    preset = MindConfig(dimensions=32, max_clicks=30), TrainOptions(threads=1)
    config, learning = overridden(preset, options.overrides)
    print(f"1. training on {before.click_count} clicks of {len(before.histories)} users")
    model = train(before, config, learning)

    cases = [case for case in (take_up(shop, history) for history in before.histories[: options.users]) if case]
    print(f"2. {len(cases)} users take up an interest they never had")
    answers = [[ask(model, *case, count=count) for count in range(MOST_CLICKS + 1)] for case in cases]
    found = np.array(answers, dtype=float).mean(axis=0)  # (clicks, 2)
    shares = {"own_vector": found[:, 0].tolist(), "in_the_list": found[:, 1].tolist()}

    print(f"3. new clicks | share with a vector of its own | share with {ENOUGH} of {LISTED} items in the list")
    for count, (own, listed) in enumerate(found.tolist()):
        print(f"   {count:10} | {own:30.2f} | {listed:.2f}")
    if options.plot:
        draw(options.plot, shares, users=len(cases))
    return shares


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clicks", type=int, default=30_000, help="of the simulated shop")
    parser.add_argument("--users", type=int, default=300, help="how many are asked at most")
    parser.add_argument("--plot", type=Path, help="write a plot to this PNG; needs the extra `plots`")
    parser.add_argument("--set", dest="overrides", action="append", default=[], help="name=value; repeatable")
    return parser.parse_args(arguments)


def read(shop: SimulatedShop) -> ClickLog:
    """Return the clicks of *shop* by user, and its items."""
    by_user: dict[str, list[ClickEvent]] = defaultdict(list)
    for click in shop.clicks():
        by_user[click.user_id].append(click)
    histories = [UserHistory(user, clicks, clicks[-1].profile or {}) for user, clicks in sorted(by_user.items())]
    return ClickLog(histories, {item.item_id: item for item in shop.items()})


def take_up(shop: SimulatedShop, history: UserHistory) -> tuple[UserHistory, list[str], set[str]] | None:
    """Return a user's last 15 clicks, twelve new ones, and the items of the interest behind these; None: no case.

    The new interest is another user's main one, and shares no theme with this user's main one.
    """
    own, others = shop.truth(history.user_id), shop.truth(f"u{int(history.user_id[1:]) // 2 + 300:05d}")
    kept = replace(history, clicks=history.clicks[-15:])
    if len(kept.clicks) < 6 or not own or not others or set(own[0].themes) & set(others[0].themes):
        return None
    chances = shop.item_shares(others[0], others[0].begins_ms)
    random = np.random.default_rng(int(history.user_id[1:]))
    clicks = random.choice(list(chances), size=MOST_CLICKS, p=list(chances.values())).tolist()
    return kept, clicks, set(chances)


def ask(
    model: InterestModel, history: UserHistory, clicks: Sequence[str], items: set[str], *, count: int
) -> tuple[bool, bool]:
    """Return whether *count* new clicks have a vector of their own, and their like are in the list."""
    old = [click.item_id for click in history.clicks]
    window = [*old, *clicks[:count]]
    found = model.interests([UserInput(window, profile=history.profile)])
    numbers = np.flatnonzero(found.mask[0]).tolist()
    apart = 1 if model.config.has_general_interest and len(numbers) > 1 else 0  # the general one takes every click
    forming: dict[int, list[int]] = {number: [] for number in numbers}
    for position, weights in zip(found.positions[0].tolist(), found.routing_weights[0], strict=True):
        if position >= 0:
            forming[apart + int(weights[apart:].argmax())].append(position)
    truth = {place: int(place >= len(old)) for place in range(len(window))}
    item_ids, vectors = model.all_item_vectors()
    scores = (found.vectors[0][found.mask[0]] @ vectors.T).max(axis=0)
    seen = set(window)
    ranked = [item_ids[row] for row in np.argsort(-scores).tolist() if item_ids[row] not in seen][:LISTED]
    return coverage(truth, forming).get(1, False), sum(item in items for item in ranked) >= ENOUGH


def draw(path: Path, shares: dict[str, list[float]], *, users: int) -> None:
    """Write both curves to *path*."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    counts = range(MOST_CLICKS + 1)
    axes.plot(counts, shares["own_vector"], marker="o", label="a vector of its own")
    axes.plot(counts, shares["in_the_list"], marker="s", label=f"{ENOUGH} of {LISTED} items in the list")
    axes.set(xlabel="clicks on the new interest", ylabel=f"share of {users} users", ylim=(0, 1))
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
