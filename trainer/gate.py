"""Whether a trained version is good enough to serve: no worse than counting, and no worse than the one in service."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from engine.errors import ModelError
from engine.model import InterestModel
from engine.model.registry import Registry
from engine.settings import Settings
from trainer.evaluate import Evaluation
from trainer.samples import ClickLog

log = structlog.get_logger()


def objection(evaluation: Evaluation, *, settings: Settings) -> str | None:
    """Return why a model is not to be published; None where nothing speaks against it.

    It is no worse than the version in service unless Recall@50 on the same users is lower by more than the margin of
    *settings* and by more than two standard errors of the difference.
    """
    recall, popular = evaluation.recall_at_50, evaluation.popular_recall_at_50
    if evaluation.users < settings.train_min_judged_users:
        return (
            f"{evaluation.users} users have a later click on an item outside their window to judge the model on, "
            f"at least {settings.train_min_judged_users} are needed"
        )
    if not math.isfinite(recall):
        return f"Recall@50 is {recall}"
    if recall < popular:
        return f"Recall@50 {recall:.4f} is below the popular list's {popular:.4f}"
    gain, error = evaluation.gain_over_serving, evaluation.gain_over_serving_standard_error
    if gain is not None and error is not None and gain < -max(settings.train_margin, 2.0 * error):
        return (
            f"Recall@50 {recall:.4f} is {-gain:.4f} ± {error:.4f} below that of the version in service, "
            f"more than the margin of {settings.train_margin:g} and two standard errors"
        )
    return None


def comparable_version(
    settings: Settings, parent: Mapping[str, Any] | None, later: ClickLog, *, say: Callable[[str], None]
) -> InterestModel | None:
    """Return the version in service where it can be judged on *later*: where it has learned from earlier clicks alone.

    Args:
        settings: where the registry is.
        parent: the manifest of the version in service; None where there is none.
        later: the clicks that the new version is judged on.
        say: told why a version is not compared with.
    """
    if parent is None:
        return None
    version, learned_before_ms = parent["version"], (parent.get("training") or {}).get("learned_before_ms")
    first_ms = first_click_ms(later)
    if learned_before_ms is None or first_ms is None or learned_before_ms > first_ms:
        say(f"Version {version} may have learned from the later clicks, so the new one is not compared with it.")
        return None
    try:
        parts = Registry(settings.registry).load(version)
        if parts.config is None or parts.vocabulary is None:
            return None
        return InterestModel.load_parts(parts.config, parts.vocabulary, parts.tensors, version=version)
    except ModelError as error:
        log.warning("version_not_compared", version=version, problem=str(error))
        return None


def first_click_ms(clicks: ClickLog) -> int | None:
    """Return the event time of the oldest click; None where there is none."""
    return min((click.clicked_at_ms for _history, click in clicks), default=None)
