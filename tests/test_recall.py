from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pytest

from engine.errors import MalformedEvent
from engine.model import Interests
from engine.recall import (
    InterestSummary,
    RankedItem,
    RecallList,
    decode_list,
    describe_window,
    encode_list,
    summarize_interests,
)
from engine.window import BehaviorWindow
from tests.builders import NOON_MS, make_click

# --- what explains a list


def summarized(weights: np.ndarray, mask: np.ndarray, item_ids: Sequence[Sequence[str]]) -> list[list[InterestSummary]]:
    length = weights.shape[1]
    positions = np.array([np.arange(length) - (length - len(own)) for own in item_ids])
    interests = Interests(np.zeros((*mask.shape, 1)), mask, weights, np.maximum(positions, -1))
    return summarize_interests(interests.shares, weights, mask, item_ids)


def test_interest_weights_are_shares_of_the_routing_mass() -> None:
    weights = np.array([[[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]], dtype=np.float32)

    [summaries] = summarized(weights, np.array([[True, True]]), ["abcd"])

    assert [summary.weight for summary in summaries] == [0.75, 0.25]


def claims_of(shares: list[float], *, has_general: bool, mask: list[bool] | None = None) -> list[float]:
    weights = np.array([[shares]], dtype=np.float32)
    used = np.array([mask or [True] * len(shares)])
    interests = Interests(np.zeros((1, len(shares), 1)), used, weights, np.zeros((1, 1), dtype=np.int64), has_general)
    return [round(claim, 6) for claim in interests.claims[0].tolist()]


def test_interests_claim_their_shares_and_the_general_one_an_even_part() -> None:
    assert claims_of([0.5, 0.3, 0.2], has_general=False) == [0.5, 0.3, 0.2]
    assert claims_of([0.5, 0.3, 0.2], has_general=True) == [0.333333, 0.4, 0.266667]
    assert claims_of([0.5, 0.3, 0.2, 9.0], has_general=True, mask=[True, True, True, False]) == [
        0.333333,
        0.4,
        0.266667,
        0,
    ]
    assert claims_of([1.0, 0.0], has_general=True) == [0.5, 0.0]
    assert claims_of([0.7, 0.0], has_general=True, mask=[True, False]) == [1.0, 0.0]
    assert claims_of([0.0, 0.0], has_general=True, mask=[False, False]) == [0.0, 0.0]


def test_interest_names_its_five_heaviest_clicks_newest_first_among_equals() -> None:
    weights = np.array([[[0.1], [0.9], [0.5], [0.5], [0.2], [0.3]]], dtype=np.float32)

    [[summary]] = summarized(weights, np.array([[True]]), ["abcdef"])

    assert [click.item_id for click in summary.clicks] == ["b", "d", "c", "f", "e"]


def test_item_clicked_twice_is_named_once_in_an_interest() -> None:
    weights = np.array([[[0.2], [0.6]]], dtype=np.float32)

    [[summary]] = summarized(weights, np.array([[True]]), ["aa"])

    assert [(click.item_id, click.weight) for click in summary.clicks] == [("a", 0.6)]


def test_unused_interests_are_not_summarized() -> None:
    weights = np.array([[[0.6, 0.1, 0.2]]], dtype=np.float32)

    [summaries] = summarized(weights, np.array([[True, False, True]]), ["a"])

    assert [(summary.interest, summary.weight) for summary in summaries] == [(0, 0.75), (2, 0.25)]


def test_who_else_is_summarized_changes_nothing() -> None:
    weights = np.array([[[9.0, 9.0], [0.5, 0.25], [0.5, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]], dtype=np.float32)
    mask, item_ids = np.array([[True, True], [True, False]]), ["yz", "abc"]

    first, second = summarized(weights, mask, item_ids)

    assert [first] == summarized(weights[:1, 1:], mask[:1], item_ids[:1])
    assert [second] == summarized(weights[1:], mask[1:], item_ids[1:])
    assert [click.item_id for click in first[1].clicks] == ["y", "z"]
    assert [click.item_id for click in second[0].clicks] == ["a", "c", "b"]


# --- the contract's JSON


def a_list() -> RecallList:
    window = BehaviorWindow.of([make_click(item_id="i1")], max_clicks=5)
    return RecallList(
        user_id="u1",
        items=[RankedItem("i2", 0.5, 0)],
        interests=summarized(np.ones((1, 1, 1), dtype=np.float32), np.array([[True]]), [["i1"]])[0],
        window=describe_window(window),
        as_of_ms=NOON_MS,
        accepted_at_ms=NOON_MS + 1,
        computed_at_ms=NOON_MS + 2,
        window_offset=7,
        activation=3,
        epoch="e",
        model_version="0001",
    )


def test_a_click_of_the_window_carries_its_weight_where_it_is_not_1() -> None:
    window = BehaviorWindow.of([make_click(item_id="i1"), make_click(item_id="i2", weight=2.5)], max_clicks=5)

    written = msgspec.json.decode(msgspec.json.encode(describe_window(window)))

    assert [click.get("weight") for click in written] == [None, 2.5]


def test_list_is_written_in_the_contracts_json() -> None:
    assert encode_list(a_list()) == (
        b'{"user_id":"u1","items":[{"item_id":"i2","score":0.5,"interest":0}],'
        b'"interests":[{"interest":0,"weight":1.0,"clicks":[{"item_id":"i1","weight":1.0}]}],'
        b'"window":[{"item_id":"i1","clicked_at_ms":1291204800000,"event_type":"click"}],'
        b'"as_of_ms":1291204800000,"accepted_at_ms":1291204800001,"computed_at_ms":1291204800002,'
        b'"window_offset":7,"activation":3,"epoch":"e","model_version":"0001","source":"personal"}'
    )


def test_list_comes_back_as_it_was_written() -> None:
    assert decode_list(encode_list(a_list())) == a_list()


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"user_id":1}', b"\xff", b'{"user_id":"u"}'])
def test_bytes_that_are_no_list_are_malformed(value: bytes) -> None:
    with pytest.raises(MalformedEvent, match="not a recall list"):
        decode_list(value)
