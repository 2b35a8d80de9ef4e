"""Feature columns as users of DeepMatch write them, turned into a MindConfig and the names of our fields.

`SparseFeat`, `DenseFeat` and `VarLenSparseFeat` are spelled as there, so a script's columns can be pasted; nothing of
DeepMatch is imported. `from_columns` is the one place that maps them. docs/model.md has the table of every option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engine.errors import ConfigError
from engine.model.config import MindConfig


@dataclass(frozen=True, slots=True)
class SparseFeat:
    """One categorical value."""

    name: str
    vocabulary_size: int = 0
    """Ignored: a vocabulary is built from what training sees."""
    embedding_dim: int = 4
    embedding_name: str | None = None
    """The table it shares; None: one of its own name."""


@dataclass(frozen=True, slots=True)
class DenseFeat:
    """One number."""

    name: str
    dimension: int = 1


@dataclass(frozen=True, slots=True)
class VarLenSparseFeat:
    """A sequence of categorical values: here always the user's history, or an item feature along it."""

    sparsefeat: SparseFeat
    maxlen: int
    combiner: str = "mean"
    """Ignored: routing takes the sequence apart instead of pooling it."""
    length_name: str | None = None
    weight_name: str | None = None
    """The clicks' weights, where the history has them."""

    @property
    def name(self) -> str:
        """The name of the values inside."""
        return self.sparsefeat.name

    @property
    def table(self) -> str:
        """The embedding table of the values inside."""
        return self.sparsefeat.embedding_name or self.sparsefeat.name


IGNORED_L2 = 1e-6
"""Their default of `l2_reg_embedding`, too small to be worth a refusal."""

Column = SparseFeat | DenseFeat | VarLenSparseFeat


@dataclass(frozen=True, slots=True)
class MindOptions:
    """The options of DeepMatch's MIND, by its names and with its defaults."""

    num_sampled: int = 5
    k_max: int = 2
    p: float = 100.0
    """Releases before 0.3 had 1."""
    dynamic_k: bool = False
    user_dnn_hidden_units: tuple[int, ...] = (64, 32)
    dnn_activation: str = "relu"
    dnn_use_bn: bool = False
    l2_reg_dnn: float = 0.0
    l2_reg_embedding: float = IGNORED_L2
    dnn_dropout: float = 0.0
    output_activation: str = "linear"
    seed: int = 1024


@dataclass(frozen=True, slots=True)
class Fields:
    """What columns and options come to here."""

    config: MindConfig
    item_id: str
    """Name of the column that is an item's id, and the clicks' item id."""
    item_features: tuple[str, ...]
    """Columns that go into `ItemInput`, for history and candidates alike."""
    profile: tuple[str, ...]
    """Columns that go into `UserInput.profile`: texts for sparse ones, numbers for dense ones."""
    history: str
    """Name of the column of clicked items."""
    weights: str | None
    """Name of the column of the clicks' weights."""
    training: Mapping[str, int] = field(default_factory=dict)
    """Values of `trainer.loop.TrainOptions` by field name."""


