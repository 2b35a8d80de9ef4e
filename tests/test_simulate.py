from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from engine.errors import ConfigError
from engine.events import ClickEvent, encode_click, encode_item
from engine.simulate import START_MS, SimulatedShop, coverage

SMALL = {"items": 1_000, "users": 600, "clicks": 24_000}
DIGEST = (
    "import sys; sys.path.insert(0, '.'); from tests.test_simulate import SMALL, digest_of;"
    "from engine.simulate import SimulatedShop; print(digest_of(SimulatedShop(3, **SMALL)))"
)


def digest_of(shop: SimulatedShop) -> str:
    digest = hashlib.sha256()
    for item in shop.items():
        digest.update(encode_item(item))
    for click in shop.clicks():
        digest.update(encode_click(click))
    return digest.hexdigest()


@pytest.fixture(scope="module")
def shop() -> SimulatedShop:
    return SimulatedShop(3, **SMALL)


@pytest.fixture(scope="module")
def clicks(shop: SimulatedShop) -> list[ClickEvent]:
    return list(shop.clicks())


def test_one_seed_gives_the_same_bytes_in_every_process(shop: SimulatedShop):
    root = Path(__file__).parent.parent
    elsewhere = subprocess.run([sys.executable, "-c", DIGEST], cwd=root, capture_output=True, text=True, check=True)

    assert elsewhere.stdout.strip() == digest_of(shop)


def test_another_seed_gives_another_shop(shop: SimulatedShop):
    assert digest_of(SimulatedShop(4, **SMALL)) != digest_of(shop)


def test_shop_says_that_it_is_simulated(shop: SimulatedShop):
    assert shop.simulated
    assert "simulated" in shop.name


def test_clicks_are_as_many_as_asked_for_in_time_order_within_the_time(shop: SimulatedShop, clicks: list[ClickEvent]):
    assert len(clicks) == shop.click_count == 24_000
    assert all(before.clicked_at_ms <= after.clicked_at_ms for before, after in pairwise(clicks))
    assert clicks[0].clicked_at_ms >= START_MS
    assert clicks[-1].clicked_at_ms < START_MS + 56 * 86_400_000
    assert len({click.event_id for click in clicks}) == len(clicks)


def test_time_starts_where_the_argument_says():
    moved = SimulatedShop(3, start_ms=1_000_000_000_000, **SMALL)

    assert all(0 <= click.clicked_at_ms - 1_000_000_000_000 < 56 * 86_400_000 for click in moved.clicks())


def test_every_user_clicks_and_most_of_them_little(shop: SimulatedShop, clicks: list[ClickEvent]):
    counts = sorted(Counter(click.user_id for click in clicks).values())

    assert len(counts) == len(shop.user_ids) == 600
    assert counts[300] < sum(counts) / len(counts)


def test_popularity_has_a_long_tail(clicks: list[ClickEvent]):
    counts = sorted(Counter(click.item_id for click in clicks).values(), reverse=True)

    assert len(counts) > 800
    assert 0.2 < sum(counts[:100]) / len(clicks) < 0.7


def test_catalog_has_titles_categories_brands_shops_and_price_bands(shop: SimulatedShop):
    items = [item for item in shop.items() if not item.removed]

    assert len(items) == 1_000
    assert all(item.title and item.category and item.brand and item.shop for item in items)
    assert len({item.category for item in items}) == 60
    assert len({item.features["price_band"] for item in items}) == 5


def test_users_have_one_to_six_interests_and_bots_none(shop: SimulatedShop):
    counts = Counter(len(shop.truth(user_id)) for user_id in shop.user_ids if user_id not in shop.bots)

    assert set(counts) == {1, 2, 3, 4, 5, 6}
    assert len(shop.bots) == 5
    assert [shop.truth(user_id) for user_id in shop.bots] == [[]] * 5


def test_click_of_an_interest_falls_when_the_user_has_it_and_on_one_of_its_items(
    shop: SimulatedShop, clicks: list[ClickEvent]
):
    session_slack_ms = 2 * 3_600_000  # an interest may end while its last session goes on
    checked = misplaced = 0
    for index, click in enumerate(clicks[:6_000]):
        number = shop.interest_of(index)
        if number is None:
            continue
        interest = next(one for one in shop.truth(click.user_id) if one.number == number)
        assert interest.begins_ms <= click.clicked_at_ms < interest.ends_ms + session_slack_ms
        checked += 1
        misplaced += click.item_id not in shop.item_shares(interest, click.clicked_at_ms)
    assert checked > 5_000
    assert misplaced / checked < 0.01


def test_interests_begin_end_and_drift(shop: SimulatedShop):
    interests = [interest for user_id in shop.user_ids for interest in shop.truth(user_id)]
    end_ms = START_MS + 56 * 86_400_000

    assert sum(interest.begins_ms > START_MS for interest in interests) > 100
    assert sum(interest.ends_ms < end_ms for interest in interests) > 100
    assert sum(interest.themes[0] != interest.themes[1] for interest in interests) > 100
    assert all(
        any(interest.is_active(at) for interest in shop.truth("u00000")) for at in range(START_MS, end_ms, 10**8)
    )


