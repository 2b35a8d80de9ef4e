"""Lists scored again offline: does every list agree with the version that it says made it?

For each record ever written to `recall-lists`: load its model version from the registry, route the list's own window,
without the items that were removed by then, with the profile that the user had then, and compare each item's score with
the inner product of its interest and its item vector.
A list that mixed two versions, or an interest of one with the index of another, can't pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from engine.event_types import NEGATIVE_EVENT_TYPES
from engine.events import ClickEvent, ItemEvent
from engine.model.features import ItemInput, UserInput
from engine.model.mind import InterestModel
from engine.model.registry import Registry
from engine.recall import RecallList, WindowClick, decode_list
from engine.settings import Settings
from trainer.log import open_consumer, read_small_topic
from trainer.samples import fold_profile

TOLERANCE = 2e-3
"""Scores are around 10 and routed in float32, in batches of another size than the engine's."""
BATCH = 512
APPLIED_WITHIN_MS = 2_000
"""An engine has applied a removal so long after the log took it; in between, a list may be made with or without it."""


@dataclass
class Rescoring:
    """How many lists agree with their own version, by version, and what the others said."""

    agreeing: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    mismatches: list[str] = field(default_factory=list)


def rescore(settings: Settings) -> Rescoring:
    """Score every personal list in the log again."""
    by_version: dict[str, list[RecallList]] = defaultdict(list)
    for recall_list in written_lists(settings):
        by_version[recall_list.model_version].append(recall_list)
    # Read after the lists, so that they hold every click and item that the lists were made of.
    profiles, removals, described = Profiles(settings), Removals(settings), described_items(settings)
    result = Rescoring()
    for version, lists in by_version.items():
        parts = Registry(settings.registry).load(version)
        model = InterestModel.load_parts(parts.config, parts.vocabulary, parts.tensors)
        vectors = vectors_of(model, lists, described)
        for start in range(0, len(lists), BATCH):
            _compare(result, model, vectors, lists[start : start + BATCH], profiles, removals, settings.negative_push)
    return result


def vectors_of(
    model: InterestModel, lists: Iterable[RecallList], described: dict[str, ItemInput]
) -> dict[str, np.ndarray]:
    """Return the vector of each item that *lists* hold or were made of."""
    named = {entry.item_id for one in lists for entry in (*one.items, *one.window)}
    inputs = [described.get(item_id, ItemInput(item_id)) for item_id in sorted(named)]
    return dict(zip(sorted(named), model.item_vectors(inputs), strict=True))


def is_negative(click: WindowClick) -> bool:
    return click.event_type in NEGATIVE_EVENT_TYPES


def expected_scores(
    one: RecallList,
    standing: Sequence[WindowClick],
    interests: np.ndarray,
    item_vectors: dict[str, np.ndarray],
    *,
    push: float,
) -> np.ndarray:
    """Return (N,) what the items of *one* score, of which what is near to something turned down loses a part.

    *standing* are the clicks of the window on items that are not removed.
    """
    listed = np.array([item_vectors[entry.item_id] for entry in one.items])
    scores: np.ndarray = np.einsum("nd,nd->n", listed, interests[[entry.interest for entry in one.items]])
    negative = {click.item_id for click in standing if is_negative(click)}
    if not negative:
        return scores

    def nearest(item_ids: set[str]) -> np.ndarray:
        cosines = [
            listed @ each / np.maximum(np.linalg.norm(listed, axis=1) * np.linalg.norm(each), 1e-12)
            for each in (item_vectors[item_id] for item_id in item_ids)
        ]
        return np.max([*cosines, np.zeros(len(listed))], axis=0)

    clicked = {click.item_id for click in standing} - negative
    return scores - np.clip(push * (nearest(negative) - nearest(clicked)), 0.0, 1.0) * np.abs(scores)


