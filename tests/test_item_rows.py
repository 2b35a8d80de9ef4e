from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from engine.item_rows import ItemRows


def ranks(rows: ItemRows) -> list[str]:
    return [rows.item_ids[row] for row in np.argsort(rows.ranks, kind="stable").tolist()]


@pytest.mark.parametrize("first", [(), ("m",), tuple(f"{at:05d}" for at in range(0, 3_000, 3))])
def test_ranks_order_ids_wherever_new_ones_come(first: Sequence[str]) -> None:
    rows = ItemRows(first)
    drawn = np.random.default_rng(5)
    names = [f"{at:05d}" for at in drawn.integers(3_000, size=500).tolist()] + ["m" + "a" * at for at in range(60)]
    names += [f"n{at:05d}" for at in range(2_000)] + [f"l{at:05d}" for at in range(2_000, 0, -1)]

    for name in names:
        row = rows.add(name)
        assert rows.item_ids[row] == name
        assert rows.add(name) == row

    assert ranks(rows) == sorted({*first, *names})
    assert len(set(rows.ranks.tolist())) == len(rows)
    assert int(rows.ranks.max()) < 2**32
