"""The simulated shop knows its users' true interests: a trained model is asked whether it finds them."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from engine.events import ClickEvent
from engine.model import InterestModel, MindConfig, UserInput
from engine.simulate import SimulatedShop, coverage
from trainer.evaluate import split_by_time
from trainer.loop import train
from trainer.options import TrainOptions
from trainer.samples import ClickLog, UserHistory, user_input

WINDOW = 30
MOST_CLICKS = 12


@pytest.fixture(scope="module")
def shop() -> SimulatedShop:
    return SimulatedShop(7, items=1_000, users=600, clicks=30_000)


@pytest.fixture(scope="module")
def log(shop: SimulatedShop) -> ClickLog:
    by_user: dict[str, list[ClickEvent]] = defaultdict(list)
    for click in shop.clicks():
        by_user[click.user_id].append(click)
    histories = [UserHistory(user, clicks, clicks[-1].profile or {}) for user, clicks in sorted(by_user.items())]
    return ClickLog(histories, {item.item_id: item for item in shop.items()})


@pytest.fixture(scope="module")
def model(log: ClickLog) -> InterestModel:
    before, _later = split_by_time(log, 0.1)
    return train(before, MindConfig(dimensions=32, max_clicks=WINDOW), TrainOptions(epochs=3.0, threads=1))


def forming(model: InterestModel, user: UserInput, keys: list[str]) -> dict[int, list[str]]:
    """Return the clicks that each interest in use received more of than any other interest did."""
    found = model.interests([user])
    clicks: dict[int, list[str]] = {number: [] for number in np.flatnonzero(found.mask[0]).tolist()}
    apart = 1 if model.config.has_general_interest and len(clicks) > 1 else 0  # the general one takes every click
    for position, weights in zip(found.positions[0].tolist(), found.routing_weights[0], strict=True):
        if position >= 0:
            clicks[apart + int(weights[apart:].argmax())].append(keys[position])
    return clicks


def test_most_true_interests_of_a_window_have_a_vector_of_their_own(
    shop: SimulatedShop, log: ClickLog, model: InterestModel
):
    number_of = {f"c{index:08d}": shop.interest_of(index) for index in range(shop.click_count)}
    found: list[bool] = []
    for history in log.histories:
        window = history.clicks[-WINDOW:]
        keys = [click.event_id or "" for click in window]
        truth = {key: number_of[key] for key in keys}
        # At most K interests can have a vector; one seen in a single click has hardly begun.
        counts = {number: list(truth.values()).count(number) for number in truth.values() if number is not None}
        if not 2 <= len(counts) <= model.config.interests or min(counts.values()) < 2:
            continue
        found += coverage(truth, forming(model, user_input(history, max_clicks=WINDOW), keys)).values()

    assert len(found) > 200
    assert np.mean(found) > 0.55  # one vector for everything would cover about 0.4; measured 0.63


def test_a_new_interest_gets_a_vector_of_its_own_within_six_clicks_for_half_of_the_users(
    shop: SimulatedShop, log: ClickLog, model: InterestModel
):
    needed = [clicks_needed(shop, model, history) for history in log.histories[:200]]
    counted = [count for count in needed if count is not None]

    assert len(counted) > 100
    assert np.median(counted) <= 6  # measured 4


def clicks_needed(shop: SimulatedShop, model: InterestModel, history: UserHistory) -> int | None:
    """Return how many clicks on another user's main interest it takes until a vector stands for it; None: no case."""
    own, others = shop.truth(history.user_id), shop.truth(f"u{int(history.user_id[1:]) // 2 + 300:05d}")
    window = history.clicks[-WINDOW // 2 :]
    if len(window) < 6 or not own or not others or set(own[0].themes) & set(others[0].themes):
        return None
    draw = np.random.default_rng(int(history.user_id[1:]))
    shares = shop.item_shares(others[0], others[0].begins_ms)
    taken_up = draw.choice(list(shares), size=MOST_CLICKS, p=list(shares.values())).tolist()
    old = [f"old{place}" for place in range(len(window))]
    for count in range(1, MOST_CLICKS + 1):
        keys = [*old, *(f"new{place}" for place in range(count))]
        truth = {key: int(key.startswith("new")) for key in keys}
        user = UserInput([*(click.item_id for click in window), *taken_up[:count]], profile=history.profile)
        if coverage(truth, forming(model, user, keys))[1]:
            return count
    return MOST_CLICKS + 1
