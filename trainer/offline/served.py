"""Lists as the engine serves them: candidates by interest, merged with floors and caps, the history left out.

The search is exact here; the engine's index may miss a few.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.item_rows import ItemRows
from engine.recall import ListLimits, merge
from trainer.offline.neural import InterestMethod
from trainer.offline.search import TOP, OnDone, chunks, top_rows
from trainer.offline.sets import Question


def served_lists(
    method: InterestMethod,
    questions: Sequence[Question],
    *,
    item_ids: Sequence[str],
    limits: ListLimits,
    on_done: OnDone | None = None,
) -> np.ndarray:
    """Return (Q, 50) int64 item rows, best first, 0 where the candidates ran out."""
    rows = ItemRows(item_ids)
    place_of = {item: row for row, item in enumerate(item_ids, start=1)}
    unavailable: np.ndarray = np.logical_not(method.has_vector[1:])
    items = torch.from_numpy(method.item_vectors)
    lists = np.zeros((len(questions), TOP), dtype=np.int64)
    interests = method.model.config.interests
    for start, batch in chunks(questions, len(item_ids) * interests):
        vectors, used = method.users(batch)
        for place, (own, mask, question) in enumerate(zip(vectors, used, batch, strict=True), start=start):
            numbers = np.flatnonzero(mask)
            if not len(numbers):
                continue
            scores = torch.from_numpy(own[numbers]) @ items.T
            scores[:, torch.from_numpy(np.logical_not(method.has_vector))] = -torch.inf
            # As many more as the history could take away.
            found = top_rows(scores, min(TOP + len(np.unique(question.history)), len(item_ids)))
            merged = merge(
                found - 1,
                scores.gather(1, torch.from_numpy(found)).numpy(),
                numbers.tolist(),
                items=rows,
                unavailable=unavailable,
                seen=set((question.history - 1).tolist()),
                limits=limits,
            )
            lists[place, : len(merged)] = [place_of[item.item_id] for item in merged]
        if on_done is not None:
            on_done(start + len(batch), len(questions))
    return lists
