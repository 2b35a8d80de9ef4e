"""The recall list: a user's ranked items with everything that dates and explains them.

`engine/merge.py` ranks the items, here is what is sent: `encode_list` writes the contract's JSON, the same bytes that a
query answers with and that the topic `recall-lists` keeps. All of it is a pure function of its arguments: same input,
same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType
from numpy.typing import NDArray

from engine.ann.index import order_keys
from engine.errors import MalformedEvent
from engine.window import BehaviorWindow

EXPLAINING_CLICKS = 5
"""An interest names at most this many of the clicks that formed it."""


class RankedItem(msgspec.Struct, frozen=True, gc=False):
    """One recalled item: its score (inner product), and the interest that found it; None on a popular list."""

    item_id: str
    score: float
    interest: int | None


class FormingClick(msgspec.Struct, frozen=True, gc=False):
    """A clicked item and how much routing gave of it to one interest."""

    item_id: str
    weight: float


class InterestSummary(msgspec.Struct, frozen=True):
    """One interest in use: its share of the window's routing mass, and the clicks that formed it, heaviest first."""

    interest: int
    weight: float
    clicks: Sequence[FormingClick]


class WindowClick(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """One click of the window that a list was computed from; a weight of 1 is not written."""

    item_id: str
    clicked_at_ms: int
    event_type: str
    weight: float = 1.0


class RecallList(msgspec.Struct, frozen=True, kw_only=True):
    """A user's merged, ranked answer with everything needed to date and explain it; the contract of `recall-lists`."""

    user_id: str
    items: Sequence[RankedItem]
    """Best first; equal scores by ascending item id."""
    interests: Sequence[InterestSummary] = ()
    """In ascending interest number; empty on a popular list."""
    window: Sequence[WindowClick] = ()
    """Oldest click first."""
    seen: Sequence[str] | UnsetType = UNSET
    """Items that were clicked before the window and are left out too; where a setting asks for it."""
    as_of_ms: int | None = None
    """Event time of the newest click taken in; None without a window."""
    accepted_at_ms: int | None = None
    """When the log accepted the oldest click that this list is the first to reflect; None where no new click is in."""
    computed_at_ms: int
    """Wall time at which the list was made."""
    window_offset: int = -1
    """Offset in the user's partition of `clicks` up to which clicks are taken in; -1 for none."""
    activation: int
    """Offset of the model version's record on `models`."""
    epoch: str = ""
    """Cluster, topic id and partition count that `window_offset` belongs to."""
    model_version: str
    source: Literal["personal", "popular"] = "personal"


_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(RecallList)


def encode_list(recall_list: RecallList) -> bytes:
    """Return the contract's JSON."""
    return _ENCODER.encode(recall_list)


def decode_list(value: bytes) -> RecallList:
    """Return the list that *value* holds.

    Raises:
        MalformedEvent: it is not JSON, or not a recall list.
    """
    try:
        return _DECODER.decode(value)
    except msgspec.ValidationError as error:
        raise MalformedEvent("type", f"not a recall list: {error}") from error
    except msgspec.DecodeError as error:
        raise MalformedEvent("json", f"not a recall list: {error}") from error


def summarize_interests(
    shares: NDArray[np.float64],
    routing_weights: NDArray[np.float32],
    mask: NDArray[np.bool_],
    item_ids: Sequence[Sequence[str]],
) -> list[list[InterestSummary]]:
    """Return what explains the interests of B users: their shares of the window, and the clicks that formed them.

    Args:
        shares: (B, K) float64, of `Interests`.
        routing_weights: (B, L, K) float32, one row a click, oldest first; rows of padding come before them.
        mask: (B, K) bool, True for the interests in use.
        item_ids: B times the clicked items, at most L of them.

    Returns:
        B times one summary for each interest in use, in ascending number; the weights of a user add up to 1. Of an item
        clicked several times the heaviest click is named; equal weights go newest first.
    """
    length = routing_weights.shape[1]
    ages = np.arange(length, dtype=np.uint64)
    weights = routing_weights[:, ::-1].transpose(0, 2, 1) + np.float32(0.0)  # (B, K, L), the newest click first
    is_click = ages < np.array([len(own) for own in item_ids])[:, None]
    parts = shares.tolist()
    # Keys of weight and age are in order once they are sorted, and sort some ten times faster than places by weights.
    keys = np.sort(order_keys(np.where(is_click[:, None, :], weights, -1.0), ages), axis=2)
    heaviest = (keys & np.uint64(2**32 - 1)).tolist()
    rounded = np.round(weights.astype(np.float64), 6).tolist()
    return [
        [
            InterestSummary(number, parts[user][number], _name_clicks(own[::-1], heaviest[user][number], of_clicks))
            for number, of_clicks in enumerate(rounded[user])
            if is_used[number]
        ]
        for user, (own, is_used) in enumerate(zip(item_ids, mask.tolist(), strict=True))
    ]


def _name_clicks(item_ids: Sequence[str], ages: Sequence[int], weights: Sequence[float]) -> list[FormingClick]:
    """Return the first clicks in the order of *ages*, each item once; *item_ids* and *weights* are newest first."""
    clicks: dict[str, float] = {}
    for age in ages[: len(item_ids)]:
        clicks.setdefault(item_ids[age], weights[age])
        if len(clicks) == EXPLAINING_CLICKS:
            break
    return [FormingClick(item_id, weight) for item_id, weight in clicks.items()]


def describe_window(window: BehaviorWindow) -> list[WindowClick]:
    """Return the window as a list carries it, oldest click first."""
    return [
        WindowClick(click.item_id, click.clicked_at_ms, click.event_type)
        if click.weight == 1.0
        else WindowClick(click.item_id, click.clicked_at_ms, click.event_type, click.weight)
        for click in window.clicks
    ]
