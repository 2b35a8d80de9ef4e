"""What goes into a model and what comes out, in the words of events: plain values and NumPy arrays.

`encode_windows` turns users into one `WindowBatch` of rows and numbers, and `encode_clicks` does it where the items'
rows are known already. Windows lie at the right edge: the last column
holds the newest click of every user, padding comes before the oldest, so a column is an age.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, repeat

import numpy as np

from engine.errors import InvalidInput
from engine.event_types import NEGATIVE_EVENT_TYPES
from engine.model.config import MindConfig
from engine.model.routing import count_interests
from engine.model.vocabulary import Field, Vocabulary
from engine.model.vocabulary import (
    ItemInput as ItemInput,
)  # an input like the two below, kept where its fields are read


@dataclass(frozen=True, slots=True)
class UserInput:
    """One user's window and profile."""

    item_ids: Sequence[str]
    """Clicked items, oldest first, repeats kept."""
    weights: Sequence[float] = ()
    """One weight a click; empty: all 1."""
    profile: Mapping[str, str | float] = field(default_factory=dict)
    event_types: Sequence[str] = ()
    """One event type a click, so that negative ones are left out; empty: all positive."""


@dataclass(frozen=True, slots=True)
class Interests:
    """The interests of B users; L is the longest window of the batch, in known clicks."""

    vectors: np.ndarray
    """(B, K, D) float32, zero where unused."""
    mask: np.ndarray
    """(B, K) bool, True for the interests in use; a user with no known click has none."""
    routing_weights: np.ndarray
    """(B, L, K) float32, how much each click gave each interest, recency and click weight included."""
    positions: np.ndarray
    """(B, L) int64, where each click stands in its user's `item_ids`, ascending; -1 for padding, which comes first."""
    has_general: bool = False
    """Whether the first interest is the general one, to which all clicks give alike."""

    @property
    def shares(self) -> np.ndarray:
        """(B, K) float64, the part of what the window's clicks gave that each interest in use received; six digits."""
        given = np.where(self.positions[:, :, None] >= 0, self.routing_weights, 0.0)
        mass = np.where(self.mask, given.sum(axis=1, dtype=np.float64), 0.0)
        shares: np.ndarray = np.round(mass / np.maximum(mass.sum(axis=1, keepdims=True), 1e-12), 6)
        return shares

    @property
    def claims(self) -> np.ndarray:
        """(B, K) float64, the part of a list that each interest in use may claim: its share.

        The general interest takes half of every window, whatever is clicked, so it claims an even part, and the others
        have the rest as their shares are.
        """
        shares, counts = self.shares, self.mask.sum(axis=1, keepdims=True)
        if not self.has_general:
            return shares
        even, general = 1.0 / np.maximum(counts, 1), shares[:, :1]
        claims = np.where(self.mask, shares * (1.0 - even) / np.maximum(1.0 - general, 1e-12), 0.0)
        claims[:, :1] = even * self.mask[:, :1]
        return np.where(counts > 1, claims, shares)


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """B windows as rows and numbers, newest click in the last column."""

    rows: np.ndarray
    """(B, L) int64 item rows, 0 for padding."""
    strengths: np.ndarray
    """(B, L) float32 factors from the clicks' weights; 0 for padding."""
    counts: np.ndarray
    """(B,) int64 interest counts."""
    profile_rows: np.ndarray
    """(B, P) int64, one column a profile attribute; 0 for an absent or unseen value, 1 for any number."""
    profile_numbers: np.ndarray
    """(B, P) float32 standardized numbers; 0 for a text or an absent number."""


@dataclass(frozen=True, slots=True)
class KnownClicks:
    """The clicks of many users that form interests, one user's after the other's, each one's oldest first."""

    rows: np.ndarray
    """(C,) int64 item rows, from 1."""
    owners: np.ndarray
    """(C,) int64, which user's, ascending."""
    positions: np.ndarray
    """(C,) int64, where among all of the user's clicks."""
    weights: np.ndarray | None = None
    """(C,) float32; None: all 1."""


def encode_windows(
    users: Sequence[UserInput], vocabulary: Vocabulary, config: MindConfig
) -> tuple[WindowBatch, np.ndarray]:
    """Return the users' windows and the (B, L) positions of their clicks; the newest `max_clicks` known ones stay.

    Raises:
        InvalidInput: a window is one text, its weights or event types are not one a click, a value of a profile is no
            text and no number, or a number, of a profile or a weight that counts, is NaN.
    """
    for user in users:
        _check_lengths(user)
    clicks = _known_clicks(users, vocabulary.item_rows, weighed=config.weight_power > 0)
    return encode_clicks(clicks, [user.profile for user in users], vocabulary, config)


def encode_clicks(
    clicks: KnownClicks, profiles: Sequence[Mapping[str, str | float]], vocabulary: Vocabulary, config: MindConfig
) -> tuple[WindowBatch, np.ndarray]:
    """Return what `encode_windows` does, of the *clicks* of as many users as there are *profiles*."""
    counts = np.bincount(clicks.owners, minlength=len(profiles))
    ages = np.cumsum(counts)[clicks.owners] - np.arange(len(clicks.owners))  # 1 for a user's newest
    kept = np.flatnonzero(ages <= config.max_clicks)
    length = min(int(counts.max(initial=0)), config.max_clicks)
    at = clicks.owners[kept], length - ages[kept]
    rows = np.zeros((len(profiles), length), dtype=np.int64)
    positions = np.full((len(profiles), length), -1, dtype=np.int64)
    weights = np.ones((len(profiles), length), dtype=np.float32)
    rows[at], positions[at] = clicks.rows[kept], clicks.positions[kept]
    if clicks.weights is not None:
        weights[at] = clicks.weights[kept]
    profile_rows, profile_numbers = encode_profiles(profiles, vocabulary.profile_fields)
    batch = WindowBatch(
        rows=rows,
        strengths=click_strengths(weights, config) * (rows > 0),
        counts=count_interests(
            rows,
            interests=config.interests,
            dynamic=config.dynamic_interests,
            general=config.has_general_interest,
        ),
        profile_rows=profile_rows,
        profile_numbers=profile_numbers,
    )
    return batch, positions


