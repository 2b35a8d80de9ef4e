from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from engine.errors import ConfigError
from engine.model import MindConfig
from engine.model.feature_columns import DenseFeat, MindOptions, SparseFeat, VarLenSparseFeat, from_columns
from trainer.options import TrainOptions

ITEM = [SparseFeat("movie_id", 3_000, embedding_dim=32), SparseFeat("genre", 20, embedding_dim=32)]
HISTORY = VarLenSparseFeat(
    SparseFeat("hist_movie_id", 3_000, embedding_dim=32, embedding_name="movie_id"), 50, "mean", "hist_len"
)
GENRES = VarLenSparseFeat(
    SparseFeat("hist_genre", 20, embedding_dim=32, embedding_name="genre"), 50, "mean", "hist_len"
)
USER = [
    SparseFeat("user_id", 6_000, embedding_dim=16),
    SparseFeat("gender", 2, embedding_dim=16),
    DenseFeat("age"),
    HISTORY,
    GENRES,
]


def test_the_columns_of_the_tutorial_become_a_config_and_field_names() -> None:
    found = from_columns(USER, ITEM, MindOptions(k_max=3, p=2.0, dynamic_k=True, num_sampled=9, seed=4))

    assert (found.item_id, found.item_features, found.history) == ("movie_id", ("genre",), "hist_movie_id")
    assert found.profile == ("gender", "age")
    assert found.weights is None
    assert found.training == {"negatives": 9, "seed": 4, "label_aware": True}
    assert found.config == MindConfig(
        dimensions=32,
        interests=3,
        max_clicks=50,
        accumulate_logits=True,
        agreement_scale=1.0,
        dynamic_interests=True,
        recency=False,
        hidden=(64,),
        residual=True,
        attention_power=2.0,
        normalize_interests=False,
        profile_dimensions=16,
    )


def test_what_is_said_of_training_are_options_of_the_trainer() -> None:
    found = from_columns(USER, ITEM)

    assert replace(TrainOptions(), **found.training).negatives == 5
    assert found.config.attention_power == 100.0
    assert found.config.interests == 2


def test_a_relu_at_the_end_is_the_layers_answer_alone() -> None:
    assert from_columns(USER, ITEM, MindOptions(output_activation="relu")).config.residual is False


def test_weighted_histories_weigh_their_clicks() -> None:
    found = from_columns([replace(HISTORY, weight_name="hist_weight")], ITEM)

    assert found.weights == "hist_weight"
    assert found.config.weight_power == 1.0


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"user_dnn_hidden_units": (64, 16)}, r"user_dnn_hidden_units must be ending with 32.*got \(64, 16\)"),
        ({"user_dnn_hidden_units": ()}, "user_dnn_hidden_units"),
        ({"dnn_activation": "dice"}, "dnn_activation must be relu, got 'dice'"),
        ({"dnn_use_bn": True}, "dnn_use_bn"),
        ({"dnn_dropout": 0.5}, "dnn_dropout must be 0; TrainOptions.behavior_dropout"),
        ({"l2_reg_dnn": 0.1}, "l2_reg_dnn must be 0; TrainOptions.weight_decay"),
        ({"l2_reg_embedding": 0.1}, "l2_reg_embedding must be 0 or 1e-06"),
        ({"output_activation": "tanh"}, "output_activation must be linear or relu"),
        ({"num_sampled": 0}, "num_sampled"),
        ({"p": -1.0}, "p must be"),
        ({"k_max": 0}, "interests must be at least 1"),
    ],
)
def test_an_option_without_a_counterpart_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        from_columns(USER, ITEM, replace(MindOptions(), **changes))


@pytest.mark.parametrize(
    ("user", "item", "sentence"),
    [
        ([*USER, DenseFeat("hist_len")], ITEM, "hist_len must be left out: the length of the history"),
        ([*USER, DenseFeat("topics", 8)], ITEM, "dimension of topics must be 1"),
        ([*USER, SparseFeat("zip", 9, embedding_dim=4)], ITEM, r"one size for all of them, got \[4, 16\]"),
        (USER[:3], ITEM, "sequences of movie_id in user_feature_columns must be one, the history, got \\[\\]"),
        ([HISTORY, replace(HISTORY)], ITEM, "must be one, the history"),
        ([HISTORY, VarLenSparseFeat(SparseFeat("tags"), 5)], ITEM, "table of the sequence tags must be"),
        (USER, [DenseFeat("price"), *ITEM], "item_feature_columns must be beginning with"),
        (USER, [], "item_feature_columns"),
    ],
)
def test_a_column_without_a_counterpart_is_refused_with_a_sentence(
    user: list[Any], item: list[Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        from_columns(user, item, MindOptions())


def test_the_page_tells_every_option() -> None:
    from tests.test_docs import ROOT

    section = (ROOT / "docs" / "model.md").read_text().split("## Coming from DeepMatch")[1]

    assert [option.name for option in fields(MindOptions) if f"| `{option.name}` |" not in section] == []
