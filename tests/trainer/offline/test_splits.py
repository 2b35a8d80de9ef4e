from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.errors import ConfigError, SourceError
from tests.trainer.offline.builders import write
from trainer.offline.readers import read_sequences
from trainer.offline.sequences import Kind, Sequences
from trainer.offline.sets import OfflineSet, Question
from trainer.offline.splits import Split, split_sequences

DATA = os.environ.get("MINDSTREAM_TEST_DATA")


def make_users(*lists: list[int], times_ms: list[int] | None = None, items: int = 9) -> Sequences:
    return Sequences.of_lists(
        lists,
        name="users",
        kind=Kind.USERS,
        item_ids=[f"i{row}" for row in range(1, items + 1)],
        user_ids=[f"u{number}" for number in range(len(lists))],
        times_ms=None if times_ms is None else np.array(times_ms, dtype=np.int64),
    )


def named(made: OfflineSet, question: Question) -> tuple[list[str], list[str]]:
    return tuple([made.item_ids[row - 1] for row in rows.tolist()] for rows in (question.history, question.targets))  # type: ignore[return-value]


def test_a_parted_file_keeps_its_rows_and_the_first_eight_tenths_are_the_history(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "train 4 2 4\nvalid 1 2 3 1 5\ntest 9 8 7 6 5 4 3\n")

    made = split_sequences(read_sequences(path), Split.COMIREC)

    assert made.item_count == 9
    assert [rows.tolist() for rows in made.train.sequences] == [[4, 2, 4]]
    assert [(q.history.tolist(), q.targets.tolist()) for q in made.valid] == [([1, 2, 3, 1], [5])]
    assert [(q.history.tolist(), q.targets.tolist()) for q in made.test] == [([9, 8, 7, 6, 5], [3, 4])]
    assert [q.user_id for q in made.test] == ["3"]
    assert made.final_train is made.train


def test_users_of_one_click_are_not_asked_about_and_a_remark_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "train 1 2\ntest 3\nvalid 2\ntest 1 2\n")

    made = split_sequences(read_sequences(path), Split.COMIREC)

    assert [q.user_id for q in made.test] == ["4"]
    assert list(made.remarks) == ["2 users are not asked about: fewer than 2 clicks"]


def test_comirec_leaves_out_rare_items_then_short_users_and_shuffles_by_the_recipe() -> None:
    #  items 1 to 5 are common; item 6 is clicked 4 times and goes, which leaves user 10 with 4 clicks, too few
    lists = [[1, 2, 3, 4, 5]] * 10 + [[1, 2, 3, 4, 6]] + [[6, 1, 2, 3, 4, 5]] * 3
    order = [user for user in range(14) if user != 10]
    random.Random(1230).shuffle(order)

    made = split_sequences(make_users(*lists), Split.COMIREC)

    assert sorted(made.item_ids) == ["i1", "i2", "i3", "i4", "i5"]
    assert list(made.train.user_ids) == [f"u{user}" for user in order[:10]]
    assert [q.user_id for q in made.valid] == [f"u{user}" for user in order[10:11]]
    assert [q.user_id for q in made.test] == [f"u{user}" for user in order[11:]]
    assert named(made, made.test[0]) == (["i1", "i2", "i3", "i4"], ["i5"])


def test_rows_go_by_falling_count_in_training_then_by_id() -> None:
    made = split_sequences(make_users([3, 3, 7, 2, 1], [3, 7, 7, 2], items=9), Split.NEXT_CLICK)

    #  training keeps 3 3 7 2 and 3 7 7: items 3 and 7 three times, 2 once; 1 is a target alone
    assert list(made.item_ids) == ["i3", "i7", "i2", "i1"]


def test_a_users_last_click_is_the_test_target_and_the_one_before_it_the_valid_one() -> None:
    made = split_sequences(make_users([1, 2, 3, 4], [5, 6], [7]), Split.NEXT_CLICK)

    assert [named(made, q) for q in made.test] == [(["i1", "i2", "i3"], ["i4"]), (["i5"], ["i6"])]
    assert [named(made, q) for q in made.valid] == [(["i1", "i2"], ["i3"])]
    assert [len(rows) for rows in made.train.sequences] == [2, 0, 0]
    assert [len(rows) for rows in made.final_train.sequences] == [3, 1, 0]
    assert not made.of_sessions


def test_every_prefix_of_a_test_session_asks_for_the_next_click(tmp_path: Path) -> None:
    write(tmp_path / "train_sessions.txt", "a b\n" * 19 + "b c\n")
    write(tmp_path / "test_sessions.txt", "a b a c\nb\n")

    made = split_sequences(read_sequences(tmp_path), Split.NEXT_CLICK)

    assert [named(made, q) for q in made.test] == [
        (["a"], ["b"]),
        (["a", "b"], ["a"]),
        (["a", "b", "a"], ["c"]),
    ]
    assert [named(made, q) for q in made.valid] == [(["a"], ["b"]), (["b"], ["c"])]  # the last two of twenty
    assert (len(made.train.sequences), len(made.final_train.sequences)) == (18, 20)
    assert made.of_sessions


