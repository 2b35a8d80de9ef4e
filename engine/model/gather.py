"""Rows of a table by number, with gradients that are added up in one pass. Row 0 is padding, and never learns.

PyTorch's own backward of an embedding takes several times as long on a CPU. On a GPU that one is used: it is fast, and
adds in the same order every time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def gather(table: Tensor, rows: Tensor) -> Tensor:
    """Return the (..., D) rows of the (N, D) *table* at (...) int64 *rows*."""
    if table.is_cuda or not table.requires_grad:
        return functional.embedding(rows, table, padding_idx=0)
    gathered: Tensor = _Gather.apply(table, rows)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return functional.embedding(rows, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None]:
        (rows,) = ctx.saved_tensors
        total = slope.new_zeros(ctx.shape).index_add_(0, rows.flatten(), slope.reshape(-1, ctx.shape[1]))
        total[0] = 0.0
        return total, None