def click_strengths(weights: np.ndarray, config: MindConfig) -> np.ndarray:
    """Return the factor that each click's weight puts on its routing weights; float32, the shape of *weights*.

    Logarithmic and capped, because weights such as quantities spread over five decades; below 0 counts as 0.
    """
    if config.weight_power == 0.0:
        return np.ones(weights.shape, dtype=np.float32)
    if np.isnan(weights).any():
        raise InvalidInput("the weight of a click", got=math.nan, expected="a number")
    factors: np.ndarray = (np.log1p(np.maximum(weights, 0.0)) / np.log(2.0)) ** config.weight_power
    capped: np.ndarray = np.minimum(factors, config.weight_cap).astype(np.float32)
    return capped


def encode_profiles(
    profiles: Sequence[Mapping[str, str | float]], fields: Sequence[Field]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the `profile_rows` and `profile_numbers` of a `WindowBatch`."""
    rows = np.zeros((len(profiles), len(fields)), dtype=np.int64)
    numbers = np.zeros((len(profiles), len(fields)), dtype=np.float32)
    for index, profile in enumerate(profiles):
        for column, attribute in enumerate(fields):
            value = profile.get(attribute.name)
            if not attribute.is_number:
                rows[index, column] = attribute.row(value)
            elif value is not None and not isinstance(value, str):
                rows[index, column] = 1  # any number
                numbers[index, column] = attribute.standardize(value)
    return rows, numbers


def _check_lengths(user: UserInput) -> None:
    clicks = len(user.item_ids)
    if isinstance(user.item_ids, str):
        raise InvalidInput("UserInput.item_ids", got=user.item_ids, expected="a sequence of item ids")
    for name, values in (("weights", user.weights), ("event_types", user.event_types)):
        if len(values) not in (0, clicks):
            raise InvalidInput(f"UserInput.{name}", got=len(values), expected=f"empty or one a click, {clicks}")


def check_windows(batch: WindowBatch, vocabulary: Vocabulary, config: MindConfig) -> None:
    """Check that *batch* is one that the model of *vocabulary* and *config* can compute with.

    On a GPU a row out of range ends the whole process, and a number that isn't finite spoils vectors in silence.

    Raises:
        InvalidInput: an array has another type or shape, or a value out of range.
    """
    count, attributes = len(batch.rows), len(vocabulary.profile_fields)
    shapes = {"rows": batch.rows.shape, "strengths": batch.rows.shape, "counts": (count,)}
    shapes |= {"profile_rows": (count, attributes), "profile_numbers": (count, attributes)}
    for name, shape in shapes.items():
        values, kind = getattr(batch, name), np.float32 if name in ("strengths", "profile_numbers") else np.int64
        if values.dtype != kind or values.shape != shape or len(batch.rows.shape) != 2:
            got = f"{values.dtype} of shape {values.shape}"
            raise InvalidInput(f"WindowBatch.{name}", got=got, expected=f"{kind.__name__} of shape {shape}")
        if kind is np.float32 and not np.isfinite(values).all():
            raise InvalidInput(f"WindowBatch.{name}", got="NaN or infinity", expected="finite numbers")
    _check_range("rows", batch.rows, len(vocabulary.item_ids))
    _check_range("counts", batch.counts, config.interests)
    for column, attribute in enumerate(vocabulary.profile_fields):
        _check_range("profile_rows", batch.profile_rows[:, column], 1 if attribute.is_number else attribute.row_count)


def _check_range(name: str, values: np.ndarray, most: int) -> None:
    if values.size and (values.min() < 0 or values.max() > most):
        got = int(values.min() if values.min() < 0 else values.max())
        raise InvalidInput(f"a value of WindowBatch.{name}", got=got, expected=f"from 0 to {most}")


def _known_clicks(users: Sequence[UserInput], item_rows: Mapping[str, int], *, weighed: bool) -> KnownClicks:
    """Return the clicks that form interests: on known items, and not negative."""
    lengths = [len(user.item_ids) for user in users]
    ends = np.cumsum(lengths, dtype=np.int64)
    item_ids = chain.from_iterable(user.item_ids for user in users)
    rows = np.fromiter(map(item_rows.get, item_ids, repeat(0)), dtype=np.int64, count=sum(lengths))
    for user, length, end in zip(users, lengths, ends.tolist(), strict=True):
        if not NEGATIVE_EVENT_TYPES.isdisjoint(user.event_types):
            is_negative = [event_type in NEGATIVE_EVENT_TYPES for event_type in user.event_types]
            rows[end - length : end][is_negative] = 0
    known = np.flatnonzero(rows)
    owners = np.repeat(np.arange(len(users)), lengths)[known]
    weights = None
    if weighed:
        given = [user.weights if len(user.weights) else repeat(1.0, len(user.item_ids)) for user in users]
        weights = np.fromiter(chain.from_iterable(given), dtype=np.float32, count=len(rows))[known]
    return KnownClicks(rows[known], owners, known - (ends - lengths)[owners], weights)
