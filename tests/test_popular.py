from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.popular import popular_list
from tests.builders import NOON_MS


@dataclass(frozen=True)
class Popular:
    overall: Sequence[str]
    by_category: dict[str, Sequence[str]]


@dataclass(frozen=True)
class Version:
    popular: Popular
    model_version: str = "0000"
    activation: int = 4
    trained_at_ms: int = NOON_MS


@dataclass(frozen=True)
class Shop:
    categories: dict[str, str]
    gone: frozenset[str] = frozenset()

    def category(self, item_id: str) -> str | None:
        return self.categories.get(item_id)

    def is_available(self, item_id: str) -> bool:
        return item_id not in self.gone


MUGS_AND_BAGS = Popular(overall=["m1", "b1", "x1", "x2"], by_category={"mug": ["m1", "m2", "m3"], "bag": ["b1", "b2"]})
SHOP = Shop({"m1": "mug", "m2": "mug", "m3": "mug", "b1": "bag", "b2": "bag"})


def popular(
    limit: int = 10, *, shop: Shop = SHOP, window: Sequence[str] = (), exclude: Sequence[str] = ()
) -> list[str]:
    answer = popular_list(
        Version(MUGS_AND_BAGS), shop, user_id="u", limit=limit, window_item_ids=window, exclude=exclude
    )
    return [item.item_id for item in answer.items]


def test_user_without_a_window_gets_what_is_popular_overall() -> None:
    assert popular() == ["m1", "b1", "x1", "x2"]


def test_every_other_popular_item_is_of_a_clicked_category() -> None:
    assert popular(window=["m3"]) == ["m1", "m2", "b1", "x1", "x2"]


def test_most_clicked_category_comes_first() -> None:
    assert popular(limit=1, window=["m2", "m3", "b2"]) == ["m1"]
    assert popular(limit=1, window=["b2", "b2", "m2"]) == ["b1"]


def test_popular_list_leaves_out_what_is_unavailable_or_excluded() -> None:
    assert popular(shop=Shop(SHOP.categories, gone=frozenset({"m1"})), exclude=["x1"]) == ["b1", "x2"]


def test_popular_list_ends_at_its_limit() -> None:
    assert popular(limit=2) == ["m1", "b1"]


def test_popular_list_says_where_it_comes_from() -> None:
    answer = popular_list(Version(MUGS_AND_BAGS), SHOP, user_id="u", limit=2)

    assert (answer.source, answer.model_version, answer.activation, answer.interests) == ("popular", "0000", 4, ())
    assert [(item.score, item.interest) for item in answer.items] == [(1.0, None), (0.5, None)]
