from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import IncompatibleVersion, InvalidInput
from engine.model import InterestModel, ItemInput, UserInput, Vocabulary, mind
from engine.model.features import encode_windows
from engine.model.network import attend
from tests.model import oracle
from tests.model.mind_builders import SMALL, make_model, make_user

LONG = tuple(f"i{number}" for number in range(1, 10))


def test_interests_equal_the_published_equations_in_plain_loops() -> None:
    config = replace(SMALL, general_interest=False, residual=False, normalize_interests=False, recency=False)
    model = make_model(config)
    _, vocabulary, tensors = model.parts()
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    known, items = model.all_item_vectors()
    rows = [known.index(item) for item in LONG]
    logits = np.stack([model._network.extractor.logits[row + 1].numpy() for row in rows])

    got = model.interests([make_user(*LONG, country="UK")])

    behaviors = items[rows].astype(np.float64) @ weights["shared_map"]
    capsules, _ = oracle.route(behaviors.tolist(), logits.tolist(), [1.0] * 9, 3, rounds=3, accumulate=False)
    country = next(field for field in vocabulary["profile_fields"] if field["name"] == "country")
    # The attributes stand in order of name: age has rows 0 and 1, country follows.
    of_age = weights["profile.values.weight"][1]  # 30 is the mean of 20 and 40, so the direction adds nothing
    of_country = weights["profile.values.weight"][2 + 1 + country["values"].index("UK")]
    profile = np.concatenate([of_age, of_country])
    for slot in range(3):
        hidden = np.maximum(weights["layers.0.weight"] @ [*profile, *capsules[slot]] + weights["layers.0.bias"], 0)
        vector = np.maximum(weights["layers.1.weight"] @ hidden + weights["layers.1.bias"], 0)
        np.testing.assert_allclose(got.vectors[0, slot], vector, atol=1e-4)
    assert got.mask.tolist() == [[True, True, True, False]]


def test_item_vectors_are_the_mean_of_id_and_fields() -> None:
    model = make_model()
    _, vocabulary, tensors = model.parts()
    assert [field["name"] for field in vocabulary["item_fields"]] == ["brand", "category", "features.price"]
    row = vocabulary["items"].index("i4") + 1
    # Field rows count through brand (1), then categories by frequency, then name (c0, c1, c2), then price bands.
    fields = tensors["item_fields.weight"][[1, 2 + 1, tensors["item_field_rows"][row, 2]]]

    got = model.item_vectors([ItemInput("i4")])[0]

    np.testing.assert_allclose(got, (tensors["item_ids.weight"][row] + fields.sum(axis=0)) / 4, atol=1e-6)


