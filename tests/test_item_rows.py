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


def test_rows_of_many_items_come_one_after_the_other_and_unknown_ones_have_none() -> None:
    rows = ItemRows(["a", "b", "c"])
    rows.add("new")

    found = rows.flat_rows([["c", "a"], [], ["nowhere", "new"]])

    assert found.rows.tolist() == [2, 0, -1, 3]
    assert found.starts.tolist() == [0, 2, 2, 4]
    assert found.part(1, 3).rows.tolist() == [-1, 3]
    assert found.part(1, 3).starts.tolist() == [0, 0, 2]


def test_ids_that_somebody_numbers_already_are_looked_up_there() -> None:
    numbers = {"a": 1, "gone": 2, "c": 3}
    rows = ItemRows(["c", "a", "beside"], numbers)

    assert [rows.row(item_id) for item_id in ("c", "a", "beside", "gone", "nowhere")] == [0, 1, 2, None, None]
    assert "gone" not in rows
    assert [rows.add(item_id) for item_id in ("gone", "nowhere", "c")] == [3, 4, 0]
    assert [rows.row(item_id) for item_id in ("gone", "nowhere")] == [3, 4]
    assert ranks(rows) == sorted(["c", "a", "beside", "gone", "nowhere"])
    assert rows.mask({"gone", "beside", "unheard"}).tolist() == [False, False, True, True, False]
    assert numbers == {"a": 1, "gone": 2, "c": 3}
