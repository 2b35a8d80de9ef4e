"""What the engine computes of a window that came through Kafka is what the offline bench computes of it."""

from __future__ import annotations

from collections.abc import Sequence

import kafka
import numpy as np
import pytest

from engine.event_types import NEGATIVE_EVENT_TYPES
from engine.events import ClickEvent, encode_click
from engine.model import InterestModel
from engine.model.registry import Registry
from engine.recall import RecallList
from engine.window import BehaviorWindow
from tests.builders import NOON_MS
from tests.integration.conftest import System
from tests.integration.rescoring import described_items, expected_scores, vectors_of, written_lists
from trainer.offline.neural import InterestMethod
from trainer.offline.sets import OfflineSet, Part, Question
from trainer.samples import fold_profile

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]

USERS = 1_000
TOLERANCE = 1e-5
"""Of the cosine of an interest and a listed item; the interest's direction is known by up to 200 of them."""


def draw_clicks(item_ids: Sequence[str], *, users: int) -> list[ClickEvent]:
    """Windows of every kind: of one click and of more than fit, unknown items, repeats, late, twice sent, disliked."""
    random = np.random.default_rng(23)
    clicks: list[ClickEvent] = []
    for user in range(users):
        length = int(random.choice([1, 2, 3, 4, 7, 8, 15, 16, 40, 50, 70]))
        drawn = random.choice(item_ids, size=length).tolist()
        for place, item_id in enumerate(drawn):
            kind = random.random()
            click = ClickEvent(
                user_id=f"parity-{user:04d}",
                item_id=f"never-seen-{place}" if kind < 0.05 else drawn[0] if kind < 0.15 else item_id,
                clicked_at_ms=NOON_MS + place * 1_000 - (10_000_000 if kind > 0.95 else 0),
                event_id=f"parity-{user}-{place}",
                event_type="dislike" if 0.15 < kind < 0.2 else "click",
                weight=float(random.integers(1, 5)),
                profile={"country": str(random.choice(["FR", "DE", "nowhere"]))} if kind < 0.5 else None,
            )
            clicks += [click, click] if 0.2 < kind < 0.25 else [click]
    return clicks


def send(system: System, clicks: Sequence[ClickEvent]) -> None:
    producer = kafka.KafkaProducer(bootstrap_servers=system.settings.bootstrap_servers)
    for click in clicks:
        producer.send(system.settings.topic("clicks"), key=click.user_id.encode(), value=encode_click(click))
    producer.flush()
    producer.close()


def last_lists(system: System) -> dict[str, RecallList]:
    return {one.user_id: one for one in written_lists(system.settings) if one.user_id.startswith("parity-")}


def folded(clicks: Sequence[ClickEvent]) -> dict[str, list[ClickEvent]]:
    """Return each user's distinct clicks in the order of windows, folded by the rule, not by the engine."""
    by_user: dict[str, dict[str, ClickEvent]] = {}
    for click in clicks:
        by_user.setdefault(click.user_id, {})[click.identity] = click
    return {
        user: sorted(distinct.values(), key=lambda click: (click.clicked_at_ms, click.identity))
        for user, distinct in by_user.items()
    }


def to_question(window: Sequence[ClickEvent], history: Sequence[ClickEvent], rows: dict[str, int]) -> Question:
    positive = [click for click in window if click.event_type not in NEGATIVE_EVENT_TYPES and click.item_id in rows]
    return Question(
        user_id=window[0].user_id,
        history=np.array([rows[click.item_id] for click in positive], dtype=np.int64),
        targets=np.zeros(0, dtype=np.int64),
        profile=fold_profile(history),
    )


def test_a_thousand_windows_through_kafka_have_the_interests_that_the_offline_bench_computes(system: System) -> None:
    version = system.status()["model"]["version"]
    parts = Registry(system.settings.registry).load(version)
    model = InterestModel.load_parts(parts.config, parts.vocabulary, parts.tensors)
    rows = {item: row for row, item in enumerate(parts.item_ids, start=1)}
    clicks = draw_clicks(parts.item_ids, users=USERS)
    histories = folded(clicks)
    max_clicks = system.settings.window_max_clicks
    windows = {
        user: BehaviorWindow.of_ordered(all_of, max_clicks=max_clicks).clicks for user, all_of in histories.items()
    }
    questions = {user: to_question(window, histories[user], rows) for user, window in windows.items()}
    hopeful = {user: question for user, question in questions.items() if len(question.history)}
    assert len(hopeful) > 0.95 * USERS  # the others clicked nothing that the model knows, so they have no interest

    send(system, clicks)
    system.wait_until(lambda: last_lists(system).keys() >= hopeful.keys(), what="a list each", timeout_s=120)
    system.wait_until(lambda: system.engine_metrics()["mindstream_dirty_users"] == 0, what="quiet", timeout_s=60)
    found = last_lists(system)

    items_of = vectors_of(model, found.values(), described_items(system.settings))
    made = OfflineSet("parity", "none", list(parts.item_ids), Part([], []), Part([], []), [], [])
    vectors, used = InterestMethod(model, made, name="parity").users(list(hopeful.values()))
    for user, interests, mask in zip(hopeful, vectors, used, strict=True):
        one = found[user]
        assert one.model_version == version
        assert [(click.item_id, click.weight) for click in one.window] == [
            (click.item_id, click.weight) for click in windows[user]
        ]
        assert [summary.interest for summary in one.interests] == np.flatnonzero(mask).tolist()
        items = np.array([items_of[entry.item_id] for entry in one.items])
        own = interests[[entry.interest for entry in one.items]]
        lengths = np.linalg.norm(items, axis=1) * np.linalg.norm(own, axis=1)
        expected = expected_scores(one, one.window, interests, items_of, push=system.settings.negative_push)
        differences = expected - [entry.score for entry in one.items]
        assert np.abs(differences / lengths).max() <= TOLERANCE
