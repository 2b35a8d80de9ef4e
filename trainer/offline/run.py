"""One run of the offline bench: read, split, let every method answer, show and write what came out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from rich.console import Console

from engine.errors import ConfigError
from engine.merge import ListLimits
from engine.settings import Settings
from trainer.interrupt import Interrupts
from trainer.offline.cold import withhold
from trainer.offline.contest import Contest
from trainer.offline.options import BenchOptions
from trainer.offline.plots import check_plots, draw_plots
from trainer.offline.readers import find_data, read_sequences
from trainer.offline.results import Row
from trainer.offline.search import TOP
from trainer.offline.sets import OfflineSet
from trainer.offline.splits import split_sequences
from trainer.offline.table import results, show, write_json
from trainer.presets import PRESETS
from trainer.progress import Display


def run_bench(settings: Settings, options: BenchOptions, *, console: Console | None = None) -> list[Row]:
    """Run the bench and return its rows; files are written when everything is done, the export after its model.

    Raises:
        ConfigError: an option contradicts the data or another option.
        SourceError: the data can't be read, or a file can't be written.
        SetupError: plots are asked for and matplotlib is not installed.
        KeyboardInterrupt: by Ctrl-C or SIGTERM; no half-written file is left.
    """
    console = console or Console()
    display = Display(console)
    _check(options)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        with Interrupts().installed():
            made = load_set(options, display)
            limits = replace(ListLimits.of(settings), size=TOP)
            cache = settings.cache_dir / "offline"
            rows = list(Contest(made, options, limits=limits, cache=cache, display=display).rows())
            _tell(console, rows, made, options)
    finally:
        torch.set_num_threads(threads)
    return rows


def load_set(options: BenchOptions, display: Display) -> OfflineSet:
    """Return the set that *options* name, split, with items withheld where they say so, and say what it holds."""
    sequences = read_sequences(find_data(options.data, options.data_dir), options.columns)
    if options.without_fields:
        sequences = sequences.without_fields()
    if options.without_profiles:
        sequences = sequences.without_profiles()
    made = split_sequences(sequences, options.split)
    if options.withhold:
        made, rows = withhold(made, options.withhold, seed=options.chosen_preset(sessions=made.of_sessions)[1].seed)
        display.say(f"{len(rows):,} items withheld from training and histories")
    if not made.questions(valid=options.valid):
        raise ConfigError("--valid", got=True, expected=f"left out: {made.name} has no valid users")
    part = made.training(valid=options.valid)
    display.say(
        f"{made.name}: {part.click_count:,} clicks of {len(part.sequences):,} users or sessions to learn from, "
        f"{len(made.valid):,} valid and {len(made.test):,} test questions, {made.item_count:,} items"
    )
    if made.of_sessions and options.preset == "recommended":
        display.say("  sessions: the preset learns their next click")
    for remark in made.remarks:
        display.say(f"  {remark}")
    return made


def _check(options: BenchOptions) -> None:
    if options.preset not in PRESETS:
        raise ConfigError("--preset", got=options.preset, expected=f"one of {', '.join(PRESETS)}")
    options.chosen_preset(sessions=False)
    if not 0.0 <= options.withhold < 1.0:
        raise ConfigError("--withhold", got=options.withhold, expected="a share from 0 to below 1")
    if options.max_seconds is not None and not 0.0 < options.max_seconds < math.inf:
        raise ConfigError("--max-seconds", got=options.max_seconds, expected="a number of seconds above 0")
    if options.export is not None and options.only == "baselines":
        raise ConfigError("--export", got=str(options.export), expected="left out with --only baselines")
    if options.plots is not None:
        check_plots()


def _tell(console: Console, rows: Sequence[Row], made: OfflineSet, options: BenchOptions) -> None:
    show(console, rows, made=made, options=options)
    values = results(rows, made=made, options=options)
    if options.json is not None:
        write_json(options.json, values)
    if options.plots is not None:
        groups = values["recall_at_50_by_history_length"]
        for path in draw_plots(options.plots, rows, groups, title=f"{made.name}, {made.split}"):
            console.print(f"plot: {path}", highlight=False)
