"""What every extractor must keep, whatever it computes; what each computes stands in the tests beside it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.errors import ConfigError
from engine.model import InterestModel, MindConfig, UserInput
from engine.model.config import EXTRACTORS
from engine.model.features import encode_windows
from engine.model.network import WindowTensors
from tests.model.mind_builders import SMALL, make_model, make_user

LONG = tuple(f"i{number}" for number in range(1, 10))
WITHOUT_PLACES = [name for name in EXTRACTORS if name not in ("comirec-sa", "capsnet")]
every_extractor = pytest.mark.parametrize("name", EXTRACTORS)


def config_of(name: str, **changes: object) -> MindConfig:
    return replace(SMALL, extractor=name, interests=1 if name == "single" else 4, **changes)  # type: ignore[arg-type]


@every_extractor
def test_a_user_in_a_crowd_gets_what_the_user_alone_gets(name: str) -> None:
    model = make_model(config_of(name))
    crowd = [make_user(*LONG[:count], *LONG[: count // 2]) for count in range(10)]

    together = model.interests(crowd)

    for index, user in enumerate(crowd):
        alone = model.interests([user])
        np.testing.assert_allclose(together.vectors[index], alone.vectors[0], atol=1e-5)
        assert together.mask[index].tolist() == alone.mask[0].tolist()
        length = alone.positions.shape[1]
        shown = together.routing_weights[index, together.routing_weights.shape[1] - length :]
        np.testing.assert_allclose(shown, alone.routing_weights[0], atol=1e-5)


@every_extractor
def test_the_same_batch_gives_the_same_bytes_in_two_processes(name: str) -> None:
    code = (
        "import sys; from tests.model.test_extractors import *; "
        f"found = make_model(config_of({name!r})).interests([make_user(*LONG), make_user(*LONG[:3])]); "
        "sys.stdout.write((found.vectors.tobytes() + found.routing_weights.tobytes()).hex())"
    )
    model = make_model(config_of(name))
    users = [make_user(*LONG), make_user(*LONG[:3])]

    first, second = model.interests(users), model.interests(users)
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    here = (first.vectors.tobytes() + first.routing_weights.tobytes()).hex()
    assert (second.vectors.tobytes() + second.routing_weights.tobytes()).hex() == here
    assert elsewhere == here


@every_extractor
def test_interests_beyond_the_count_are_zero_and_masked_and_unexplained(name: str) -> None:
    found = make_model(config_of(name)).interests([make_user("i1"), make_user(*LONG[:4]), UserInput([])])

    used = found.mask.sum(axis=1).tolist()
    assert used == {"single": [1, 1, 0], "mind": [1, 3, 0]}.get(name, [1, 2, 0])
    for index, count in enumerate(used):
        assert np.abs(found.vectors[index, :count]).max(initial=1.0) > 0.1
        assert not found.vectors[index, count:].any()
        assert not found.routing_weights[index, :, count:].any()


@every_extractor
def test_weights_of_padding_are_zero_and_every_interest_in_use_has_a_click(name: str) -> None:
    found = make_model(config_of(name)).interests([make_user("i1", "i2"), make_user(*LONG)])

    assert not found.routing_weights[found.positions < 0].any()
    assert (found.routing_weights.sum(axis=1)[found.mask] > 0).all()


@every_extractor
def test_negative_clicks_never_enter(name: str) -> None:
    model = make_model(config_of(name))
    user = UserInput(["i1", "i2", "i3"], event_types=["click", "hide", "purchase"])

    np.testing.assert_array_equal(model.interests([user]).vectors, model.interests([UserInput(["i1", "i3"])]).vectors)


@every_extractor
def test_the_newest_clicks_are_kept(name: str) -> None:
    model = make_model(config_of(name, max_clicks=3))

    np.testing.assert_array_equal(
        model.interests([make_user(*LONG)]).vectors, model.interests([make_user(*LONG[-3:])]).vectors
    )


@pytest.mark.parametrize("name", WITHOUT_PLACES)
def test_clicks_of_one_age_may_stand_in_any_order(name: str) -> None:
    model = make_model(config_of(name, recency=False))
    clicks = ["i1", "i2", "i3", "i2", "i5", "i6", "i1"]

    straight, reversed_ = model.interests([UserInput(clicks)]), model.interests([UserInput(clicks[::-1])])

    as_sets = [{tuple(vector.round(3).tolist()) for vector in found.vectors[0]} for found in (straight, reversed_)]
    assert as_sets[0] == as_sets[1]


@pytest.mark.parametrize("name", [name for name in EXTRACTORS if name != "single"])
def test_interests_in_use_differ_from_one_another(name: str) -> None:
    vectors = make_model(config_of(name)).interests([make_user(*LONG)]).vectors[0, :3]

    for left, right in ((0, 1), (0, 2), (1, 2)):
        assert np.abs(vectors[left] - vectors[right]).max() > 1e-3


@every_extractor
def test_fewer_clicks_than_fixed_interests_leave_nothing_empty_or_infinite(name: str) -> None:
    model = make_model(config_of(name, dynamic_interests=False, recency=False))

    found = model.interests([UserInput(["i1"]), UserInput(["i1", "i1", "i2", "i1", "i3"])])

    assert found.mask.all()
    assert np.isfinite(found.vectors).all()
    assert (found.routing_weights.sum(axis=1) > 0).all()


@every_extractor
def test_windows_of_zero_vectors_and_clicks_of_no_weight_are_finite(name: str) -> None:
    config, vocabulary, tensors = make_model(config_of(name, weight_power=1.0)).parts()
    nothing = {table: np.zeros_like(tensors[table]) for table in ("item_ids.weight", "item_fields.weight")}
    zero = InterestModel.load_parts(config, vocabulary, tensors | nothing)
    model = InterestModel.load_parts(config, vocabulary, tensors)

    for found in (zero.interests([make_user(*LONG)]), model.interests([UserInput(["i1", "i2"], [0.0, 0.0])])):
        assert np.isfinite(found.vectors).all()
        assert np.isfinite(found.routing_weights).all()


@every_extractor
def test_gradients_reach_items_and_every_parameter_of_the_extractor(name: str) -> None:
    network = make_model(config_of(name))._network.train().requires_grad_(True)
    rows = torch.arange(1, 10).unsqueeze(0)
    items = network.pool_items(rows)
    items.retain_grad()

    counts = torch.tensor([1 if name == "single" else 4])
    capsules, _ = network.extractor(network.map_behaviors(items), torch.ones(1, 9), rows, counts)
    capsules.square().sum().backward()

    assert items.grad is not None
    assert items.grad.abs().sum() > 0
    for parameter in network.extractor.parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@every_extractor
@pytest.mark.parametrize("warm", [False, True])
def test_training_makes_the_interests_that_serving_makes(name: str, warm: bool) -> None:
    model = make_model(config_of(name))
    network, random = model._network, torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.extractor.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random)
    batch, _positions = encode_windows([make_user(*LONG), make_user(*LONG[:3])], model.vocabulary, model.config)
    windows = WindowTensors.of(batch, torch.device("cpu"))
    previous = torch.randn(2, model.config.interests, model.config.dimensions, generator=random) if warm else None

    found = []
    for training in (False, True):
        network.train(training)
        found.append(network(network.map_behaviors(network.pool_items(windows.rows)), windows, previous))

    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


@every_extractor
def test_parts_make_the_same_model_again_under_names_without_the_word_extractor(name: str) -> None:
    model = make_model(config_of(name))

    twin = InterestModel.load_parts(*model.parts())

    np.testing.assert_array_equal(
        twin.interests([make_user(*LONG)]).vectors, model.interests([make_user(*LONG)]).vectors
    )
    assert not [stored for stored in model.parts()[2] if "extractor" in stored]


def test_an_unknown_extractor_is_refused_with_the_names_of_the_known() -> None:
    with pytest.raises(ConfigError, match=r"extractor must be one of mind, comirec-sa.*got 'transformer'"):
        MindConfig(extractor="transformer")


def test_the_single_vector_is_refused_more_than_one_interest() -> None:
    with pytest.raises(ConfigError, match="interests must be 1 with the extractor single, got 4"):
        MindConfig(extractor="single")