@pytest.mark.parametrize("at_once", [1, 6, 21])
def test_how_many_items_are_pooled_together_changes_nothing(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    together = make_model()
    monkeypatch.setattr(mind, "ITEMS_AT_ONCE", at_once)

    apart = make_model()

    np.testing.assert_array_equal(apart.all_item_vectors()[1], together.all_item_vectors()[1])
    user = [make_user(*LONG)]
    np.testing.assert_allclose(apart.interests(user).vectors, together.interests(user).vectors, atol=1e-6)


def test_history_and_catalog_share_one_vector_an_item() -> None:
    model = make_model()
    item_ids, vectors = model.all_item_vectors()

    np.testing.assert_allclose(model.item_vectors([ItemInput(item) for item in item_ids]), vectors, atol=1e-6)


def test_a_new_item_has_the_vector_of_its_known_fields() -> None:
    model = make_model()
    tensors = model.parts()[2]

    new, like_it, unseen, nothing = model.item_vectors(
        [
            ItemInput("new", category="c1"),
            ItemInput("other", category="c1", shop="never seen"),
            ItemInput("x", category="never seen"),
            ItemInput("y"),
        ]
    )

    # The only field known: of three, the absent two don't thin the mean.
    np.testing.assert_allclose(new, tensors["item_fields.weight"][3], atol=1e-6)
    assert np.abs(new).max() > 0
    np.testing.assert_array_equal(new, like_it)
    assert not unseen.any()
    assert not nothing.any()


def test_a_known_item_moves_when_its_category_does() -> None:
    model = make_model()

    before, after, same = model.item_vectors(
        [ItemInput("i1"), ItemInput("i1", category="c2"), ItemInput("i1", category="c1")]
    )

    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_array_equal(same, before)


def test_a_user_in_a_crowd_gets_what_the_user_alone_gets() -> None:
    model = make_model()
    crowd = [make_user(*LONG[:count], country=country) for count in range(10) for country in ("FR", "UK", "??")]

    together = model.interests(crowd)

    for index, user in enumerate(crowd):
        alone = model.interests([user])
        np.testing.assert_allclose(together.vectors[index], alone.vectors[0], atol=1e-5)
        assert together.mask[index].tolist() == alone.mask[0].tolist()
        length = alone.positions.shape[1]
        shown = slice(together.positions.shape[1] - length, None)
        np.testing.assert_array_equal(together.positions[index, shown], alone.positions[0])
        np.testing.assert_allclose(together.routing_weights[index, shown], alone.routing_weights[0], atol=1e-5)


def test_two_calls_and_two_processes_give_the_same_bytes() -> None:
    model = make_model()
    code = (
        "from tests.model.mind_builders import *; import sys; "
        "u = make_user(*[f'i{n}' for n in range(1, 10)]); "
        "sys.stdout.write(make_model().interests([u]).vectors.tobytes().hex())"
    )

    here = model.interests([make_user(*LONG)]).vectors.tobytes().hex()
    again = model.interests([make_user(*LONG)]).vectors.tobytes().hex()
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    assert again == here
    assert elsewhere == here


def test_users_with_no_known_click_have_no_interest() -> None:
    found = make_model().interests([UserInput([]), UserInput(["never seen"]), make_user("i1")])

    assert found.mask.tolist() == [[False] * 4, [False] * 4, [True, False, False, False]]
    assert not found.vectors[:2].any()
    assert np.isfinite(found.vectors).all()
    assert np.isfinite(found.routing_weights).all()


def test_no_users_have_no_interests() -> None:
    found = make_model().interests([])

    assert found.vectors.shape == (0, 4, 8)
    assert found.mask.shape == (0, 4)


def test_the_newest_clicks_are_kept() -> None:
    model = make_model(replace(SMALL, max_clicks=3))

    whole = model.interests([make_user(*LONG)])
    newest = model.interests([make_user(*LONG[-3:])])

    np.testing.assert_array_equal(whole.vectors, newest.vectors)
    assert whole.positions.tolist() == [[6, 7, 8]]


def test_unknown_items_are_skipped_and_make_no_room() -> None:
    model = make_model(replace(SMALL, max_clicks=3))

    mixed = model.interests([make_user("i1", "?", "i2", "?", "?", "i3", "?")])

    np.testing.assert_array_equal(mixed.vectors, model.interests([make_user("i1", "i2", "i3")]).vectors)
    assert mixed.positions.tolist() == [[0, 2, 5]]


def test_negative_clicks_never_enter_routing() -> None:
    model = make_model()
    user = UserInput(["i1", "i2", "i3"], event_types=["click", "dislike", "purchase"])

    found = model.interests([user])

    np.testing.assert_array_equal(found.vectors, model.interests([UserInput(["i1", "i3"])]).vectors)
    assert found.positions.tolist() == [[0, 2]]


def test_newer_clicks_weigh_more_under_the_starting_recency() -> None:
    model = make_model(replace(SMALL, interests=1))
    config, vocabulary, tensors = model.parts()
    tensors["recency"] = -0.5 * np.arange(10, dtype=np.float32)

    weights = InterestModel.load_parts(config, vocabulary, tensors).interests([make_user(*LONG[:4])]).routing_weights

    np.testing.assert_allclose(weights[0, :, 0], np.exp([-1.5, -1.0, -0.5, 0.0]), rtol=1e-5)


def test_click_weights_count_when_the_config_says_so_and_never_without_bound() -> None:
    ignoring, counting = make_model(), make_model(replace(SMALL, weight_power=1.0, weight_cap=3.0, recency=False))
    light, heavy = UserInput(["i1", "i2"], [1.0, 1.0]), UserInput(["i1", "i2"], [1.0, 80_000.0])

    np.testing.assert_array_equal(ignoring.interests([light]).vectors, ignoring.interests([heavy]).vectors)
    weights = counting.interests([heavy]).routing_weights.sum(axis=-1)
    np.testing.assert_allclose(weights, [[1.0, 3.0]], rtol=1e-5)


def test_a_profile_changes_the_interests_and_an_unseen_value_means_unknown() -> None:
    model = make_model()

    french, british, unseen, absent = model.interests(
        [UserInput(["i1"], profile=profile) for profile in ({"country": "FR"}, {"country": "UK"}, {"country": "?"}, {})]
    ).vectors

    assert np.abs(french - british).max() > 1e-3
    np.testing.assert_allclose(unseen, absent, atol=1e-6)


def test_interests_in_use_differ_from_one_another() -> None:
    vectors = make_model().interests([make_user(*LONG)]).vectors[0, :3]

    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(vectors[left] - vectors[right]).max() > 1e-4


def test_every_interest_has_the_learned_length() -> None:
    found = make_model().interests([make_user(*LONG)])

    np.testing.assert_allclose(np.linalg.norm(found.vectors[found.mask], axis=-1), SMALL.interest_scale, rtol=1e-5)


def test_a_whole_number_does_for_any_number_of_a_config() -> None:
    whole = replace(SMALL, **{name: 2 for name, value in SMALL.to_dict().items() if type(value) is float})

    found = make_model(whole).interests([UserInput(["i1", "i2"])])

    np.testing.assert_allclose(np.linalg.norm(found.vectors[found.mask], axis=-1), 2.0, rtol=1e-5)


def test_parts_make_the_same_model_again() -> None:
    model = make_model()

    twin = InterestModel.load_parts(*model.parts())

    user = make_user(*LONG)
    np.testing.assert_array_equal(twin.interests([user]).vectors, model.interests([user]).vectors)
    np.testing.assert_array_equal(twin.all_item_vectors()[1], model.all_item_vectors()[1])
    assert twin.config == model.config
    assert twin.vocabulary == model.vocabulary


@pytest.mark.parametrize("name", ["shared_map", "item_ids.weight", "item_field_rows"])
def test_parts_that_do_not_fit_are_refused_by_name(name: str) -> None:
    config, vocabulary, tensors = make_model().parts()

    with pytest.raises(IncompatibleVersion, match=f"0042.*{name}"):
        InterestModel.load_parts(config, vocabulary, tensors | {name: tensors[name][:-1]}, version="0042")


def test_damaged_parts_are_refused() -> None:
    config, vocabulary, tensors = make_model().parts()
    infinite = tensors | {"shared_map": np.full((8, 8), np.nan, dtype=np.float32)}
    outside = tensors | {"item_field_rows": tensors["item_field_rows"] + 1_000}

    with pytest.raises(IncompatibleVersion, match="finite"):
        InterestModel.load_parts(config, vocabulary, infinite)
    with pytest.raises(IncompatibleVersion, match="item_field_rows"):
        InterestModel.load_parts(config, vocabulary, outside)
    with pytest.raises(IncompatibleVersion, match="vocabulary"):
        InterestModel.load_parts(config, {"items": []}, tensors)
    with pytest.raises(IncompatibleVersion, match="interests"):
        InterestModel.load_parts(config | {"interests": 0}, vocabulary, tensors)


@pytest.mark.parametrize("power", [0.0, 1.0, 5.0, math.inf])
def test_attention_weighs_the_interests_in_use_by_their_scores(power: float) -> None:
    interests = torch.tensor([[[1.0, 0.0], [-2.0, 1.0], [9.0, 9.0]]])
    target = torch.tensor([[1.0, 0.5]])
    scores = [1.0, -1.5]  # the third interest is not in use

    got = attend(interests, torch.tensor([[True, True, False]]), target, power=power)

    raised = [1.0, 0.0] if math.isinf(power) else [math.exp(power * score) for score in scores]
    weights = np.array(raised) / sum(raised)
    np.testing.assert_allclose(got[0].numpy(), weights @ interests[0, :2].numpy(), atol=1e-6)


def test_user_vectors_are_the_interests_of_windows_and_profiles() -> None:
    model = make_model()
    windows, profiles = [LONG, ("i1", "never seen"), ()], [{"country": "UK"}, {}, {}]

    vectors, mask = model.user_vectors(windows, profiles)

    found = model.interests([UserInput(window, profile=of) for window, of in zip(windows, profiles, strict=True)])
    np.testing.assert_array_equal(vectors, found.vectors)
    np.testing.assert_array_equal(mask, found.mask)
    np.testing.assert_array_equal(model.user_vectors(windows[1:])[0], vectors[1:])


def test_arrays_of_windows_give_what_their_users_give() -> None:
    model = make_model()
    users = [make_user(*LONG), UserInput([])]
    batch, _ = encode_windows(users, model.vocabulary, model.config)

    vectors, mask, weights = model.extract(batch)

    found = model.interests(users)
    np.testing.assert_array_equal(vectors, found.vectors)
    np.testing.assert_array_equal(mask, found.mask)
    np.testing.assert_array_equal(weights, found.routing_weights)


def test_numbers_of_a_profile_change_the_interests_and_lie_within_bounds() -> None:
    model = make_model()

    young, old, ancient, oldest = model.user_vectors(
        [("i1",)] * 4, [{"age": age} for age in (20.0, 40.0, 1e9, math.inf)]
    )[0]

    assert np.abs(young - old).max() > 1e-3
    np.testing.assert_array_equal(ancient, oldest)


def test_nan_in_an_input_is_refused_by_name() -> None:
    model = make_model(replace(SMALL, weight_power=1.0))

    with pytest.raises(InvalidInput, match="field age must be a text or a number, got nan"):
        model.user_vectors([("i1",)], [{"age": math.nan}])
    with pytest.raises(InvalidInput, match="the weight of a click"):
        model.interests([UserInput(["i1"], [math.nan])])
    with pytest.raises(InvalidInput, match=r"field features\.price"):
        model.item_vectors([ItemInput("i1", features={"price": math.nan})])
    with pytest.raises(InvalidInput, match=r"field features\.size"):
        Vocabulary.build(["a"], {"a": ItemInput("a", features={"size": math.nan})}, [])


@pytest.mark.parametrize("row", [-1, 21])
def test_rows_that_are_no_items_are_refused(row: int) -> None:
    model = make_model()
    batch, _ = encode_windows([make_user(*LONG)], model.vocabulary, model.config)

    with pytest.raises(InvalidInput, match=f"WindowBatch.rows must be from 0 to 20, got {row}"):
        model.extract(replace(batch, rows=np.full_like(batch.rows, row)))


def test_interests_keep_their_places_when_routing_starts_from_the_previous_ones() -> None:
    model = make_model(replace(SMALL, agreement_scale=30.0, dynamic_interests=False))
    user, nobody = make_user(*LONG), UserInput([])
    before = model.interests([user, nobody]).vectors
    swapped = before[:, [0, 2, 1, 3]].copy()

    cold = model.interests([user, nobody], previous=np.zeros_like(before))
    warm = model.interests([user, nobody], previous=swapped)

    np.testing.assert_array_equal(cold.vectors, before)
    assert not warm.vectors[1].any()
    own, other = (float(warm.vectors[0, 1] @ swapped[0, slot]) for slot in (1, 2))
    assert own > other


def test_the_package_needs_only_torch_safetensors_and_numpy() -> None:
    code = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(name)
REFUSED = {"msgspec", "pydantic", "pydantic_settings", "structlog", "prometheus_client", "fsspec", "faust", "aiokafka",
           "kafka", "rocksdict", "hnswlib", "fastapi", "uvicorn", "typer", "rich", "pyarrow", "jgo", "psutil"}
sys.meta_path.insert(0, Refuse())
import engine.model, engine.model.mind
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
