from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from engine.events import ClickEvent, ItemEvent
from engine.model import MindConfig
from tests.builders import make_click
from tests.trainer.log_builders import draw_groups, make_history, make_log
from trainer import evaluate as module
from trainer.evaluate import build_cases, complete, evaluate, split_by_time
from trainer.item_cf import ItemCooccurrence
from trainer.loop import train
from trainer.options import TrainOptions
from trainer.popular import popular_items
from trainer.samples import ClickLog, UserHistory

CONFIG = MindConfig(dimensions=8, interests=2, max_clicks=2, hidden=())
OPTIONS = TrainOptions(batch_size=32, epochs=2.0, threads=1)


def test_the_split_is_by_event_time_and_keeps_equal_times_together() -> None:
    #  time  0 1 2 3 4 5 6 7      a share of a quarter starts at 6, wherever the clicks are
    #  u1    a a a a
    #  u2            b b b b
    log = ClickLog([make_history("u1", ["a"] * 4), make_history("u2", ["b"] * 4, start_ms=4)])

    before, later = split_by_time(log, 0.25)

    assert [[click.clicked_at_ms for click in history.clicks] for history in before.histories] == [[0, 1, 2, 3], [4, 5]]
    assert [[click.clicked_at_ms for click in history.clicks] for history in later.histories] == [[], [6, 7]]


def test_targets_are_later_items_outside_the_window() -> None:
    before = ClickLog([make_history("u1", ["a", "b", "c"]), make_history("u2", []), make_history("u3", ["a"])])
    later = ClickLog(
        [make_history("u1", ["a", "b", "d", "d", "-e"]), make_history("u2", ["a"]), make_history("u3", ["a"])]
    )

    cases = build_cases(before, later, max_clicks=2)

    # u1's window is b c, so a counts again; e was disliked; u3 has nothing new.
    assert [(case.history.user_id, set(case.targets)) for case in cases] == [("u1", {"a", "d"}), ("u2", {"a"})]


def test_lists_leave_the_window_out_and_fill_up_without_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    before, later = make_log({"u1": ["a", "b"]}), make_log({"u1": ["c"]})
    (case,) = build_cases(before, later, max_clicks=2)
    monkeypatch.setattr(module, "TOP", 3)

    assert complete(["a", "d", "c"], case, ["c", "b", "e", "f"]) == ["d", "c", "e"]


def test_no_method_lists_what_can_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOP", 1)
    catalog = [ItemEvent(item_id="b", removed=True)]
    before = make_log({"u1": ["a"], "u2": ["a", "b", "c"], "u3": ["a", "b"], "u4": ["a", "b", "c"]}, catalog)
    later = make_log({"u1": ["c"]})

    found = evaluate(train(before, CONFIG, OPTIONS), before, later)

    assert (found.popular_recall_at_50, found.itemcf_recall_at_50, found.recall_at_50) == (1.0, 1.0, 1.0)


def test_profile_before_the_split_holds_nothing_of_the_clicks_after_it() -> None:
    clicks = [make_click(clicked_at_ms=at, item_id=f"i{at}", profile={"last": f"i{at}"}) for at in range(10)]

    before, later = split_by_time(ClickLog([UserHistory("u1", clicks, {"last": "i9"})]), 0.2)

    assert [log.histories[0].profile for log in (before, later)] == [{"last": "i7"}, {"last": "i9"}]


def test_popular_counts_users_not_clicks() -> None:
    log = make_log({"bot": ["x"] * 9, "u1": ["b", "a"], "u2": ["a", "-x"]})

    assert popular_items(log).overall == ["a", "b", "x"]


def test_popular_lists_hold_only_what_can_be_shown() -> None:
    catalog = [
        ItemEvent(item_id="a", category="1", available=False),
        ItemEvent(item_id="b", category="1"),
        ItemEvent(item_id="c", removed=True),
        ItemEvent(item_id="d", category="2"),
    ]

    found = popular_items(make_log({"u1": ["a", "b", "c", "d", "e"], "u2": ["d"]}, catalog))

    assert found.overall == ["d", "b", "e"]
    assert found.by_category == {"2": ["d"], "1": ["b"]}


