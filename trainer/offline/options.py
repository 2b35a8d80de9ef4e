"""What one run of the bench is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engine.sources import Columns
from trainer.offline.splits import Split
from trainer.presets import Preset, overridden, preset_of

Only = Literal["model", "baselines"]


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The options of `mindstream evaluate`, one field each."""

    data: str
    """A path, or a name under `data_dir`."""
    data_dir: Path
    split: Split
    preset: str = "recommended"
    extractor: str | None = None
    interests: tuple[int, ...] = ()
    """K, several for several rows; empty takes the preset's."""
    seeds: tuple[int, ...] = ()
    """Empty takes the preset's one seed."""
    max_seconds: float | None = None
    """Of one training; None takes the preset's."""
    only: Only | None = None
    valid: bool = False
    """Ask the valid questions and leave the test ones alone."""
    withhold: float = 0.0
    """Share of the items kept out of training and histories."""
    without_fields: bool = False
    """Whether the model sees items by their ids alone."""
    without_profiles: bool = False
    """Whether the model sees no user's profile."""
    export: Path | None = None
    json: Path | None = None
    plots: Path | None = None
    checkpoints: Path | None = None
    """Folder where trainings keep their state, to go on after a crash or Ctrl-C."""
    overrides: tuple[str, ...] = ()
    """`name=value`, for fields of `MindConfig` and `TrainOptions`; for the model, not for the methods beside it."""
    threads: int = 2
    columns: Columns | None = None
    command: tuple[str, ...] = ()
    """The words of the command, for the record."""

    def chosen_preset(self, *, sessions: bool) -> Preset:
        """Return the preset for *sessions* or users, with the overrides, before anything else is changed in it.

        Raises:
            ConfigError: an override names no field, or its value doesn't fit.
        """
        return overridden(preset_of(self.preset, sessions=sessions), self.overrides)
