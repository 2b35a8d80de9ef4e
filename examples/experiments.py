"""The questions that readers of MIND ask, one command each: a table, a plot, on your data or on the simulated shop.

    python examples/experiments.py interests --data sets/beauty.txt.gz --split comirec --valid --plot interests.png
    python examples/experiments.py power                     the simulated shop, as every question without --data

Each variant of a question is one run of the offline bench with a few fields of the `recommended` preset changed; all
learn from the same clicks and answer the same users. `examples/new_interest.py` answers one more.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from engine.sending import run_simulate
from engine.settings import Settings
from trainer.offline.metrics import Figure
from trainer.offline.options import BenchOptions
from trainer.offline.results import Row, known_figure
from trainer.offline.run import run_bench
from trainer.offline.splits import Split

Variants = Mapping[str, Sequence[str]]
"""Fields to change, as `name=value`, by what the variant is called."""

ATTENTION = "label_aware=true"
QUESTIONS: Mapping[str, tuple[str, Variants]] = {
    "interests": (
        "How much does the number of interests matter, and counting it by the window?",
        {
            "K = 1": ["interests=1"],
            **{f"K'_u, at most {k}": [f"interests={k}"] for k in (2, 4, 8)},
            **{f"K = {k} for everybody": [f"interests={k}", "dynamic_interests=false"] for k in (2, 4, 8)},
        },
    ),
    "kmeans": (
        "Why not k-means?",
        {
            "routing": [],
            "routing, no general interest": ["general_interest=false"],
            "k-means": ["extractor=kmeans"],
            "Ward's medoids": ["extractor=ward"],
        },
    ),
    "assign": (
        "Does a round of routing assign the agreement, or add it?",
        {
            "assign": [],
            "accumulate": ["accumulate_logits=true"],
            "assign, agreement as it is": ["agreement_scale=1.0"],
            "accumulate, agreement as it is": ["accumulate_logits=true", "agreement_scale=1.0"],
        },
    ),
    "power": (
        "Which power p of the label-aware attention?",
        {
            **{f"p = {p}": [ATTENTION, f"attention_power={p}"] for p in ("0.0", "0.5", "1.0", "2.0", "8.0", "inf")},
            "no attention: every item by its best interest": [],
        },
    ),
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What one variant reached."""

    name: str
    recall_at_50: Figure
    cosine: float | None
    """Mean between a user's interests; None with one."""
    in_use: float
    seconds: float


def main(arguments: Sequence[str] | None = None) -> list[Answer]:
    """Run the variants of one question; print and return their answers."""
    options = parse(arguments)
    question, variants = QUESTIONS[options.question]
    print(question)
    with tempfile.TemporaryDirectory() as folder:
        data = options.data or simulated(Path(folder) / "shop.csv", clicks=options.clicks)
        bench = BenchOptions(
            str(data),
            Path(folder),
            Split(options.split),
            only="model",
            seeds=(options.seed,),
            max_seconds=options.max_seconds,
            valid=options.valid,
            threads=options.threads,
        )
        answers = [ask(name, with_fields(bench, [*options.overrides, *fields])) for name, fields in variants.items()]
    if options.plot:
        draw(options.plot, answers, title=question)
    return answers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=QUESTIONS)
    parser.add_argument("--data", help="what `mindstream evaluate` reads; the simulated shop without it")
    parser.add_argument("--split", default="time", choices=[split.value for split in Split])
    parser.add_argument("--valid", action="store_true", help="ask the valid users")
    parser.add_argument("--clicks", type=int, default=30_000, help="of the simulated shop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-seconds", type=float, default=600.0, help="of each training")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--plot", type=Path, help="write a plot in PNG")
    return parser.parse_args(arguments)


def simulated(path: Path, *, clicks: int) -> Path:
    """Write the clicks of a simulated shop."""
    run_simulate(Settings(), items=1_000, users=max(20, clicks // 50), clicks=clicks, to_file=path)
    return path


def with_fields(bench: BenchOptions, fields: Sequence[str]) -> BenchOptions:
    """Return *bench* with *fields* of the preset changed."""
    return replace(bench, overrides=tuple(fields))


def ask(name: str, bench: BenchOptions) -> Answer:
    """Train one variant, let it answer, and print what came of it."""
    row: Row = run_bench(Settings(), bench, console=Console(quiet=True))[0]
    more = row.mean("extra")
    recall = known_figure(row.mean("excluded")["recall_at_50"])
    cosine = None if np.isnan(more["interest_cosine"]).all() else known_figure(more["interest_cosine"]).mean
    in_use = float(more["interests_used_share"].mean()) * (row.interests or 1)
    answer = Answer(name, recall, cosine, in_use, row.runs[0].seconds)
    apart = "" if cosine is None else f", {in_use:.1f} interests in use, cosine {cosine:.2f}"
    print(f"  {name}: Recall@50 {recall.mean:.4f} +- {recall.error:.4f}{apart}, {answer.seconds:.0f} s", flush=True)
    return answer


def draw(path: Path, answers: Sequence[Answer], *, title: str) -> None:
    """Write recall with its standard errors, and the cosine, to *path*."""
    from matplotlib.figure import Figure as Sheet

    sheet = Sheet(figsize=(9.0, 1.2 + 0.45 * len(answers)), layout="constrained")
    recall, cosine = sheet.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    names = [answer.name for answer in answers]
    recall.barh(
        names,
        [answer.recall_at_50.mean for answer in answers],
        xerr=[answer.recall_at_50.error for answer in answers],
        color="#4c78a8",
        capsize=3,
    )
    cosine.barh(names, [answer.cosine or 0.0 for answer in answers], color="#f58518")
    recall.invert_yaxis()
    recall.set_xlabel("Recall@50, with the standard error")
    cosine.set_xlabel("cosine between interests")
    cosine.set_xlim(0.0, 1.0)
    sheet.suptitle(title)
    sheet.savefig(path, dpi=100)
    print(f"plot: {path}")


if __name__ == "__main__":
    main()
