"""Inner products of interests with what was found for them: the one place where scores that leave are summed.

A score is then the same wherever it is computed and whatever stands beside it. A matrix product's is not, in the last
bits, and items with equal vectors would be told apart.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from engine.compiled import compiled_sum

Kind = TypeVar("Kind", bound=np.generic)


def inner_products(
    items: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    used: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    """Return (B, K, M) inner products of B users' interests with their candidates.

    Args:
        items: (N, D) float32.
        vectors: (B, K, D) float32 interests.
        used: (B, K) bool, True for those that there are products of.
        rows: (B, M) int64 item rows, -1 for none.

    Returns:
        Minus infinity for interests not used, where there is no item, and where a product is not a number.
    """
    products = np.empty((*used.shape, rows.shape[1]), dtype=np.float32)
    # All of one kind: each other kind would be compiled, and perhaps summed, on its own.
    _sum_products(plain(items), plain(vectors), plain(used), plain(rows), products)
    return products


def plain(values: npt.NDArray[Kind]) -> npt.NDArray[Kind]:
    """Return *values* to read from, as one array after the other."""
    view = np.ascontiguousarray(values).view()
    view.flags.writeable = False
    return view


@compiled_sum
def _sum_products(
    items: npt.NDArray[np.float32],
    vectors: npt.NDArray[np.float32],
    used: npt.NDArray[np.bool_],
    rows: npt.NDArray[np.int64],
    products: npt.NDArray[np.float32],
) -> None:
    for user in range(len(rows)):
        for interest in range(vectors.shape[1]):
            # Interests outside and items inside: what the first one reads stays in the cache for the others.
            for place in range(rows.shape[1]):
                row = rows[user, place]
                product = np.float32(-np.inf)
                if row >= 0 and used[user, interest]:
                    item, vector = items[row], vectors[user, interest]
                    product = np.float32(0.0)
                    for dimension in range(len(item)):
                        product += item[dimension] * vector[dimension]
                    if np.isnan(product):
                        product = np.float32(-np.inf)
                products[user, interest, place] = product
