"""Lists scored again offline: does every list agree with the version that it says made it?

For each record ever written to `recall-lists`: load its model version from the registry, route the list's own window,
without the items that were removed by then, with the profile that the user had then, and compare each item's score with
the inner product of its interest and its item vector.
A list that mixed two versions, or an interest of one with the index of another, can't pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from engine.events import ClickEvent, ItemEvent
from engine.model import NEGATIVE_EVENT_TYPES
from engine.model.features import ItemInput, UserInput
from engine.model.mind import InterestModel
from engine.model.registry import Registry
from engine.recall import RecallList, decode_list
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
        listed = sorted({entry.item_id for one in lists for entry in one.items})
        vectors = dict(zip(listed, model.item_vectors([described.get(i, ItemInput(i)) for i in listed]), strict=True))
        for start in range(0, len(lists), BATCH):
            _compare(result, model, vectors, lists[start : start + BATCH], profiles, removals)
    return result


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
) -> None:
    differences = []
    for late_ms in (0, APPLIED_WITHIN_MS):
        inputs = [UserInput(removals.standing(one, late_ms=late_ms), profile=profiles.at(one)) for one in lists]
        vectors = model.interests(inputs).vectors
        differences.append([_difference(*pair, item_vectors) for pair in zip(lists, vectors, strict=True)])
    for one, difference in zip(lists, np.min(differences, axis=0).tolist(), strict=True):
        if difference <= TOLERANCE:
            result.agreeing[one.model_version] += 1
        else:
            result.mismatches.append(f"version {one.model_version}: a score differs by {difference:.4f}")


def _difference(one: RecallList, interests: np.ndarray, item_vectors: dict[str, np.ndarray]) -> float:
    if not one.items:  # as of a window whose items are all removed: nothing may have been left to search with
        return float("inf") if interests.any() else 0.0
    listed = np.array([item_vectors[entry.item_id] for entry in one.items])
    own = np.array([entry.interest for entry in one.items], dtype=int)
    expected = np.einsum("nd,nd->n", listed, interests[own])
    return float(np.abs(expected - [entry.score for entry in one.items]).max(initial=0.0))


class Removals:
    """When each item was removed, or came back, by the log's clock."""

    def __init__(self, settings: Settings) -> None:
        self._changes: dict[str, list[tuple[int, bool]]] = defaultdict(list)
        for record in records_of(settings, "items"):
            item = msgspec.json.decode(record.value, type=ItemEvent)
            self._changes[item.item_id].append((record.timestamp, item.removed))

    def standing(self, recall_list: RecallList, *, late_ms: int) -> list[str]:
        """Return the window's liked items without those removed *late_ms* or longer before the list was made."""
        at_ms = recall_list.computed_at_ms - late_ms
        liked = [click.item_id for click in recall_list.window if click.event_type not in NEGATIVE_EVENT_TYPES]
        return [item_id for item_id in liked if not self._is_removed(item_id, at_ms)]

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
