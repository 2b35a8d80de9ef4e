"""All that could stand in the lists of a batch of users, and nothing missing: exact search, also in half precision.

Scores of half precision only bound the true ones: what may be among the best, rounding allowed for, is a candidate, and
the inner products that rank lists decide. On a CPU that multiplies bfloat16 that takes a quarter of the time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from engine.ann.exact import ExactIndex
from engine.ann.index import score
from engine.ann.products import inner_products
from engine.ann.selection import Scores, reaching
from engine.compiled import compiled
from engine.item_rows import NO_ROW, FlatRows
from engine.merge import Candidates

_SUM_ROUNDING = 2.0**-22
"""Two sums of D products in float32 differ by D times this part of the lengths at the most, with room to spare."""
_LOWEST: dict[str, np.number[Any]] = {"f": np.float32(-np.inf), "i": np.int16(-128)}
"""Minus infinity, as a number and as the bits of bfloat16."""
_ROWS_AT_ONCE = 65_536


class ExactCandidates:
    """Finds candidates among item vectors; an item without one can't be recalled."""

    def __init__(self, vectors: np.ndarray, has_vector: np.ndarray, *, is_half: bool | None = None) -> None:
        """Search (R, D) float32 *vectors* where *has_vector*, (R,) bool; in half precision where the CPU is fast at it.

        *is_half* overrides that.
        """
        self._is_half = _is_fast_at_halves() if is_half is None else is_half
        own = np.flatnonzero(has_vector)
        self._index = ExactIndex(vectors, rows=own, is_half=self._is_half)
        self._place_of = np.full(len(vectors), NO_ROW, dtype=np.int64)
        self._place_of[own] = np.arange(len(own))
        self._longest, self._farthest_half = _lengths(vectors)

    def find(self, interests: np.ndarray, used: np.ndarray, histories: FlatRows, *, top: int) -> Candidates:
        """Return the candidates of B users: their history, and of all else what may be among the best.

        Args:
            interests: (B, K, D) float32, finite.
            used: (B, K) bool, True for those in use.
            histories: B times item rows.
            top: so many of the best of each interest, and what is equal to the last of them.
        """
        queries, owners = interests[used], np.nonzero(used)[0]
        errors, vectors = self._errors(queries), self._index.vectors
        found, counts = [np.zeros(0, dtype=np.int64)], np.zeros(len(queries), dtype=np.int64)
        for part, scores in self._index.scores(queries):
            lowest = _LOWEST[scores.dtype.kind]
            _leave_out(scores, lowest, owners[part], histories.rows, histories.starts, self._place_of)
            places = reaching(scores, min(top, self._index.size), errors[part])
            rows = np.empty_like(places)
            _take_rows(scores, lowest, places, self._index.rows, rows)
            best = _best(rows, score(vectors, queries[part], rows), top)
            found.append(best.ravel())
            counts[part] = best.shape[1]
        sizes = np.bincount(owners, weights=counts, minlength=len(used)).astype(np.int64)
        once = self._each_once(histories, FlatRows.of(np.concatenate(found), sizes.tolist()))
        return Candidates(once, inner_products(vectors, interests, used, once))

    def _errors(self, queries: np.ndarray) -> np.ndarray:
        """Return (Q,) by how much scores of (Q, D) *queries* may be wrong, beside the scores' own rounding."""
        lengths = np.linalg.norm(queries, axis=1)
        errors: np.ndarray = _SUM_ROUNDING * queries.shape[1] * self._longest * lengths
        if self._is_half:
            halves = torch.from_numpy(queries).bfloat16().float().numpy()
            errors += np.linalg.norm(queries - halves, axis=1) * self._longest
            errors += np.linalg.norm(halves, axis=1) * self._farthest_half
        return errors

    def _each_once(self, histories: FlatRows, found: FlatRows) -> np.ndarray:
        """Return (B, M) rows of each user's history and of what was *found*, each once, -1 behind them."""
        most = np.diff(histories.starts) + np.diff(found.starts)
        rows, counts = np.empty((len(most), int(most.max(initial=0))), dtype=np.int64), np.empty_like(most)
        is_taken = self._place_of == NO_ROW
        _take_once(histories.rows, histories.starts, found.rows, found.starts, is_taken, rows, counts)
        return np.ascontiguousarray(rows[:, : int(counts.max(initial=0))])


def _is_fast_at_halves() -> bool:
    """Return whether this CPU has instructions that multiply bfloat16."""
    can = torch.cpu.get_capabilities()
    return any(can.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def _lengths(vectors: np.ndarray) -> tuple[float, float]:
    """Return the length of the longest of (R, D) *vectors*, and how far a half is from its vector at the most."""
    longest = farthest = 0.0
    for start in range(0, len(vectors), _ROWS_AT_ONCE):
        part = torch.from_numpy(vectors[start : start + _ROWS_AT_ONCE])
        longest = max(longest, part.norm(dim=1).max().item())
        farthest = max(farthest, (part - part.bfloat16().float()).norm(dim=1).max().item())
    return longest, farthest


def _best(rows: np.ndarray, scores: np.ndarray, top: int) -> np.ndarray:
    """Return the (Q, m) *rows* with the *top* greatest *scores*, and those that equal the last of them; else -1."""
    last = rows.shape[1] - top
    if last <= 0:
        return rows
    return np.where(scores >= np.partition(scores, last, axis=1)[:, last, None], rows, NO_ROW)


@compiled
def _leave_out(
    scores: Scores,
    lowest: np.number[Any],
    owners: np.ndarray,
    rows: np.ndarray,
    starts: np.ndarray,
    place_of: np.ndarray,
) -> None:
    """Write the *lowest* score where an item is of the history of whose the query is."""
    for query in range(len(scores)):
        owner = owners[query]
        for at in range(starts[owner], starts[owner + 1]):
            place = place_of[rows[at]]
            if place >= 0:
                scores[query, place] = lowest


@compiled
def _take_rows(
    scores: Scores, lowest: np.number[Any], places: np.ndarray, row_of: np.ndarray, rows: np.ndarray
) -> None:
    """Write the rows of the (Q, m) *places*; -1 where there is none, or its score is the *lowest*."""
    for query in range(len(places)):
        for at in range(places.shape[1]):
            place = places[query, at]
            rows[query, at] = row_of[place] if place >= 0 and scores[query, place] != lowest else -1


@compiled
def _take_once(
    history: np.ndarray,
    history_starts: np.ndarray,
    found: np.ndarray,
    found_starts: np.ndarray,
    is_taken: np.ndarray,
    rows: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Write the distinct rows of each history and what was found to *rows*, and how many; but none that *is_taken*."""
    for user in range(len(rows)):
        count = 0
        for every, first, end in (
            (history, history_starts[user], history_starts[user + 1]),
            (found, found_starts[user], found_starts[user + 1]),
        ):
            for at in range(first, end):
                row = every[at]
                if row >= 0 and not is_taken[row]:
                    is_taken[row] = True
                    rows[user, count] = row
                    count += 1
        for at in range(count):
            is_taken[rows[user, at]] = False
        counts[user] = count
        rows[user, count:] = -1
