"""Lists scored again offline: does every list agree with the version that it says made it?

For each record ever written to `recall-lists`: load its model version from the registry, route the list's own window
with the profile that the user had then, and compare each item's score with the inner product of its interest and its
item vector.
A list that mixed two versions, or an interest of one with the index of another, can't pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from engine.events import ClickEvent
from engine.model.features import UserInput
from engine.model.mind import InterestModel
from engine.model.registry import Registry
from engine.recall import RecallList, decode_list
from engine.settings import Settings
from trainer.log import open_consumer, read_small_topic
from trainer.samples import fold_profile

TOLERANCE = 2e-3
"""Scores are around 10 and routed in float32, in batches of another size than the engine's."""
BATCH = 512


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
    profiles = Profiles(settings)  # read after the lists, so that it holds every click that they were made of
    result = Rescoring()
    for version, lists in by_version.items():
        parts = Registry(settings.registry).load(version)
        model = InterestModel.load_parts(parts.config, parts.vocabulary, parts.tensors)
        rows = {item_id: row for row, item_id in enumerate(parts.item_ids)}
        for start in range(0, len(lists), BATCH):
            _compare(result, model, parts.item_vectors, rows, lists[start : start + BATCH], profiles)
    return result


def _compare(
    result: Rescoring,
    model: InterestModel,
    item_vectors: np.ndarray,
    rows: dict[str, int],
    lists: Sequence[RecallList],
    profiles: Profiles,
) -> None:
    inputs = [
        UserInput([click.item_id for click in one.window], [1.0] * len(one.window), profiles.at(one)) for one in lists
    ]
    vectors = model.interests(inputs).vectors
    for one, interests in zip(lists, vectors, strict=True):
        listed = [rows[entry.item_id] for entry in one.items]
        own = np.array([entry.interest for entry in one.items], dtype=int)
        expected = np.einsum("nd,nd->n", item_vectors[listed], interests[own])
        difference = np.abs(expected - [entry.score for entry in one.items]).max(initial=0.0)
        if difference <= TOLERANCE:
            result.agreeing[one.model_version] += 1
        else:
            result.mismatches.append(f"version {one.model_version}: a score differs by {difference:.4f}")


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
