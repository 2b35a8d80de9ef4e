"""Plots of a run in PNG: Recall@50 by K, and by history length. matplotlib is imported here only, and only when asked.

It is an optional part of the installation (`mindstream[plots]`); docs/decisions/0004 says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import SetupError
from trainer.offline.metrics import Figure
from trainer.offline.results import Row, known_figure

Point = tuple[float, Figure]


def check_plots() -> None:
    """Raise SetupError where plots can't be made, so that a long run isn't in vain."""
    if find_spec("matplotlib") is None:
        raise SetupError("plots need matplotlib", remedy="run `pip install 'mindstream[plots]'`, or leave --plots out")


def draw_plots(folder: Path, rows: Sequence[Row], groups: Sequence[Mapping[str, Any]], *, title: str) -> list[Path]:
    """Write the plots of *rows* into *folder* and return their paths; *groups* are those of `table.by_length`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = [_by_length(folder / "recall_by_history_length.png", rows, groups, title)]
    models = [row for row in rows if row.interests is not None]
    if models:
        made.append(_by_interests(folder / "recall_by_k.png", models, rows, title))
    return made


def _by_length(path: Path, rows: Sequence[Row], groups: Sequence[Mapping[str, Any]], title: str) -> Path:
    axes, save = _figure(f"{title}: by history length", "clicks in the history")
    labels = [f"{group['from']}-{group['to']}" for group in groups]
    for row in rows:
        found = [group["recall_at_50"][row.name] for group in groups]
        axes.errorbar(
            labels,
            [one["mean"] for one in found],
            yerr=[one["standard_error"] for one in found],
            marker="o",
            linewidth=2.0 if row.is_model else 1.0,
            linestyle="-" if row.is_model else "--",
            capsize=3,
            label=row.name,
        )
    return _saved(save, axes, path)


def _by_interests(path: Path, models: Sequence[Row], rows: Sequence[Row], title: str) -> Path:
    axes, save = _figure(f"{title}: by number of interests", "K, the most interests a user can have")
    ordered = sorted(models, key=lambda row: row.interests or 0)
    figures = [known_figure(row.mean("excluded")["recall_at_50"]) for row in ordered]
    numbers = [row.interests for row in ordered]
    axes.errorbar(
        numbers,
        [one.mean for one in figures],
        yerr=[one.error for one in figures],
        marker="o",
        linewidth=2.0,
        capsize=3,
        label="model",
    )
    axes.set_xticks(numbers)
    for place, row in enumerate(row for row in rows if not row.is_model):
        level = known_figure(row.mean("excluded")["recall_at_50"]).mean
        axes.axhline(level, color=f"C{place + 1}", linestyle="--", linewidth=1.0, label=row.name)
    return _saved(save, axes, path)


def _figure(title: str, across: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(8.0, 5.0), layout="constrained")
    FigureCanvasAgg(sheet)
    axes = sheet.add_subplot()
    axes.set_title(title)
    axes.set_xlabel(across)
    axes.set_ylabel("Recall@50, history left out")
    axes.grid(alpha=0.3)
    return axes, sheet


def _saved(sheet: Any, axes: Any, path: Path) -> Path:
    axes.set_ylim(bottom=0.0)
    axes.legend(fontsize=8, loc="best")
    sheet.savefig(path, dpi=120)
    return path
