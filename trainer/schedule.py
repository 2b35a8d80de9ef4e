"""How many steps a run makes, and the learning rate of each."""

from __future__ import annotations

import math

from trainer.checkpoint import Position
from trainer.options import TrainOptions

TIMING_STEPS = 10
"""The plan is held against the clock after every so many steps."""


class Plan:
    """The number of steps: those planned, or fewer where the clock says that they don't fit."""

    def __init__(self, planned: int, *, max_seconds: float, started: float, found: Position | None = None) -> None:
        """Start at the time *started*, or go on from what a checkpoint *found*."""
        self.steps = self._planned = planned
        self._max_seconds = max_seconds
        self._started = started
        self.timed = (0, 0.0)
        """Step and seconds of the last look at the clock."""
        if found is not None:
            self.steps, self._started, self.timed = found.steps, started - found.seconds, found.timed

    def hold_against_clock(self, step: int, now: float) -> float:
        """Set `steps` to what fits at the pace of the last steps; return the seconds since the start."""
        seconds = now - self._started
        if seconds >= self._max_seconds:
            self.steps = step
        elif step % TIMING_STEPS == 0:
            pace = (seconds - self.timed[1]) / (step - self.timed[0])
            fitting = int((self._max_seconds - seconds) / max(pace, 1e-9))
            self.steps = min(self._planned, step + fitting)
            self.timed = (step, seconds)
        return seconds


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """Return the rate of *step*, from 0, of *steps*: a linear rise, then half a cosine down to the final share."""
    warmup = options.warmup_share * steps
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    falling = 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1.0)))
    return options.learning_rate * (options.final_rate_share + (1.0 - options.final_rate_share) * falling)
