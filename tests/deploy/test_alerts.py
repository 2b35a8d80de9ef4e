"""The Prometheus files, by Prometheus' own tool, and by the metrics that there are."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY

from engine import metrics
from tests.deploy.compose import ROOT

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="no promtool here; Debian has it in `prometheus`")
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((ROOT / "deploy/alerts.yml").read_text())["groups"] for rule in group["rules"]
]
BOARD: dict[str, Any] = json.loads((ROOT / "deploy/grafana/dashboards/mindstream.json").read_text())
QUERIES = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
THRESHOLD = re.compile(r" (<|>) [\d.]+$")


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    assert PROMTOOL is not None
    return subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, cwd=ROOT)


def known_series() -> set[str]:
    assert metrics.CLICKS  # importing the module registers all
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}
    return {family.name + end for family in REGISTRY.collect() for end in suffixes.get(family.type, [""])}


@needs_promtool
def test_rules_are_sound():
    ran = promtool("check", "rules", "deploy/alerts.yml")

    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
def test_each_fault_raises_its_alert_and_a_healthy_system_none():
    ran = promtool("test", "rules", "tests/deploy/alerts_test.yml")

    assert ran.returncode == 0, ran.stdout + ran.stderr


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus.compose.yml"])
def test_configuration_is_sound(name: str, tmp_path: Path):
    (tmp_path / "token").write_text("0123456789abcdef")
    (tmp_path / "alerts.yml").write_text((ROOT / "deploy/alerts.yml").read_text())
    text = (ROOT / "deploy" / name).read_text().replace("/run/secrets/api_token", str(tmp_path / "token"))
    (tmp_path / name).write_text(text)

    ran = promtool("check", "config", str(tmp_path / name))

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_both_configurations_have_the_same_jobs():
    jobs = [
        [job["job_name"] for job in yaml.safe_load((ROOT / "deploy" / name).read_text())["scrape_configs"]]
        for name in ("prometheus.yml", "prometheus.compose.yml")
    ]

    assert jobs[0] == jobs[1] == ["engine", "trainer", "serve"]


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alert_says_what_is_wrong_and_what_to_do(rule: dict[str, Any]):
    assert set(rule["annotations"]) == {"summary", "action"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert THRESHOLD.search(rule["expr"])


@pytest.mark.parametrize("rule", RULES, ids=[rule["alert"] for rule in RULES])
def test_alert_is_in_the_operators_page_and_in_the_tests(rule: dict[str, Any]):
    assert f"`{rule['alert']}`" in (ROOT / "docs/operations.md").read_text()
    assert rule["alert"] in (ROOT / "tests/deploy/alerts_test.yml").read_text()


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_query_names_metrics_that_there_are(query: str):
    assert set(re.findall(r"mindstream_\w+", query)) - known_series() == set()


@pytest.mark.parametrize("query", [*QUERIES, *(rule["expr"] for rule in RULES)])
def test_query_names_the_process_it_means(query: str):
    # Every process shows every metric, most of them at zero: without the job, a query would mix them.
    selectors = re.findall(r"(?:mindstream|process)_\w+(?:\{([^}]*)\})?", query)

    assert [selector for selector in selectors if "job" not in selector] == []


def test_panels_have_titles_and_tell_what_they_show():
    panels = [panel for panel in BOARD["panels"] if panel["type"] != "row"]

    assert [panel["title"] for panel in panels if not panel["description"]] == []
    assert len({panel["title"] for panel in panels}) == len(panels)