def test_the_latest_clicks_of_all_users_are_asked_for() -> None:
    #  times   u0: 0 1 2 3 4 18     u1: 5 6 ... 16 17 19; of 20 clicks the last two are test, two before them valid
    lists = [[1, 2, 3, 1, 2, 4], [5, 6, 7, 5, 6, 7, 5, 6, 7, 5, 6, 7, 8, 9]]
    times = [0, 1, 2, 3, 4, 18, *range(5, 18), 19]

    made = split_sequences(make_users(*lists, times_ms=times), Split.TIME)

    asked = {q.user_id: named(made, q) for q in made.test}
    assert asked["u0"] == (["i1", "i2", "i3", "i1", "i2"], ["i4"])
    assert asked["u1"][1] == ["i9"]
    assert [(q.user_id, len(q.history), named(made, q)[1]) for q in made.valid] == [("u1", 11, ["i7", "i8"])]
    assert made.train.click_count == 16
    assert made.final_train.click_count == 18


def test_a_user_with_no_click_before_the_moment_is_not_asked_about() -> None:
    lists = [[1, 2, 3] * 6 + [4], [5]]

    made = split_sequences(make_users(*lists, times_ms=[*range(18), 19, 18]), Split.TIME)

    assert list(made.remarks) == ["1 users are not asked about: no click before the test part"]


@pytest.mark.parametrize("split", list(Split))
def test_weights_go_where_their_clicks_go(split: Split) -> None:
    lists = [[1, 2, 3, 4, 5, 1]] * 10 + [[1, 2, 3, 4, 6], [9, 2, 3, 4, 5, 9, 9, 9, 9]]
    count = sum(map(len, lists))
    read = make_users(*lists, times_ms=list(range(count)))
    read = replace(read, weights=np.arange(count, dtype=np.float32))  # each click weighs its number

    made = split_sequences(read, split)

    def weighed(rows: np.ndarray, weights: np.ndarray | None) -> None:
        assert weights is not None
        names = [read.item_ids[row - 1] for row in read.rows[weights.astype(np.int64)].tolist()]
        assert names == [made.item_ids[row - 1] for row in rows.tolist()]
        assert weights.dtype == np.float32

    for part in (made.train, made.final_train, made.without(np.array([2])).train):
        assert part.click_count
        for rows, weights in zip(part.sequences, part.weights, strict=True):
            weighed(rows, weights)
        assert part.flat_weights().tolist() == np.concatenate(list(part.weights)).tolist()
    for question in (*made.valid, *made.test, *made.without(np.array([2])).test):
        weighed(question.history, question.weights)


def test_a_set_without_weights_has_ones() -> None:
    made = split_sequences(make_users([1, 2, 3], [3, 2]), Split.NEXT_CLICK)

    assert made.final_train.flat_weights().tolist() == [1.0, 1.0, 1.0]
    assert made.test[0].weights is None
    assert made.without(np.array([1])).final_train.flat_weights().tolist() == [1.0] * 2


@pytest.mark.parametrize("split", [Split.COMIREC, Split.TIME])
def test_sessions_split_by_next_click_alone(tmp_path: Path, split: Split) -> None:
    write(tmp_path / "train_sessions.txt", "a b\n")

    with pytest.raises(ConfigError, match=r"--split must be next-click for .*, which holds sessions, got"):
        split_sequences(read_sequences(tmp_path), split)


def test_a_set_without_times_has_no_split_by_time() -> None:
    with pytest.raises(ConfigError, match="users has no event times, got 'time'"):
        split_sequences(make_users([1, 2, 3]), Split.TIME)


def test_nobody_to_ask_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "train 1 2\ntrain 2 1\nvalid 1 2\n")

    with pytest.raises(SourceError, match="leaves nobody to ask about under --split comirec"):
        split_sequences(read_sequences(path), Split.COMIREC)


def test_nothing_to_learn_from_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.txt", "train 1\ntest 1 2\n")

    with pytest.raises(SourceError, match="leaves 1 clicks to learn from under --split comirec"):
        split_sequences(read_sequences(path), Split.COMIREC)


@pytest.mark.skipif(DATA is None, reason="MINDSTREAM_TEST_DATA names no folder of data sets")
def test_the_recipe_gives_the_very_users_of_the_parted_file_of_the_same_data() -> None:
    folder = Path(DATA or "")
    ours = split_sequences(read_sequences(folder / "s3rec-amazon-yelp-lastfm" / "Beauty.txt.gz"), Split.COMIREC)
    theirs = split_sequences(read_sequences(folder / "comirec-splits" / "beauty.txt.gz"), Split.COMIREC)

    mine = {row: None for row in range(1, ours.item_count + 1)}
    for one, other in zip([*ours.valid, *ours.test], [*theirs.valid, *theirs.test], strict=True):
        for left, right in zip(one.history.tolist(), other.history.tolist(), strict=True):
            assert mine[left] in (None, right)
            mine[left] = right
    assert [len(rows) for rows in ours.train.sequences] == [len(rows) for rows in theirs.train.sequences]
