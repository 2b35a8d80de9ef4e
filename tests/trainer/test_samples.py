from __future__ import annotations

from dataclasses import replace

import numpy as np

from engine.events import ItemEvent
from engine.model import MindConfig
from engine.model.features import encode_windows
from tests.trainer.log_builders import draw_groups, make_history, make_log
from trainer.samples import ClickLog, build_samples, build_vocabulary, cut_windows, field_rows, user_input

CONFIG = MindConfig(max_clicks=3)


def test_the_vocabulary_ranks_items_by_clicks_then_id() -> None:
    vocabulary = build_vocabulary(make_log({"u1": ["b", "a", "c"], "u2": ["c", "-d"]}))

    assert vocabulary.item_ids == ("c", "a", "b", "d")


def test_every_click_after_a_users_first_is_a_target() -> None:
    log = make_log({"u1": ["a", "b", "c"], "u2": ["a"], "u3": [], "u4": ["b", "c"]})

    samples = build_samples(log, build_vocabulary(log), CONFIG)

    assert samples.targets.tolist() == [1, 2, 5]


def test_negative_clicks_are_neither_history_nor_target() -> None:
    log = make_log({"u1": ["a", "-b", "c"]})
    vocabulary = build_vocabulary(log)

    samples = build_samples(log, vocabulary, CONFIG)

    assert samples.rows.tolist() == [vocabulary.item_rows["a"], vocabulary.item_rows["c"]]


def test_a_window_holds_the_newest_clicks_before_its_target_and_no_other_users() -> None:
    #  u1: a b c d e     the window before e is b c d; u2: f g, the window before g is f
    log = make_log({"u1": ["a", "b", "c", "d", "e"], "u2": ["f", "g"]})
    vocabulary = build_vocabulary(log)
    samples = build_samples(log, vocabulary, CONFIG)

    windows = cut_windows(samples, np.array([4, 6]), CONFIG)

    named = [[vocabulary.item_ids[row - 1] if row else "" for row in rows] for rows in windows.rows]
    assert named == [["b", "c", "d"], ["", "", "f"]]
    assert windows.strengths.tolist() == [[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    assert windows.counts.tolist() == [1, 1]


def test_training_and_serving_cut_the_same_window() -> None:
    drawn = draw_groups(users=5).histories
    log = ClickLog([replace(h, profile={"country": f"C{n}", "age": float(n)}) for n, h in enumerate(drawn)])
    config = replace(CONFIG, max_clicks=10, weight_power=1.0)
    vocabulary = build_vocabulary(log)
    samples = build_samples(log, vocabulary, config)
    ends = np.append(samples.starts[1:], len(samples.rows)) - 1

    trained = cut_windows(samples, ends, config)
    shortened = [make_history(h.user_id, [c.item_id for c in h.clicks[:-1]], **h.profile) for h in log.histories]
    served, _ = encode_windows([user_input(h, max_clicks=50) for h in shortened], vocabulary, config)

    for name in ("rows", "strengths", "counts", "profile_rows", "profile_numbers"):
        np.testing.assert_array_equal(getattr(trained, name), getattr(served, name))


def test_field_rows_follow_the_catalog() -> None:
    log = make_log({"u1": ["a", "b", "c"]}, [ItemEvent(item_id="a", category="x"), ItemEvent(item_id="c", brand="y")])
    vocabulary = build_vocabulary(log)

    rows = field_rows(vocabulary, log.items)

    assert [field.name for field in vocabulary.item_fields] == ["brand", "category"]
    assert rows.tolist() == [[0, 0], [0, 2], [0, 0], [1, 0]]


def test_an_empty_log_has_no_samples() -> None:
    log = ClickLog([])

    samples = build_samples(log, build_vocabulary(log), CONFIG)

    assert samples.targets.size == 0
    assert log.click_count == 0
