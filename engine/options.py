"""Options that more than one command has, as Typer reads them: which columns of a table hold what."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

UserColumn = Annotated[str | None, typer.Option(help="Column with the user id, in a CSV, TSV or Parquet file.")]
ItemColumn = Annotated[str | None, typer.Option(help="Column with the item id.")]
TimeColumn = Annotated[str | None, typer.Option(help="Column with the event time.")]
EventTypeColumn = Annotated[str | None, typer.Option(help="Column with the event type.")]
WeightColumn = Annotated[str | None, typer.Option(help="Column with the weight.")]
ProfileColumns = Annotated[list[str] | None, typer.Option(help="Column of the profile; repeatable.")]
CategoryColumn = Annotated[str | None, typer.Option(help="Column with the item's category.")]


class TimeUnit(StrEnum):
    """What a time column counts in."""

    AUTO = "auto"
    SECONDS = "s"
    MILLISECONDS = "ms"
    ISO = "iso"
