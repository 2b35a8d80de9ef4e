"""The live index finds what an exact index over the current items finds, whatever came before."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from engine.ann.exact import ExactIndex
from engine.ann.hnsw import HnswIndex
from engine.ann.index import Rows, Vectors
from engine.ann.live import CACHE_LINE_BYTES, Base, Build, LiveIndex, room_for, with_room
from engine.errors import DimensionMismatch
from tests.ann.vectors import make_vectors

D = 8
BUILDERS: dict[str, Build] = {"exact": ExactIndex, "hnsw": HnswIndex.build}


def make_live(
    count: int, *, backend: str = "exact", rebuild_at: int = 1_000_000, has_room: bool = False
) -> tuple[LiveIndex, dict[int, Vectors]]:
    vectors, build = make_vectors(count), BUILDERS[backend]
    room = with_room(vectors) if has_room else None
    base = build(vectors if room is None else room[:count], rows=np.arange(count))
    live = LiveIndex(base, build=build, rebuild_at=rebuild_at, room=room)
    return live, dict(enumerate(vectors))


def find(live: LiveIndex, query: Vectors, k: int) -> list[int]:
    rows, scores = live.search(query[None], k)
    assert rows.shape == scores.shape == (1, k)
    assert (rows >= 0).tolist() == np.isfinite(scores).tolist()
    return [row for row in rows[0].tolist() if row >= 0]


def best(items: dict[int, Vectors], query: Vectors, k: int) -> list[int]:
    scores = {row: np.einsum("d,d->", vector, query) for row, vector in items.items()}
    return sorted(items, key=lambda row: (-scores[row], row))[:k]


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["exact", "hnsw"]),
    st.lists(st.tuples(st.sampled_from(["put", "remove", "catch up"]), st.integers(0, 19)), max_size=60),
    st.integers(1, 30),
    st.booleans(),
)
def test_any_changes_leave_what_an_exact_index_of_the_current_items_finds(
    backend: str, changes: list[tuple[str, int]], k: int, has_room: bool
) -> None:
    live, items = make_live(15, backend=backend, rebuild_at=6, has_room=has_room)
    rows, query = 15, make_vectors(1, seed=77)[0]
    for at, (change, number) in enumerate(changes):
        if change == "put":
            row = min(number, rows)
            rows = max(rows, row + 1)
            items[row] = make_vectors(1, seed=1_000 + at)[0]
            live.put([row], items[row][None])
        elif change == "remove":
            row = min(number, rows - 1)
            items.pop(row, None)
            live.remove([row])
        else:
            live.catch_up()
            live.wait_for_build()
        assert find(live, query, k) == best(items, query, k)
        assert live.size == len(items)
    for row, vector in items.items():
        assert live.vectors[row].tolist() == vector.tolist()


def test_a_base_is_built_beside_and_taken_over_between_two_searches() -> None:
    live, items = make_live(200, backend="hnsw", rebuild_at=50)
    query, built = make_vectors(1, seed=3)[0], REGISTRY.get_sample_value("mindstream_index_rebuilds_total", TAKEN) or 0
    for row in range(150, 210):
        items[row] = make_vectors(1, seed=row)[0]
        live.put([row], items[row][None])
    before = find(live, query, 20)

    live.catch_up()
    assert (live.delta_size, find(live, query, 20)) == (60, before)
    items[205] = query * 10  # changed while the base is built
    live.put([205], items[205][None])
    live.remove([160])
    items.pop(160)
    live.wait_for_build()
    assert live.delta_size == 59
    live.catch_up()

    assert live.delta_size == 1
    assert find(live, query, 20) == best(items, query, 20)
    assert find(live, query, 1) == [205]
    assert REGISTRY.get_sample_value("mindstream_index_rebuilds_total", TAKEN) == built + 1


TAKEN = {"outcome": "taken"}


def test_a_base_that_can_not_be_built_leaves_what_serves_and_is_tried_again() -> None:
    tries: list[int] = []

    def build(vectors: Vectors, *, rows: Rows) -> Base:
        tries.append(len(rows))
        if len(tries) == 1:
            raise MemoryError("no room")
        return ExactIndex(vectors, rows=rows)

    live = LiveIndex(ExactIndex(make_vectors(10)), build=build, rebuild_at=2)
    items = dict(enumerate(make_vectors(10)))
    query = make_vectors(1, seed=3)[0]
    for row in range(10, 15):
        items[row] = make_vectors(1, seed=row)[0]
        live.put([row], items[row][None])
        live.catch_up()
        live.wait_for_build()
        assert find(live, query, 5) == best(items, query, 5)
    live.catch_up()

    assert (tries, live.delta_size) == ([12, 14], 1)


def test_removed_items_do_not_shorten_an_answer() -> None:
    live, items = make_live(300, backend="hnsw")
    query = make_vectors(1, seed=3)[0]
    gone = best(items, query, 150)

    live.remove(gone)

    assert find(live, query, 100) == best({row: items[row] for row in items if row not in gone}, query, 100)


def test_the_base_is_neither_written_to_nor_copied_before_something_changes() -> None:
    vectors = make_vectors(20)
    base = ExactIndex(vectors)
    live = LiveIndex(base, build=ExactIndex, rebuild_at=10)
    assert np.shares_memory(live.vectors, base.vectors)

    live.put([3], make_vectors(1, seed=9))

    assert base.vectors.tolist() == vectors.tolist()


@pytest.mark.parametrize("backend", BUILDERS)
def test_with_room_nothing_is_copied_before_the_room_is_used_up(backend: str) -> None:
    vectors = make_vectors(40)
    room = with_room(vectors)
    live = LiveIndex(BUILDERS[backend](room[:40], rows=np.arange(40)), build=BUILDERS[backend], rebuild_at=9, room=room)
    new = make_vectors(room_for(40) - 40 + 1, seed=9)

    live.put([3, *range(40, room_for(40))], new)
    assert np.shares_memory(live.vectors, room)
    live.put([room_for(40)], new[:1])

    assert not np.shares_memory(live.vectors, room)
    assert live.vectors.tolist() == [
        *vectors[:3].tolist(),
        new[0].tolist(),
        *vectors[4:].tolist(),
        *new[1:].tolist(),
        new[0].tolist(),
    ]
    assert find(live, new[0], 60) == best(dict(enumerate(live.vectors)), new[0], 60)


@pytest.mark.parametrize("backend", BUILDERS)
def test_whose_base_nobody_else_holds_is_gone_once_a_new_one_serves(backend: str) -> None:
    vectors = make_vectors(40)
    base = BUILDERS[backend](vectors, rows=np.arange(40))
    first, held = weakref.ref(base), weakref.ref(base.vectors)
    live = LiveIndex(base, build=BUILDERS[backend], rebuild_at=2)
    del base, vectors

    live.put([3, 4], make_vectors(2, seed=9))
    assert (first(), backend == "exact" or held() is None) == (None, True)
    live.catch_up()
    live.wait_for_build()
    live.catch_up()

    assert (live.generation, held()) == (1, None)
    assert find(live, make_vectors(1)[0], 40) == best(dict(enumerate(live.vectors)), make_vectors(1)[0], 40)


def test_an_empty_base_finds_nothing_and_then_what_came() -> None:
    live = LiveIndex(ExactIndex(np.empty((0, D))), build=ExactIndex, rebuild_at=10)
    query = make_vectors(1)[0]
    before = find(live, query, 5)

    live.put([0], query[None])

    assert (before, find(live, query, 5)) == ([], [0])


@pytest.mark.parametrize("backend", BUILDERS)
def test_interests_that_are_not_finite_find_nothing_beside_good_ones(backend: str) -> None:
    live, items = make_live(30, backend=backend)
    items[30] = make_vectors(1, seed=30)[0]
    live.put([30], items[30][None])
    queries = make_vectors(3, seed=5)
    queries[1, 2] = np.nan

    rows, scores = live.search(queries, 4)

    assert rows[1].tolist() == [-1] * 4
    assert np.isneginf(scores[1]).all()
    assert [rows[at].tolist() for at in (0, 2)] == [best(items, queries[at], 4) for at in (0, 2)]
    assert live.search(np.empty((0, D), dtype=np.float32), 4)[0].shape == (0, 4)


def test_interests_of_another_length_are_refused() -> None:
    live, _ = make_live(5)

    with pytest.raises(DimensionMismatch):
        live.search(np.zeros((1, D + 1), dtype=np.float32), 3)


@pytest.mark.parametrize("count", [1, 7, 1_000])
def test_vectors_with_room_begin_with_a_line_of_the_cache(count: int):
    vectors = make_vectors(count, 16)

    room = with_room(vectors)

    assert room.ctypes.data % CACHE_LINE_BYTES == 0
    assert room.flags.c_contiguous
    assert room.flags.writeable
    assert room[:count].tolist() == vectors.tolist()
    assert not room[count:].any()