def test_drift_moves_the_items_of_an_interest(shop: SimulatedShop):
    drifting = next(
        interest
        for user_id in shop.user_ids
        for interest in shop.truth(user_id)
        if interest.themes[0] != interest.themes[1] and interest.drifts_ms[1] < interest.ends_ms
    )
    before, after = (shop.item_shares(drifting, at_ms) for at_ms in drifting.drifts_ms)

    shared = sum(min(share, after.get(item_id, 0.0)) for item_id, share in before.items())
    assert sum(before.values()) == pytest.approx(1.0)
    assert sum(after.values()) == pytest.approx(1.0)
    assert shared < 0.8


def test_profiles_shift_what_people_like(shop: SimulatedShop, clicks: list[ClickEvent]):
    country = {click.user_id: (click.profile or {})["country"] for click in clicks}
    themes: dict[object, Counter[int]] = defaultdict(Counter)
    for user_id in shop.user_ids:
        themes[country[user_id]].update(interest.themes[0] for interest in shop.truth(user_id))

    favorites = {name: {theme for theme, _ in counts.most_common(10)} for name, counts in themes.items()}
    assert len(favorites) == 8
    assert all(len(favorites["DE"] & favorites[name]) <= 6 for name in favorites if name != "DE")


def test_bots_click_very_much_and_anything(shop: SimulatedShop, clicks: list[ClickEvent]):
    counts = Counter(click.user_id for click in clicks)
    items_of_bot = {click.item_id for click in clicks if click.user_id == min(shop.bots)}

    assert all(counts[bot] > 5 * counts.most_common(len(counts))[len(counts) // 2][1] for bot in shop.bots)
    assert len(items_of_bot) > 0.8 * counts[min(shop.bots)]
    assert all(shop.interest_of(index) is None for index, click in enumerate(clicks) if click.user_id in shop.bots)


def test_some_clicks_repeat_and_some_are_noise(shop: SimulatedShop, clicks: list[ClickEvent]):
    noise = sum(
        shop.interest_of(index) is None and click.user_id not in shop.bots for index, click in enumerate(clicks)
    )
    seen: set[tuple[str, str]] = set()
    repeats = 0
    for click in clicks:
        repeats += (click.user_id, click.item_id) in seen
        seen.add((click.user_id, click.item_id))

    assert 0.03 < noise / len(clicks) < 0.1
    assert 0.1 < repeats / len(clicks) < 0.7


def test_items_are_clicked_only_between_arrival_and_removal(shop: SimulatedShop, clicks: list[ClickEvent]):
    session_slack_ms = 2 * 3_600_000
    arrived = {item.item_id: START_MS for item in shop.opening_items()}
    removed: dict[str, int] = {}
    for at_ms, item in shop.item_changes():
        (removed if item.removed else arrived)[item.item_id] = at_ms

    assert len(removed) > 30
    assert len(arrived) == 1_000
    for click in clicks:
        assert arrived[click.item_id] <= click.clicked_at_ms
        assert click.clicked_at_ms < removed.get(click.item_id, 2**60) + session_slack_ms


def test_catalog_ends_with_the_removals_that_the_timeline_names(shop: SimulatedShop):
    changes = list(shop.item_changes())
    items = list(shop.items())

    assert changes == sorted(changes, key=lambda change: change[0])
    assert {item.item_id for item in items if item.removed} == {item.item_id for _, item in changes if item.removed}
    assert all(item.removed for item in items[1_000:])


def test_interest_has_items_that_popularity_does_not_tell(shop: SimulatedShop, clicks: list[ClickEvent]):
    cut = int(0.9 * len(clicks))
    popular = {item_id for item_id, _ in Counter(click.item_id for click in clicks[:cut]).most_common(50)}
    found_popular, found_true, asked = 0, 0, 0
    for click in clicks[cut:]:
        shares: Counter[str] = Counter()
        for interest in shop.truth(click.user_id):
            if interest.is_active(click.clicked_at_ms):
                for item_id, share in shop.item_shares(interest, click.clicked_at_ms).items():
                    shares[item_id] += share * interest.weight
        asked += 1
        found_popular += click.item_id in popular
        found_true += click.item_id in {item_id for item_id, _ in shares.most_common(50)}

    assert found_true / asked > 2 * found_popular / asked


def test_shop_too_small_to_mean_anything_is_refused():
    with pytest.raises(ConfigError, match="clicks must be at least 6000 in a simulated shop, got 100"):
        SimulatedShop(3, items=1_000, users=600, clicks=100)


def test_coverage_names_the_interests_that_some_vector_stands_for():
    truth = {"a": 0, "b": 0, "c": 1, "d": 1, "e": 2, "f": None}

    covered = coverage(truth, {0: ["a", "b", "c"], 1: ["d", "e"], 2: ["f"], 3: ["e"]})

    assert covered == {0: True, 1: False, 2: True}


def test_coverage_of_nothing_is_nothing():
    assert coverage({}, {0: ["x"]}) == {}
