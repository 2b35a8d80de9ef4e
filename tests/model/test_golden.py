"""A stored model of the extractor `mind` must load and answer as on the day it was stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from engine.model.features import encode_windows
from engine.model.network import WindowTensors
from engine.model.routing import route, starting_logits
from tests.model.golden_builders import SHAPES, golden_model, golden_parts, golden_users

STORED = json.loads((Path(__file__).parent.parent / "golden" / "mind_interests.json").read_text())


def test_a_stored_model_answers_as_on_the_day_it_was_stored() -> None:
    found = golden_model().interests(golden_users())

    np.testing.assert_allclose(found.vectors, STORED["vectors"], atol=2e-6)
    np.testing.assert_allclose(found.routing_weights, STORED["routing_weights"], atol=2e-6)


def test_a_config_stored_before_there_were_extractors_and_general_interests_means_mind_without_one() -> None:
    _, vocabulary, tensors = golden_parts()

    assert "extractor" not in STORED["config"]
    assert "general_interest" not in STORED["config"]
    model = type(golden_model()).load_parts(STORED["config"], vocabulary, tensors)

    assert model.config.extractor == "mind"
    assert not model.config.general_interest
    assert set(model.parts()[2]) == {*SHAPES, "item_field_rows"}


def test_the_default_network_gives_the_bytes_of_its_equations_one_by_one() -> None:
    model = golden_model()
    config, network = model.config, model._network
    batch, _ = encode_windows(golden_users(), model.vocabulary, config)
    windows = WindowTensors.of(batch, torch.device("cpu"))
    logits = torch.from_numpy(starting_logits(model.vocabulary.item_ids, interests=4, seed=7))

    with torch.inference_mode():
        table = network.pool_items(torch.arange(21)) @ network.extractor.shared_map
        capsules, weights = route(
            table[windows.rows],
            windows.strengths * network.recency[:9].flip(0).exp(),
            logits[windows.rows],
            windows.counts,
            rounds=3,
            accumulate=False,
            scale=30.0,
        )
        profiles = network.profile(windows.profile_rows, windows.profile_numbers)
        hidden = torch.cat([profiles.unsqueeze(1).expand(-1, 4, -1), capsules], dim=-1)
        hidden = network.layers[1](functional.relu(network.layers[0](hidden)))
        vectors = functional.normalize(capsules + hidden, dim=-1) * network.scale
        vectors = vectors * (torch.arange(4) < windows.counts.unsqueeze(-1)).unsqueeze(-1)

    found = model.interests(golden_users())
    assert found.vectors.tobytes() == vectors.numpy().tobytes()
    assert found.routing_weights.tobytes() == weights.numpy().tobytes()
