"""`mindstream evaluate`: the options of the offline bench, as Typer reads them."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from engine.errors import ConfigError
from engine.logs import configure_logs
from engine.options import (
    CategoryColumn,
    EventTypeColumn,
    ItemColumn,
    ProfileColumns,
    TimeColumn,
    TimeUnit,
    UserColumn,
    WeightColumn,
)
from engine.settings import load_settings


class SplitName(StrEnum):
    """How the offline bench takes a data set apart."""

    COMIREC = "comirec"
    NEXT_CLICK = "next-click"
    TIME = "time"


class PresetName(StrEnum):
    """A model that has a name."""

    PAPER = "paper"
    RECOMMENDED = "recommended"


class OnlyName(StrEnum):
    """A half of the offline bench."""

    MODEL = "model"
    BASELINES = "baselines"


def evaluate(
    name: Annotated[str, typer.Option("--data", help="A file or folder, or a name under --data-dir.")],
    split: Annotated[SplitName, typer.Option(help="What is learned from and what is asked (docs/evaluation.md).")],
    preset: Annotated[PresetName, typer.Option(help="Which model.")] = PresetName.RECOMMENDED,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where names are looked up; the cache directory without it.")
    ] = None,
    extractor: Annotated[str | None, typer.Option(help="Another way from clicks to interests.")] = None,
    interests: Annotated[
        list[int] | None, typer.Option(min=1, max=64, help="K, the most interests of a user; repeatable.")
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(min=0, help="Seed of a training; repeatable.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="So many seeds, from 1, instead.")] = None,
    max_seconds: Annotated[float | None, typer.Option(min=0.1, help="Wall time of one training.")] = None,
    only: Annotated[OnlyName | None, typer.Option(help="Leave the other half out.")] = None,
    valid: Annotated[bool, typer.Option("--valid", help="Ask the valid users; choose on these.")] = False,
    withhold: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="Share of the items kept out of training, to be found by fields.")
    ] = 0.0,
    without_fields: Annotated[
        bool, typer.Option("--without-fields", help="Keep the items' fields from the model; figures still use them.")
    ] = False,
    without_profiles: Annotated[
        bool, typer.Option("--without-profiles", help="Keep the users' profiles from the model.")
    ] = False,
    export: Annotated[Path | None, typer.Option(help="Write the vectors of the first model to this .npz.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every figure to this file.")] = None,
    plots: Annotated[Path | None, typer.Option(help="Write plots in PNG into this folder.")] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Trainings keep their state in this folder, and go on from it.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="name=value: a field of the preset's model or training; repeatable."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of torch.")] = 2,
    user_column: UserColumn = None,
    item_column: ItemColumn = None,
    time_column: TimeColumn = None,
    time_unit: Annotated[TimeUnit, typer.Option(help="Unit of the time column.")] = TimeUnit.AUTO,
    event_type_column: EventTypeColumn = None,
    weight_column: WeightColumn = None,
    profile_column: ProfileColumns = None,
    category_column: CategoryColumn = None,
) -> None:
    """Judge a model on a data set, beside the plain methods, by one set of rules."""
    # Here, so that `--help` loads neither torch nor pyarrow.
    from engine.sources import Columns
    from trainer.offline.options import BenchOptions
    from trainer.offline.run import run_bench
    from trainer.offline.splits import Split

    if seed and seeds:
        raise ConfigError("--seeds", got=seeds, expected="given without --seed")
    settings = load_settings()
    configure_logs(settings, role="evaluate")
    options = BenchOptions(
        data=name,
        data_dir=data_dir or settings.cache_dir,
        split=Split(split.value),
        preset=preset.value,
        extractor=extractor,
        interests=tuple(dict.fromkeys(interests or ())),
        seeds=tuple(dict.fromkeys(seed or ())) or tuple(range(1, (seeds or 0) + 1)),
        max_seconds=max_seconds,
        only=None if only is None else only.value,
        valid=valid,
        withhold=withhold,
        without_fields=without_fields,
        without_profiles=without_profiles,
        export=export,
        json=json_file,
        plots=plots,
        checkpoints=checkpoints,
        overrides=tuple(overrides or ()),
        threads=threads,
        columns=Columns(
            user=user_column,
            item=item_column,
            time=time_column,
            time_unit=time_unit.value,
            event_type=event_type_column,
            weight=weight_column,
            profile=profile_column or (),
            category=category_column,
        ),
        command=("mindstream", *sys.argv[1:]),
    )
    run_bench(settings, options)