def described_items(settings: Settings) -> dict[str, ItemInput]:
    """Return what the catalog said of each item the last time that it said anything but that it is removed."""
    described = {}
    for record in records_of(settings, "items"):
        item = msgspec.json.decode(record.value, type=ItemEvent)
        if not item.removed:
            described[item.item_id] = ItemInput(item.item_id, item.category, item.brand, item.shop, item.features)
    return described


def _compare(
    result: Rescoring,
    model: InterestModel,
    item_vectors: dict[str, np.ndarray],
    lists: Sequence[RecallList],
    profiles: Profiles,
    removals: Removals,
    push: float,
) -> None:
    differences = []
    for late_ms in (0, APPLIED_WITHIN_MS):
        standing = [removals.standing(one, late_ms=late_ms) for one in lists]
        inputs = [
            UserInput([click.item_id for click in clicks if not is_negative(click)], profile=profiles.at(one))
            for one, clicks in zip(lists, standing, strict=True)
        ]
        parts = zip(lists, standing, model.interests(inputs).vectors, strict=True)
        differences.append([_difference(*part, item_vectors, push) for part in parts])
    for one, difference in zip(lists, np.min(differences, axis=0).tolist(), strict=True):
        if difference <= TOLERANCE:
            result.agreeing[one.model_version] += 1
        else:
            result.mismatches.append(f"version {one.model_version}: a score differs by {difference:.4f}")


def _difference(
    one: RecallList,
    standing: Sequence[WindowClick],
    interests: np.ndarray,
    item_vectors: dict[str, np.ndarray],
    push: float,
) -> float:
    if not one.items:  # as of a window whose items are all removed: nothing may have been left to search with
        return float("inf") if interests.any() else 0.0
    expected = expected_scores(one, standing, interests, item_vectors, push=push)
    return float(np.abs(expected - [entry.score for entry in one.items]).max(initial=0.0))


class Removals:
    """When each item was removed, or came back, by the log's clock."""

    def __init__(self, settings: Settings) -> None:
        self._changes: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        for record in records_of(settings, "items"):
            item = msgspec.json.decode(record.value, type=ItemEvent)
            self._changes[item.item_id].append((record.timestamp, item.removed))

    def standing(self, recall_list: RecallList, *, late_ms: int) -> list[WindowClick]:
        """Return the window without clicks on items removed *late_ms* or longer before the list was made."""
        at_ms = recall_list.computed_at_ms - late_ms
        return [click for click in recall_list.window if not self._is_removed(click.item_id, at_ms)]

    def _is_removed(self, item_id: str, at_ms: int) -> bool:
        states = [removed for changed_ms, removed in self._changes[item_id] if changed_ms <= at_ms]
        return bool(states and states[-1])


class Profiles:
    """Each user's profile as it was at any offset of the log."""

    def __init__(self, settings: Settings) -> None:
        self._said: dict[str, list[tuple[int, ClickEvent]]] = defaultdict(list)
        for record in records_of(settings, "clicks"):
            try:
                click = msgspec.json.decode(record.value or b"", type=ClickEvent)
            except msgspec.MsgspecError:
                continue
            self._said[click.user_id].append((record.offset, click))

    def at(self, recall_list: RecallList) -> dict[str, str | float]:
        """Return what the user's clicks up to the list's window offset say, attribute by attribute the greatest."""
        known = [click for offset, click in self._said[recall_list.user_id] if offset <= recall_list.window_offset]
        return fold_profile(sorted(known, key=lambda click: (click.clicked_at_ms, click.identity)))


def written_lists(settings: Settings) -> Iterator[RecallList]:
    """Yield every list that was ever published and not yet compacted away."""
    return (decode_list(record.value) for record in records_of(settings, "recall-lists") if record.value is not None)


def records_of(settings: Settings, name: str) -> Iterator[Any]:
    """Yield every record of a topic, up to its end at this moment."""
    with open_consumer(settings) as consumer:
        yield from read_small_topic(consumer, settings.topic(name))
