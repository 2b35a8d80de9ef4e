"""Figures of lists: Recall, HitRate and NDCG at 20 and 50, and MRR at 20, question by question, with standard errors.

Definitions, for a question with a set T of targets and a list of the best N:

- Recall@N: the targets in the list / |T|. Where the history is left out of the lists a target that is in the history
  stays in T, and can't be hit.
- HitRate@N: 1 where a target is in the list.
- NDCG@N: the sum of 1 / log2(place + 1) over the targets in the list, divided by the same of an ideal list, which has
  min(N, |T|) targets in front.
- MRR@N: 1 / place of the first target in the list, 0 where there is none.

A figure is the mean over questions; its standard error is the sample deviation over the root of their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.offline.sets import Question

CUTS = (20, 50)
PerQuestion = dict[str, np.ndarray]
"""Name of a figure to its (Q,) float64 values."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean and its standard error."""

    mean: float
    error: float

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON values."""
        return {"mean": self.mean, "standard_error": self.error}


def judge(lists: np.ndarray, questions: Sequence[Question]) -> PerQuestion:
    """Return every figure of *lists*, (Q, 50) int64 item rows, best first, 0 for none."""
    hits = hits_of(lists, questions)
    counts = np.array([len(question.targets) for question in questions])
    discounts = 1.0 / np.log2(np.arange(lists.shape[1]) + 2.0)
    ideal = np.append(0.0, np.cumsum(discounts))
    figures: PerQuestion = {}
    for cut in CUTS:
        inside = hits[:, :cut]
        found = inside.sum(axis=1)
        figures[f"recall_at_{cut}"] = found / counts
        figures[f"hitrate_at_{cut}"] = (found > 0).astype(np.float64)
        figures[f"ndcg_at_{cut}"] = inside @ discounts[:cut] / ideal[np.minimum(counts, cut)]
    first = hits[:, :20].argmax(axis=1)
    figures["mrr_at_20"] = np.where(hits[:, :20].any(axis=1), 1.0 / (first + 1.0), 0.0)
    return figures


def hits_of(lists: np.ndarray, questions: Sequence[Question]) -> np.ndarray:
    """Return (Q, 50) bool, True where the list holds a target."""
    width = 1 + max(int(lists.max(initial=0)), *(int(question.targets[-1]) for question in questions))
    owners = np.repeat(np.arange(len(questions)), [len(question.targets) for question in questions])
    wanted = np.sort(owners * width + np.concatenate([question.targets for question in questions]))
    asked = np.arange(len(questions))[:, None] * width + lists
    places = np.searchsorted(wanted, asked).clip(max=len(wanted) - 1)
    hits: np.ndarray = (wanted[places] == asked) & (lists > 0)
    return hits


def figure(values: np.ndarray) -> Figure:
    """Return the mean of *values* and its standard error; zeros for none, no error for a single one."""
    if not len(values):
        return Figure(0.0, 0.0)
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Figure(float(values.mean()), spread / len(values) ** 0.5)


def paired(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> dict[str, Figure]:
    """Return the mean difference of each figure, question by question, and its standard error."""
    return {name: figure(ours[name] - theirs[name]) for name in ours if name in theirs}
