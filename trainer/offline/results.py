"""Results of a run as values: one row a method, from its lists or from several seeds of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.offline.diversity import Categories, catalog_coverage, category_figures
from trainer.offline.metrics import Figure, PerQuestion, figure, judge, paired
from trainer.offline.search import Answers
from trainer.offline.sets import Question


@dataclass(frozen=True)
class Judged:
    """The figures of one set of lists, question by question."""

    excluded: PerQuestion
    """The history left out of the lists: the headline."""
    kept: PerQuestion
    coverage: float
    """Catalog coverage of the lists without the history."""
    extra: PerQuestion = field(default_factory=dict)
    """Categories and interests; NaN where a figure means nothing for a question."""
    served: PerQuestion = field(default_factory=dict)
    """The same figures for lists as the engine serves them."""
    cold: Mapping[str, Any] | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One method of the table."""

    name: str
    is_model: bool
    runs: Sequence[Judged]
    """One a seed."""
    note: str = ""
    interests: int | None = None

    def mean(self, part: str) -> PerQuestion:
        """Return the figures of *part* (`excluded`, `kept`, `extra`, `served`), question by question, over the runs."""
        figures: list[PerQuestion] = [getattr(run, part) for run in self.runs]
        return {name: np.mean([found[name] for found in figures], axis=0) for name in figures[0]}

    def to_dict(self, against: Sequence[Row]) -> dict[str, Any]:
        """Return plain JSON values, with the paired differences to the rows *against*."""
        excluded = self.mean("excluded")
        return {
            "name": self.name,
            "note": self.note,
            "interests": self.interests,
            "excluded": _figures(excluded),
            "kept": _figures(self.mean("kept")),
            "catalog_coverage_at_50": float(np.mean([run.coverage for run in self.runs])),
            "more": _figures(self.mean("extra")),
            "as_served": _figures(self.mean("served")),
            "cold": [run.cold for run in self.runs if run.cold is not None],
            "recall_at_50_by_run": [float(run.excluded["recall_at_50"].mean()) for run in self.runs],
            "seconds_by_run": [run.seconds for run in self.runs],
            "against": {
                other.name: {
                    name: difference.to_dict() for name, difference in paired(excluded, other.mean("excluded")).items()
                }
                for other in against
                if other is not self
            },
        }


def judge_answers(
    answers: Answers, questions: Sequence[Question], *, items: int, categories: Categories | None, seconds: float
) -> Judged:
    """Return the figures of *answers*."""
    return Judged(
        excluded=judge(answers.excluded, questions),
        kept=judge(answers.kept, questions),
        coverage=catalog_coverage(answers.excluded, items=items),
        extra=category_figures(answers.excluded, questions, categories) if categories is not None else {},
        seconds=seconds,
    )


def known_figure(values: np.ndarray) -> Figure:
    """Return the figure of the values that are not NaN."""
    return figure(values[~np.isnan(values)])


def _figures(values: PerQuestion) -> dict[str, dict[str, float]]:
    return {name: known_figure(found).to_dict() for name, found in values.items()}
