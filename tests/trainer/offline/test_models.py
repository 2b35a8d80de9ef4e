"""The methods that answer with vectors, their lists as served, cold items, and the export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from engine.events import ItemEvent
from engine.merge import ListLimits
from engine.model import MindConfig, UserInput
from engine.model.features import encode_windows
from tests.trainer.log_builders import make_log
from tests.trainer.offline.builders import ask, make_part, make_set
from trainer.offline.arrays import question_windows, training_arrays, vocabulary_rows
from trainer.offline.cold import cold_rows, judge_cold, withhold
from trainer.offline.export import export_vectors
from trainer.offline.neural import InterestMethod, interest_scores, train_method, with_extractor
from trainer.offline.recall import recall_lists
from trainer.offline.search import answer
from trainer.offline.sets import OfflineSet, Part
from trainer.offline.two_tower import TwoTower
from trainer.options import TrainOptions
from trainer.samples import build_samples, build_vocabulary

CONFIG = MindConfig(dimensions=16, interests=3, max_clicks=8)
OPTIONS = TrainOptions(batch_size=64, epochs=3, max_seconds=20, threads=1)
KEPT = ListLimits(size=50, floor=0.1, cap=0.7)


def two_tastes(*, users: int = 120, catalog: bool = False) -> OfflineSet:
    """Users like rows 1 to 8 or rows 9 to 16, categories low and high; row 17 is in the catalog alone, high."""
    random = np.random.default_rng(2)
    tastes = [np.arange(1, 9), np.arange(9, 17)]
    part = make_part(*(random.permutation(tastes[user % 2])[:6].tolist() for user in range(users)))
    questions = [ask([1, 2, 3, 4], [5, 6], "low"), ask([9, 10, 11, 12], [13, 17], "high")]
    items = {f"i{row}": ItemEvent(item_id=f"i{row}", category="low" if row < 9 else "high") for row in range(1, 18)}
    return make_set(part, questions, items=17, valid=questions, catalog=items if catalog else None)


@pytest.fixture(scope="module")
def trained() -> tuple[OfflineSet, InterestMethod]:
    made = two_tastes(catalog=True)
    return made, train_method(made, made.train, CONFIG, OPTIONS, name="model")


def test_arrays_are_those_of_the_log_with_the_same_clicks() -> None:
    log = make_log({"u1": ["a", "b", "c"], "u2": ["c"], "u3": ["c", "a"]})
    vocabulary = build_vocabulary(log)
    expected = build_samples(log, vocabulary, CONFIG)
    lists = [[vocabulary.item_rows[click.item_id] for click in history.clicks] for history in log.histories]
    part = make_part(*lists)
    made = replace(make_set(part, [], items=4), item_ids=[*vocabulary.item_ids, "never clicked"])

    samples, words, rows = training_arrays(made, part, CONFIG)

    assert words == vocabulary
    assert rows.shape == (4, 0)
    for name in ("rows", "strengths", "users", "starts", "targets"):
        assert np.array_equal(getattr(samples, name), getattr(expected, name)), name


def test_weights_reach_training_and_questions_where_the_model_counts_them() -> None:
    part = replace(make_part([1, 2, 3]), weights=[np.array([1.0, 3.0, 100.0], dtype=np.float32)])
    made = make_set(part, [replace(ask([1, 2], [3]), weights=np.array([1.0, 3.0], dtype=np.float32))], items=3)
    counting = replace(CONFIG, weight_power=1.0, weight_cap=3.0)

    heavy, words, _ = training_arrays(made, part, counting)
    ignored, _, _ = training_arrays(made, part, CONFIG)

    assert heavy.strengths.tolist() == [1.0, 2.0, 3.0]
    assert ignored.strengths.tolist() == [1.0, 1.0, 1.0]
    row_of = vocabulary_rows(made, words)
    windows, _ = question_windows([*made.test, ask([1, 2], [3])], row_of, words, counting)
    assert windows.strengths.tolist() == [[1.0, 2.0], [1.0, 1.0]]


def test_what_a_question_shows_the_model_is_what_a_user_does() -> None:
    config = replace(CONFIG, max_clicks=3, weight_power=1.0, weight_cap=9.0)
    part = make_part([1, 2, 3, 4, 5])
    questions = [
        replace(ask([5, 6, 1, 2, 3, 6], [4]), weights=np.array([1, 2, 3, 4, 5, 6], dtype=np.float32)),
        ask([], [1]),
        ask([6, 6], [1]),
        ask([4, 4], [1]),
    ]
    made = make_set(part, questions, items=6)
    _, words, _ = training_arrays(made, part, config)
    users = [
        UserInput([made.item_ids[row - 1] for row in one.history], () if one.weights is None else one.weights.tolist())
        for one in questions
    ]

    windows, positions = question_windows(questions, vocabulary_rows(made, words), words, config)
    expected, expected_positions = encode_windows(users, words, config)

    assert windows.counts.tolist()[1:3] == [0, 0]  # item 6 was never trained on
    assert windows.rows.shape == (4, 3)
    assert positions.tolist() == expected_positions.tolist()
    for name in ("rows", "strengths", "counts", "profile_rows", "profile_numbers"):
        assert np.array_equal(getattr(windows, name), getattr(expected, name)), name


def test_items_of_a_users_taste_come_first(trained: tuple[OfflineSet, InterestMethod]) -> None:
    made, method = trained

    found = answer(method, made.test, items=made.item_count, top=4)

    assert set(found.excluded[0].tolist()) == {5, 6, 7, 8}
    assert set(found.excluded[1].tolist()) <= {13, 14, 15, 16, 17}


def test_scores_are_the_best_inner_products_of_interests_in_use() -> None:
    vectors = torch.tensor([[[1.0, 0.0], [0.0, 9.0]], [[1.0, 0.0], [0.0, 0.0]]])
    used = torch.tensor([[True, False], [False, False]])

    scores = interest_scores(vectors, used, torch.tensor([[0.0, 0.0], [-2.0, 5.0]]))

    assert scores.tolist() == [[0.0, -2.0], [-torch.inf, -torch.inf]]  # not 45, and not 0


def test_an_item_that_training_never_saw_is_recalled_by_its_category(
    trained: tuple[OfflineSet, InterestMethod],
) -> None:
    made, method = trained

    assert method.has_vector[17]
    assert 17 in answer(method, made.test, items=made.item_count, top=5).excluded[1]


def test_an_item_with_neither_training_nor_fields_is_never_in_a_list() -> None:
    made = two_tastes()
    method = train_method(made, made.train, CONFIG, OPTIONS, name="model")

    found = answer(method, made.test, items=made.item_count, top=17)

    assert not method.has_vector[17]
    assert 17 not in found.kept


def test_served_lists_obey_floor_and_cap_and_leave_the_history_out(
    trained: tuple[OfflineSet, InterestMethod],
) -> None:
    made, method = trained

    lists = recall_lists(method, made.test, ranks=made.ranks, limits=KEPT).served

    for rows, question in zip(lists, made.test, strict=True):
        inside = rows[rows > 0].tolist()
        assert len(set(inside)) == len(inside) == 13
        assert not set(inside) & set(question.history.tolist())


def test_without_floor_and_cap_the_served_list_is_the_exact_one(trained: tuple[OfflineSet, InterestMethod]) -> None:
    made, method = trained

    found = recall_lists(method, made.test, ranks=made.ranks, limits=ListLimits(size=50, floor=0.0, cap=1.0))

    assert found.served.tolist() == found.answers.excluded.tolist()


def test_an_outside_evaluator_finds_our_lists_in_the_export(
    trained: tuple[OfflineSet, InterestMethod], tmp_path: Path
) -> None:
    made, method = trained
    path = tmp_path / "out" / "vectors.npz"

    export_vectors(path, method, made, made.test)

    with np.load(path, allow_pickle=False) as found:
        held = {name: found[name] for name in found.files}
    assert held["item_vectors"].shape == (18, 16)
    assert (held["item_ids"][5], held["user_ids"].tolist()) == ("i5", ["low", "high"])
    assert (held["history_ptr"].tolist(), held["target_ptr"].tolist()) == ([0, 4, 8], [0, 2, 4])
    assert held["target_ids"].tolist() == [5, 6, 13, 17]
    ours = answer(method, made.test, items=made.item_count, top=5).excluded
    for user in range(2):
        scores = held["user_vectors"][user][held["interest_mask"][user]] @ held["item_vectors"].T
        best = scores.max(axis=0)
        best[0] = -np.inf
        best[held["history_ids"][held["history_ptr"][user] : held["history_ptr"][user + 1]]] = -np.inf
        assert np.argsort(-best, kind="stable")[:5].tolist() == ours[user].tolist()
    assert not list(path.parent.glob("*.new"))


def test_two_towers_learn_the_tastes_too() -> None:
    made = two_tastes(catalog=True)

    method = TwoTower(made, made.train, CONFIG, replace(OPTIONS, epochs=20))

    assert set(answer(method, made.test, items=made.item_count, top=3).excluded[0].tolist()) <= {5, 6, 7, 8}


def test_withheld_items_leave_training_and_histories_and_stay_targets() -> None:
    made, rows = withhold(two_tastes(), 0.2, seed=1)

    assert len(rows) == 3
    assert not np.isin(made.train.flat(), rows).any()
    assert not any(np.isin(question.history, rows).any() for question in made.test)
    assert [question.targets.tolist() for question in made.test] == [[5, 6], [13, 17]]
    assert made.final_train is made.train
    assert set(rows.tolist()) <= set(cold_rows(made, made.train).tolist())


def test_cold_items_are_judged_among_themselves_beside_chance_and_popular_in_category(
    trained: tuple[OfflineSet, InterestMethod],
) -> None:
    made, method = trained

    found = judge_cold(method, made, made.train, made.test)

    assert found is not None
    assert (found.items, found.questions, found.chance) == (1, 1, 1.0)
    assert found.recall_at_50.mean == 1.0
    assert found.popular_in_category is not None


def test_popular_in_category_prefers_the_categories_of_the_history() -> None:
    #  60 cold items of each of two categories, one click of category b in the history: its 50 fill the list
    catalog = {f"i{row}": ItemEvent(item_id=f"i{row}", category="ab"[row % 2]) for row in range(1, 125)}
    part = make_part([1, 2, 3, 4], [2, 4, 2])
    made = make_set(part, [ask([1], [5, 7, 6])], items=124, catalog=catalog)

    found = judge_cold(_Nothing(124), made, part, made.test)

    assert found is not None
    assert found.popular_in_category is not None
    assert found.popular_in_category.mean == pytest.approx(2 / 3)  # 5 and 7 are of category b, 6 is not
    assert found.recall_at_50.mean == 0.0


class _Nothing:
    name = "nothing"

    def __init__(self, items: int) -> None:
        self._items = items

    def scores(self, questions: list[object]) -> torch.Tensor:
        return torch.full((len(questions), self._items + 1), -torch.inf)


def test_no_cold_target_is_nothing_to_judge() -> None:
    part: Part = make_part([1, 2])
    made = make_set(part, [ask([1], [2])], items=2)

    assert judge_cold(_Nothing(2), made, part, made.test) is None


def test_the_extractor_single_has_one_interest() -> None:
    assert with_extractor(MindConfig(interests=4), "single").interests == 1
    assert with_extractor(MindConfig(interests=4), None).interests == 4


def test_an_unknown_extractor_is_refused() -> None:
    with pytest.raises(ConfigError, match="extractor"):
        with_extractor(MindConfig(), "capsules")
