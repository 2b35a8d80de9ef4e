"""What training starts from, against the definition in plain loops and a dense eigendecomposition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from engine.model import ItemInput, MindConfig, Vocabulary
from engine.model.network import MindNetwork
from trainer import start
from trainer.samples import Samples
from trainer.start import item_factors, near_cosines, start_items

SEQUENCES = ((1, 2, 3, 2, 1), (3, 1), (4, 4, 4), (2, 5, 1, 3, 6, 5), (7,), (6, 5, 2))
ITEMS = 8
"""Items 7 and 8 are never clicked beside another one, and neither is item 4."""


def samples_of(sequences: Sequence[Sequence[int]]) -> Samples:
    lengths = np.array([len(rows) for rows in sequences])
    users = np.repeat(np.arange(len(sequences)), lengths)
    return Samples(
        rows=np.concatenate([np.array(rows, dtype=np.int64) for rows in sequences]),
        strengths=np.ones(len(users), dtype=np.float32),
        users=users,
        starts=np.append(0, np.cumsum(lengths))[:-1],
        profile_rows=np.zeros((len(sequences), 0), dtype=np.int64),
        profile_numbers=np.zeros((len(sequences), 0), dtype=np.float32),
        targets=np.flatnonzero(users[1:] == users[:-1]) + 1,
    )


def plain_cosines(sequences: Sequence[Sequence[int]], *, reach: int) -> np.ndarray:
    together = np.zeros((ITEMS + 1, ITEMS + 1))
    for rows in sequences:
        for at, first in enumerate(rows):
            for distance, second in enumerate(rows[at + 1 : at + 1 + reach], start=1):
                if first != second:
                    together[first, second] += 1 / distance
                    together[second, first] += 1 / distance
    degrees = together.sum(axis=0)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(together / np.sqrt(np.outer(degrees, degrees)))


@pytest.mark.parametrize(("most_pairs", "reach"), [(start.MOST_PAIRS, 10), (45, 2), (1, 1)])
def test_nearer_clicks_weigh_more_and_of_many_clicks_the_nearest_pairs_are_counted(
    monkeypatch: pytest.MonkeyPatch, most_pairs: int, reach: int
) -> None:
    monkeypatch.setattr(start, "MOST_PAIRS", most_pairs)

    found = near_cosines(samples_of(SEQUENCES), items=ITEMS, reach=10).to_dense().numpy()

    assert not np.tril(found).any()
    np.testing.assert_allclose(found + found.T, plain_cosines(SEQUENCES, reach=reach), atol=1e-6)


@pytest.mark.parametrize("rank", [1, 3, 20])
def test_factors_are_the_leading_eigenvectors_of_the_roots(rank: int) -> None:
    values, vectors = np.linalg.eigh(np.sqrt(plain_cosines(SEQUENCES, reach=10)))
    kept = [at for at in range(ITEMS + 1) if values[at] > 1e-9][-rank:]
    expected = vectors[:, kept] * np.sqrt(values[kept])
    lengths = np.linalg.norm(expected, axis=1, keepdims=True)
    expected = expected / np.sqrt(np.where(lengths > 0, lengths, 1))
    expected[[0, 4, 7, 8]] = 0.0

    found = item_factors(samples_of(SEQUENCES), items=ITEMS, rank=rank, reach=10, seed=3).numpy()

    assert found.shape == (ITEMS + 1, min(rank, ITEMS + 1))
    assert not found[[0, 4, 7, 8]].any()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-4)


def test_an_item_without_neighbors_starts_among_its_like() -> None:
    items = {f"i{row}": ItemInput(f"i{row}", category="a" if row in (1, 2, 4, 7) else "b") for row in range(1, 9)}
    vocabulary = Vocabulary.build(list(items), items, [])
    rows = torch.tensor([vocabulary.field_rows(None), *(vocabulary.field_rows(item) for item in items.values())])
    network = MindNetwork(MindConfig(dimensions=6), vocabulary, rows)
    samples = samples_of(SEQUENCES)

    start_items(network, samples, horizon=3, seed=3)

    factors = item_factors(samples, items=ITEMS, rank=6, reach=10, seed=3)
    pooled = network.pool_items(torch.arange(ITEMS + 1)).detach()
    for row in (1, 2, 3, 5, 6):
        torch.testing.assert_close(pooled[row], factors[row], atol=1e-5, rtol=1e-4)
    for row in (4, 7):
        torch.testing.assert_close(pooled[row], factors[[1, 2]].mean(dim=0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pooled[8], factors[[3, 5, 6]].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_what_is_a_target_of_one_another_counts_as_together() -> None:
    vocabulary = Vocabulary.build(["i1", "i2", "i3"], {}, [])
    network = MindNetwork(MindConfig(dimensions=4), vocabulary, torch.zeros(4, 0, dtype=torch.int64))
    far = samples_of([(1, *[3] * 14, 2)])  # the first and the last click are fifteen apart
    starts = {}

    for horizon in (1, 14, 15):
        start_items(network, far, horizon=horizon, seed=3)
        starts[horizon] = network.item_ids.weight.detach().clone()

    assert not torch.equal(starts[14], starts[15])
    assert not torch.equal(starts[1], starts[14])


def test_users_of_one_click_start_from_nothing_and_are_no_error() -> None:
    found = item_factors(samples_of([(1,), (2,), (2,)]), items=2, rank=4, reach=10, seed=1)

    assert not found.any()