def test_item_cf_scores_equal_cosines_weighed_by_age() -> None:
    # Users: {1, 2}, {1, 2, 3}, {1, 3}; counts are 3, 2, 2.
    together = ItemCooccurrence([np.array([1, 2]), np.array([1, 2, 3, 3]), np.array([1, 3])], items=4)

    scores = together.scores(np.array([2, 1]))

    assert np.allclose(scores[1], 0.8 * 2 / np.sqrt(2 * 3))
    assert np.allclose(scores[2], 2 / np.sqrt(3 * 2))
    assert np.allclose(scores[3], 2 / np.sqrt(3 * 2) + 0.8 * 1 / np.sqrt(2 * 2))
    assert scores[4] == 0.0


def test_figures_are_means_over_all_users_worked_out_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TOP", 1)
    before = make_log({"u1": ["a", "b"], "u2": ["a", "b"], "u3": ["a", "c"], "u4": ["c"]})
    later = make_log({"u1": ["c", "d"], "u4": ["b"], "new": ["a"]})
    model = train(before, CONFIG, OPTIONS)

    found = evaluate(model, before, later)

    # Popular is a, b, c (3, 2 and 2 users). u1 saw a and b, so it is answered c: 1 of {c, d}. u4 saw c, so a: 0 of
    # {b}. The newcomer is answered a: 1 of {a}.
    assert found.users == 3
    assert found.users_without_window == 1
    assert found.popular_recall_at_50 == pytest.approx((0.5 + 0.0 + 1.0) / 3)
    assert found.popular_hitrate_at_50 == pytest.approx(2 / 3)
    assert found.popular_standard_error == pytest.approx(np.std([0.5, 0.0, 1.0], ddof=1) / 3**0.5)
    # Item-CF answers u1 with c, u4 with a (the only item beside c in a history), the newcomer with popular.
    assert found.itemcf_recall_at_50 == pytest.approx((0.5 + 0.0 + 1.0) / 3)


def test_no_later_clicks_give_zeros() -> None:
    before = make_log({"u1": ["a", "b"]})

    found = evaluate(train(before, CONFIG, OPTIONS), before, ClickLog([]))

    assert (found.users, found.recall_at_50, found.standard_error) == (0, 0.0, 0.0)


def test_a_model_beats_popular_where_users_keep_to_their_group() -> None:
    log = draw_groups(users=120, clicks=10, groups=12, per_group=12)
    before, later = split_by_time(log, 0.3)

    found = evaluate(train(before, MindConfig(dimensions=16, max_clicks=10), OPTIONS), before, later)

    assert found.recall_at_50 > 1.5 * found.popular_recall_at_50


@pytest.mark.slow
@pytest.mark.skipif(
    "MINDSTREAM_TEST_DATA" not in os.environ, reason="MINDSTREAM_TEST_DATA names no folder of data sets"
)
def test_recall_on_online_retail_is_at_least_one_and_a_half_times_popular() -> None:
    from engine.sources.online_retail import OnlineRetail

    source = OnlineRetail(Path(os.environ["MINDSTREAM_TEST_DATA"]) / "online-retail")
    by_user: dict[str, list[ClickEvent]] = defaultdict(list)
    for click in source.clicks():
        by_user[click.user_id].append(click)
    histories = [
        UserHistory(
            user, sorted(clicks, key=lambda click: (click.clicked_at_ms, click.identity)), clicks[-1].profile or {}
        )
        for user, clicks in sorted(by_user.items())
    ]
    before, later = split_by_time(ClickLog(histories, {item.item_id: item for item in source.items()}), 0.1)

    found = evaluate(train(before, MindConfig(), TrainOptions(epochs=1.0, threads=1)), before, later)

    assert found.recall_at_50 >= 1.5 * found.popular_recall_at_50
