"""Lists scored again offline: does every list agree with the version that it says made it?

For each record ever written to `recall-lists`: load its model version from the registry, route the list's own window
with the user's profile, and compare each item's score with the inner product of its interest and its item vector.
A list that mixed two versions, or an interest of one with the index of another, can't pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from kafka import KafkaConsumer, TopicPartition

from engine.model.features import UserInput
from engine.model.mind import InterestModel
from engine.model.registry import Registry
from engine.recall import RecallList, decode_list
from engine.settings import Settings
from trainer.log import read_log

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
    profiles = {history.user_id: history.profile for history in read_log(settings).log.histories}
    by_version: dict[str, list[RecallList]] = defaultdict(list)
    for recall_list in written_lists(settings):
        by_version[recall_list.model_version].append(recall_list)
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
    profiles: dict[str, dict[str, str | float]],
) -> None:
    inputs = [
        UserInput([click.item_id for click in one.window], [1.0] * len(one.window), profiles.get(one.user_id, {}))
        for one in lists
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


def written_lists(settings: Settings) -> Iterator[RecallList]:
    """Yield every list that was ever published and not yet compacted away."""
    consumer = KafkaConsumer(**settings.kafka_client_options(), enable_auto_commit=False)
    try:
        topic = settings.topic("recall-lists")
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        ends = consumer.end_offsets(partitions)
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for records in consumer.poll(timeout_ms=500).values():
                yield from (decode_list(record.value) for record in records if record.value is not None)
    finally:
        consumer.close()
