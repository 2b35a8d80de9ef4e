"""Results as tables at a terminal and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from engine.errors import SourceError
from trainer.offline.metrics import Figure, paired
from trainer.offline.options import BenchOptions
from trainer.offline.results import Row, known_figure
from trainer.offline.sets import OfflineSet

FULL_WIDTH = 170
"""Columns that the tables need with standard errors; a narrower terminal is shown the means alone."""
LENGTH_BINS = 4
"""Histories are told apart by length in so many groups of equal share."""


def show(console: Console, rows: Sequence[Row], *, made: OfflineSet, options: BenchOptions) -> None:
    """Print the tables of *rows*: figures, the model's differences to the others, its interests, cold items."""
    if not console.is_terminal:
        console = Console(file=console.file, width=max(FULL_WIDTH, console.width), quiet=console.quiet)
    questions = made.questions(valid=options.valid)
    part = "valid" if options.valid else "test"
    title = f"{made.name}, {made.split}, {len(questions):,} {part} questions, {made.item_count:,} items"
    with_errors = console.width >= FULL_WIDTH
    console.print(_figures(rows, title=title, sessions=made.split == "next-click", with_errors=with_errors))
    models = [row for row in rows if row.is_model]
    if models and len(rows) > 1:
        console.print(_differences(models, rows))
    if models:
        console.print(_interests(models))
    for row in models:
        for run in row.runs[:1]:
            if run.cold is not None:
                console.print(f"{row.name}, cold items: {_cold_line(run.cold)}", highlight=False)


def results(rows: Sequence[Row], *, made: OfflineSet, options: BenchOptions) -> dict[str, Any]:
    """Return every figure of the run as plain JSON values."""
    questions = made.questions(valid=options.valid)
    part = made.training(valid=options.valid)
    lengths = np.array([len(question.history) for question in questions])
    repeated = [np.isin(question.targets, question.history).mean() for question in questions]
    return {
        "command": " ".join(options.command),
        "data": made.name,
        "split": made.split,
        "judged_on": "valid" if options.valid else "test",
        "items": made.item_count,
        "trained_sequences": len(part.sequences),
        "trained_clicks": part.click_count,
        "questions": len(questions),
        "targets_in_history_share": float(np.mean(repeated)),
        "withheld_share": options.withhold,
        "seeds": list(options.seeds),
        "remarks": list(made.remarks),
        "methods": [row.to_dict(rows) for row in rows],
        "recall_at_50_by_history_length": by_length(rows, lengths),
    }


def by_length(rows: Sequence[Row], lengths: np.ndarray) -> list[dict[str, Any]]:
    """Return Recall@50 of every row by groups of history length, the shortest first."""
    edges = np.unique(np.quantile(lengths, np.arange(1, LENGTH_BINS) / LENGTH_BINS, method="lower"))
    group_of = np.searchsorted(edges, lengths, side="left")
    groups = []
    for group in np.unique(group_of).tolist():
        inside = group_of == group
        recalls = {row.name: known_figure(row.mean("excluded")["recall_at_50"][inside]).to_dict() for row in rows}
        shortest, longest = int(lengths[inside].min()), int(lengths[inside].max())
        groups.append({"from": shortest, "to": longest, "questions": int(inside.sum()), "recall_at_50": recalls})
    return groups


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Write *values* to *path*, which appears when it is complete.

    Raises:
        SourceError: it can't be written.
    """
    written = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")
        written.replace(path)
    except OSError as error:
        raise SourceError(path, problem=f"can't be written: {error}", remedy="choose another place") from error


def _figures(rows: Sequence[Row], *, title: str, sessions: bool, with_errors: bool) -> Table:
    table = Table(title=f"{title}; history left out unless it says kept", title_justify="left")
    table.add_column("method", no_wrap=True)
    names = ["R@20", "R@50", "HR@50", "NDCG@50", *(["MRR@20"] if sessions else []), "R@50 kept"]
    for name in [*names, *(["R@20 kept", "MRR@20 kept"] if sessions else []), "coverage", "train s"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        excluded, kept = row.mean("excluded"), row.mean("kept")
        found = [excluded[name] for name in ("recall_at_20", "recall_at_50", "hitrate_at_50", "ndcg_at_50")]
        found += [excluded["mrr_at_20"]] if sessions else []
        found += [kept["recall_at_50"], *([kept["recall_at_20"], kept["mrr_at_20"]] if sessions else [])]
        cells = [_cell(known_figure(values)) for values in found]
        if not with_errors:
            cells = [cell.split()[0] for cell in cells]
        coverage = float(np.mean([run.coverage for run in row.runs]))
        seconds = float(np.mean([run.seconds for run in row.runs]))
        table.add_row(row.name, *cells, f"{coverage:.3f}", f"{seconds:.0f}")
    return table


def _differences(models: Sequence[Row], rows: Sequence[Row]) -> Table:
    table = Table(title="Difference in Recall@50, question by question", title_justify="left")
    table.add_column("method", no_wrap=True)
    table.add_column("against")
    table.add_column("difference", justify="right", no_wrap=True)
    for model in models:
        for other in rows:
            if other is not model:
                difference = paired(model.mean("excluded"), other.mean("excluded"))["recall_at_50"]
                table.add_row(model.name, other.name, _cell(difference, signed=True))
    return table


def _interests(models: Sequence[Row]) -> Table:
    table = Table(title="Interests and variety of the model's lists", title_justify="left")
    names = {
        "interest_cosine": "cosine",
        "interests_used_share": "in use",
        "interests_in_top_50": "in top 50",
        "target_category_coverage_at_50": "target categories",
        "categories_at_50": "categories",
        "intra_list_diversity_at_50": "diversity",
    }
    table.add_column("method", no_wrap=True)
    for label in [*names.values(), "R@50 served", "target categories served"]:
        table.add_column(label, justify="right", no_wrap=True)
    for row in models:
        extra, served = row.mean("extra"), row.mean("served")
        cells = [_known(extra, name) for name in names]
        cells += [_known(served, "recall_at_50"), _known(served, "target_category_coverage_at_50")]
        table.add_row(row.name, *cells)
    return table


def _known(values: dict[str, np.ndarray], name: str) -> str:
    found = values.get(name)
    return "-" if found is None or np.isnan(found).all() else f"{known_figure(found).mean:.4f}"


def _cell(value: Figure, *, signed: bool = False) -> str:
    mean = f"{value.mean:+.4f}" if signed else f"{value.mean:.4f}"
    return f"{mean} ±{value.error:.4f}".replace("0.", ".")


def _cold_line(cold: Any) -> str:
    recall, popular = cold["recall_at_50"], cold["popular_in_category_recall_at_50"]
    line = f"{cold['items']:,}; Recall@50 among them {recall['mean']:.4f} ± {recall['standard_error']:.4f}"
    line += f", by chance {cold['chance']:.4f}"
    return line + (f", popular in category {popular['mean']:.4f}" if popular else "")
