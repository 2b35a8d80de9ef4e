from __future__ import annotations

from functools import partial

from engine import metrics
from engine.ann.hnsw import HnswIndex
from engine.ann.live import LiveIndex
from engine.ann.pooled import PooledSearch
from engine.ann.pools import CandidatePools
from engine.recall_audit import JUDGED, RecallAudit
from engine.settings import Settings
from tests.ann.vectors import make_vectors


class Watched:
    """A graph of 300 items and its audit."""

    def __init__(self) -> None:
        self.base = HnswIndex.build(make_vectors(300, 8, seed=3), ef=20)
        self.index = LiveIndex(self.base, build=HnswIndex.build, rebuild_at=10**6)
        pools = CandidatePools(users=4, interests=2, dimensions=8, width=20)
        self.search = PooledSearch(self.index, pools, bound=0.4)
        self.audit = RecallAudit(Settings(index_ef=20, index_ef_max=40), self.index, self.search)

    def note(self, held: float, *, times: int = JUDGED, all_searched: bool) -> None:
        for _ in range(times):
            self.audit.note(held, all_searched=all_searched)


def test_lists_that_hold_enough_change_nothing() -> None:
    watched = Watched()

    watched.note(0.985, all_searched=True)
    watched.note(0.985, all_searched=False)

    assert (watched.base.ef, watched.search.bound) == (20, 0.4)


def test_searches_that_miss_too_much_look_at_more_candidates_up_to_the_maximum() -> None:
    watched = Watched()

    widths = []
    for _ in range(4):
        watched.note(0.9, all_searched=True)
        widths.append(watched.base.ef)

    assert widths == [30, 40, 40, 40]
    assert metrics.INDEX_EF._value.get() == 40
    assert watched.search.bound == 0.4


def test_lists_scored_again_that_miss_too_much_let_interests_move_less_until_all_search() -> None:
    watched = Watched()

    watched.note(0.9, all_searched=False)
    assert 0 < watched.search.bound < 0.4

    watched.note(0.9, times=20 * JUDGED, all_searched=False)
    assert watched.search.bound == 0.0
    assert watched.base.ef == 20
    assert metrics.POOL_BOUND._value.get() == 0.0


def test_the_metric_is_what_the_last_lists_held() -> None:
    watched = Watched()

    watched.note(0.5, all_searched=True)
    assert metrics.RECALL_AUDIT._value.get() == 0.5

    watched.note(1.0, times=100, all_searched=False)
    assert metrics.RECALL_AUDIT._value.get() == 1.0


def test_a_base_built_later_is_as_wide() -> None:
    watched = Watched()
    watched.note(0.9, all_searched=True)
    index = LiveIndex(watched.base, build=partial(HnswIndex.build, ef=20), rebuild_at=1)
    index.widen(30)

    index.remove([1])
    index.catch_up()
    index.wait_for_build()
    index.catch_up()

    assert index.generation == 1
    assert isinstance(index._base, HnswIndex)
    assert index._base.ef == 30


def test_a_search_that_takes_the_place_of_another_keeps_the_tighter_bound() -> None:
    watched = Watched()
    watched.note(0.9, all_searched=False)
    tighter = watched.search.bound
    pools = CandidatePools(users=4, interests=2, dimensions=8, width=30)
    wider = PooledSearch(watched.index, pools, bound=0.4)

    watched.audit.watch(wider)

    assert wider.bound == tighter