def from_columns(
    user: Sequence[Column], item: Sequence[Column], options: MindOptions | None = None, *, user_id: str = "user_id"
) -> Fields:
    """Return our config and field names for DeepMatch's columns and options.

    The result is MIND as DeepMatch has it: logits accumulated, no recency, lengths left alone, vectors of the item
    id's size. Three things stay ours, since theirs are mistakes or not offered: starting logits are seeded and not
    drawn anew at each call, the interest count is floor(log2 n) of the distinct items, and attention multiplies the
    scores by p.

    Args:
        user: `user_feature_columns`. The sequence that shares the item id's table is the history; other sequences must
            share an item feature's, and add nothing, as history items have their features here by themselves.
        item: `item_feature_columns`, any number, the id first; the others' embedding_dim is ignored, for an item is
            the mean of its parts, each as long as the id.
        options: arguments of their `MIND`; None: their defaults.
        user_id: name of the user's key, which is no feature here: a model that knows users by name knows no new ones.

    Raises:
        ConfigError: a column or option has no counterpart.
    """
    asked = options or MindOptions()
    _check_options(asked)
    if not item or not isinstance(item[0], SparseFeat):
        raise ConfigError(
            "item_feature_columns", got=list(item[:1]), expected="beginning with the item id's SparseFeat"
        )
    item_id = item[0]
    history = _history(user, item)
    _check_lengths(user, item, item_id, asked)
    profile = [column for column in user if not isinstance(column, VarLenSparseFeat) and column.name != user_id]
    sizes = sorted({column.embedding_dim for column in profile if isinstance(column, SparseFeat)})
    if len(sizes) > 1:
        raise ConfigError("embedding_dim of the user's columns", got=sizes, expected="one size for all of them")
    config = MindConfig(
        dimensions=item_id.embedding_dim,
        interests=asked.k_max,
        max_clicks=history.maxlen,
        accumulate_logits=True,
        agreement_scale=1.0,
        dynamic_interests=asked.dynamic_k,
        recency=False,
        weight_power=1.0 if history.weight_name else 0.0,
        hidden=asked.user_dnn_hidden_units[:-1],
        residual=asked.output_activation == "linear",
        attention_power=asked.p,
        normalize_interests=False,
        profile_dimensions=sizes[0] if sizes else MindConfig().profile_dimensions,
    )
    return Fields(
        config,
        item_id=item_id.name,
        item_features=tuple(column.name for column in item if column.name != item_id.name),
        profile=tuple(column.name for column in profile),
        history=history.name,
        weights=history.weight_name,
        training={"negatives": asked.num_sampled, "seed": asked.seed, "label_aware": True},
    )


def _check_options(asked: MindOptions) -> None:
    weight_decay = "TrainOptions.weight_decay is what there is"
    checks: Sequence[tuple[str, bool, str]] = (
        ("num_sampled", asked.num_sampled >= 1, "at least 1"),
        ("p", asked.p >= 0, "a number from 0 to inf"),
        ("user_dnn_hidden_units", bool(asked.user_dnn_hidden_units), "at least one size"),
        ("dnn_activation", asked.dnn_activation == "relu", "relu"),
        ("output_activation", asked.output_activation in ("linear", "relu"), "linear or relu"),
        ("dnn_use_bn", not asked.dnn_use_bn, "False, as with it a user's interests would depend on the batch"),
        ("dnn_dropout", not asked.dnn_dropout, "0; TrainOptions.behavior_dropout is what there is"),
        ("l2_reg_dnn", not asked.l2_reg_dnn, f"0; {weight_decay}"),
        ("l2_reg_embedding", asked.l2_reg_embedding in (0.0, IGNORED_L2), f"0 or {IGNORED_L2:g}; {weight_decay}"),
    )
    for name, is_good, expected in checks:
        if not is_good:
            raise ConfigError(name, got=getattr(asked, name), expected=expected)


def _history(user: Sequence[Column], item: Sequence[Column]) -> VarLenSparseFeat:
    tables = [column.embedding_name or column.name for column in item if isinstance(column, SparseFeat)]
    sequences = [column for column in user if isinstance(column, VarLenSparseFeat)]
    for column in sequences:
        if column.table not in tables:
            expected = f"the table of a column of the item ({', '.join(tables)}), by its embedding_name"
            raise ConfigError(f"table of the sequence {column.name}", got=column.table, expected=expected)
    clicked = [column for column in sequences if column.table == tables[0]]
    if len(clicked) != 1:
        names = [column.name for column in clicked]
        raise ConfigError(f"sequences of {tables[0]} in user_feature_columns", got=names, expected="one, the history")
    return clicked[0]


def _check_lengths(user: Sequence[Column], item: Sequence[Column], item_id: SparseFeat, asked: MindOptions) -> None:
    last = asked.user_dnn_hidden_units[-1]
    if last != item_id.embedding_dim:
        expected = f"ending with {item_id.embedding_dim}, the embedding_dim of {item_id.name}, for the inner product"
        raise ConfigError("user_dnn_hidden_units", got=asked.user_dnn_hidden_units, expected=expected)
    lengths = {column.length_name for column in user if isinstance(column, VarLenSparseFeat)}
    for column in (*user, *item):
        if isinstance(column, DenseFeat) and column.dimension != 1:
            raise ConfigError(
                f"dimension of {column.name}", got=column.dimension, expected="1: give each number its own DenseFeat"
            )
        if not isinstance(column, VarLenSparseFeat) and column.name in lengths:
            raise ConfigError(
                f"column {column.name}",
                got="a feature for the layers",
                expected="left out: the length of the history is known from the history and must not reach the layers",
            )
