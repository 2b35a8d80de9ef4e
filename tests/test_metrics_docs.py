"""docs/metrics.md and engine/metrics.py say the same, both ways."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client import Counter, Gauge, Histogram

from engine import metrics

ROOT = Path(__file__).parent.parent
ROW = re.compile(r"^\| `(mindstream_\w+)` \| (\w+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
PROCESSES = {"engine", "trainer", "query service"}
KINDS = {Counter: "counter", Gauge: "gauge", Histogram: "histogram"}


class Described(NamedTuple):
    kind: str
    labels: tuple[str, ...]
    values: tuple[str, ...]


def in_code() -> dict[str, tuple[str, Described]]:
    """Return by metric name the constant that holds it, and what it is."""
    found = {}
    for constant, metric in vars(metrics).items():
        if type(metric) in KINDS:
            kind = KINDS[type(metric)]
            name = metric._name + ("_total" if kind == "counter" else "")
            values = [",".join(labels) for labels in getattr(metric, "_metrics", {})]
            found[name] = (constant, Described(kind, metric._labelnames, tuple(sorted(values))))
    return found


def in_page() -> dict[str, Described]:
    found = {}
    for name, kind, labels, _, _ in ROW.findall((ROOT / "docs/metrics.md").read_text()):
        names = tuple(re.findall(r"`(\w+)`", labels))
        values = tuple(sorted(labels.split(": ")[1].split(", "))) if ": " in labels else ()
        found[name] = Described(kind, names, values)
    return found


CODE, PAGE = in_code(), in_page()


def test_page_lists_exactly_the_metrics_that_there_are():
    assert sorted(PAGE) == sorted(CODE)


@pytest.mark.parametrize("name", sorted(PAGE))
def test_page_and_code_agree_on_type_and_labels(name: str):
    _, code = CODE[name]

    assert (PAGE[name].kind, PAGE[name].labels) == (code.kind, code.labels)


@pytest.mark.parametrize("name", sorted(name for name, described in PAGE.items() if described.values))
def test_series_of_a_closed_label_exist_from_the_start(name: str):
    _, code = CODE[name]

    assert set(PAGE[name].values) <= set(code.values)


def test_page_names_known_processes():
    processes = {
        one for _, _, _, where, _ in ROW.findall((ROOT / "docs/metrics.md").read_text()) for one in where.split(", ")
    }

    assert processes == PROCESSES


@pytest.mark.parametrize("name", sorted(CODE))
def test_metric_is_set_somewhere(name: str):
    constant, _ = CODE[name]
    shown = {"MODEL_INFO": "metrics.show_model(", "INDEX_INFO": "metrics.show_index("}
    setter = shown.get(constant, f"metrics.{constant}")
    sources = [path for package in ("engine", "trainer") for path in (ROOT / package).rglob("*.py")]

    assert [path for path in sources if setter in path.read_text()]
