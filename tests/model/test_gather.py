"""Rows of a table and their gradients, against PyTorch's embedding."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from engine.model.gather import gather


@pytest.mark.parametrize("shape", [(7,), (4, 5), (3, 2, 6), (0,)])
def test_rows_and_gradients_are_those_of_an_embedding_and_padding_has_none(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(9, 4, generator=generator, requires_grad=True)
    rows = torch.randint(9, shape, generator=generator)  # repeats, and 0
    slope = torch.randn(*shape, 4, generator=generator)

    found, expected = gather(table, rows), functional.embedding(rows, table, padding_idx=0)
    (ours,) = torch.autograd.grad(found, table, slope)
    (theirs,) = torch.autograd.grad(expected, table, slope)

    assert torch.equal(found, expected)
    torch.testing.assert_close(ours, theirs)
    assert not ours[0].any()


def test_slopes_that_do_not_lie_in_one_piece_are_added_too() -> None:
    table = torch.randn(5, 3, requires_grad=True)

    gather(table, torch.tensor([1, 2, 2])).T.contiguous().sum().backward()

    assert table.grad is not None
    assert table.grad.sum(dim=1).tolist() == [0.0, 3.0, 6.0, 0.0, 0.0]
