"""The benchmarks that need no broker run, and the model's reference is the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.eager_mind import EagerMind
from engine.model.routing import route

ROOT = Path(__file__).parent.parent


def test_the_benchmark_writes_its_figures_its_references_and_its_checks(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/bench_model.py", "--quick", "--json", str(file)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert ended.returncode in (0, 1), ended.stderr
    figures = json.loads(file.read_text())
    checked = {"training step", "batch inference", "evaluation"}
    assert {one["name"].split(",")[0] for one in figures["checks"]} == checked
    assert all(one["holds"] == (one["value"] >= float(one["must"].removeprefix(">= "))) for one in figures["checks"])
    assert ended.returncode == (0 if all(one["holds"] for one in figures["checks"]) else 1)
    assert min(figures["training"].values()) > 0
    assert min(figures["inference"].values()) > 0
    assert min(figures["evaluation"].values()) > 0
    assert set(figures["micro_batches"]) == {"1 windows", "32 windows", "256 windows"}


@pytest.mark.parametrize(
    ("script", "sizes", "figures", "checks"),
    [
        ("refresh", ["--quick", "--items", "2000", "--users", "40"], {"runs"}, 2),
        ("state", ["--few", "1000", "--many", "4000", "--clicks", "10000", "--quick"], {"few", "many", "reads"}, 5),
        ("recovery", ["--users", "4000", "--turns", "1"], {"opened_s", "restored_s", "copied_s"}, 2),
        ("memory", ["--items", "3000", "--version-items", "3000"], {"index", "version"}, 5),
    ],
)
def test_a_benchmark_of_the_engine_writes_its_figures_and_says_what_falls_short(
    tmp_path: Path, script: str, sizes: list[str], figures: set[str], checks: int
) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, f"benchmarks/bench_{script}.py", *sizes, "--json", str(file)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert ended.returncode in (0, 1), ended.stderr
    written = json.loads(file.read_text())
    assert figures <= set(written)
    assert len(written["checks"]) == checks
    assert all(set(one) == {"name", "value", "must", "holds"} for one in written["checks"])
    short = [one["name"] for one in written["checks"] if not one["holds"]]
    said = ended.stdout.splitlines()[-1]
    assert said == ("falls short: " + ", ".join(short) if short else "all checks hold")
    assert ended.returncode == (1 if short else 0)


def test_the_eager_reference_computes_our_routing_with_and_without_repeats() -> None:
    rows = torch.tensor([[3, 1, 4, 1, 5], [0, 0, 2, 6, 5]])
    for repeats in (True, False):
        model = EagerMind(items=9, dimensions=8, interests=4, layers=(), repeats=repeats).eval()
        torch.manual_seed(5)
        capsules = model(rows)
        torch.manual_seed(5)
        logits = torch.randn(2, 4, 5).transpose(1, 2)

        ours, _ = route(
            model.shared_map(model.items(rows)),
            (rows > 0).float(),
            logits,
            torch.tensor([4, 4]),
            rounds=3,
            accumulate=False,
        )

        torch.testing.assert_close(capsules, ours, atol=1e-5, rtol=1e-4)


def test_lists_of_every_size_are_weighed(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--items", "2000", "--users", "16", "--steps", "1"]
    command = [sys.executable, "benchmarks/bench_lists.py", *sizes, "--json", str(file)]

    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)

    assert ended.returncode == 0, ended.stderr
    assert json.loads(file.read_text())
