"""RecallAudit: whether lists hold what exact search would put there, and what is done about it.

The recaller makes a share of its lists a second time, exactly, and notes here how much of that the list held. Lists
whose interests all searched tell how good the index is: below the target it looks at more candidates, up to a maximum.
Lists with interests that scored again tell what that costs on top: below the target an interest may move less before it
searches again. Neither is taken back before the next model version; an alert tells when both are at their ends.
"""

from __future__ import annotations

from collections import deque
from statistics import fmean

import structlog

from engine import metrics
from engine.ann.live import LiveIndex
from engine.ann.pooled import PooledSearch
from engine.settings import Settings

SHOWN = 100
"""The metric is the mean of so many lists."""
JUDGED = 50
"""So many lists of one kind are judged together."""
WIDER, TIGHTER = 1.5, 0.7
LEAST_BOUND = 0.02
"""An interest that may move less than this searches always."""

log = structlog.get_logger()


class RecallAudit:
    """Collects what audited lists held, and changes how hard is searched."""

    def __init__(self, settings: Settings, index: LiveIndex, search: PooledSearch) -> None:
        self._target, self._most = settings.recall_target, settings.index_ef_max
        self._ef = max(settings.index_ef, search.width)
        self._index, self._search = index, search
        self._shown: deque[float] = deque(maxlen=SHOWN)
        self._searched: list[float] = []
        self._scored_again: list[float] = []
        self._show()

    def watch(self, search: PooledSearch) -> None:
        """Change *search* from now on, which takes the place of the one before; the bound found for that stays."""
        search.bound = min(search.bound, self._search.bound)
        self._search = search

    def note(self, held: float, *, all_searched: bool) -> None:
        """Take in one list: the share of the exact one that it held, and whether all its interests searched."""
        self._shown.append(held)
        kind = self._searched if all_searched else self._scored_again
        kind.append(held)
        if len(self._searched) >= JUDGED:
            self._judge_index(fmean(self._searched))
            self._searched.clear()
        if len(self._scored_again) >= JUDGED:
            self._judge_bound(fmean(self._scored_again))
            self._scored_again.clear()
        self._show()

    def _judge_index(self, held: float) -> None:
        if held < self._target and self._ef < self._most:
            self._ef = min(self._most, int(self._ef * WIDER))
            self._index.widen(self._ef)
            self._scored_again.clear()  # they were found by the narrower search
            log.info("index_widened", ef=self._ef, recall=round(held, 4), target=self._target)

    def _judge_bound(self, held: float) -> None:
        if held < self._target and self._search.bound:
            tighter = self._search.bound * TIGHTER
            self._search.bound = tighter if tighter >= LEAST_BOUND else 0.0
            log.info("pool_bound_tightened", bound=self._search.bound, recall=round(held, 4), target=self._target)

    def _show(self) -> None:
        if self._shown:
            metrics.RECALL_AUDIT.set(fmean(self._shown))
        metrics.INDEX_EF.set(self._ef)
        metrics.POOL_BOUND.set(self._search.bound)
