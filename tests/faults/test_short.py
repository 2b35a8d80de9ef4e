"""A short run of the fault rig; `make faults` is the long one."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

from engine.settings import Settings
from tests.faults.__main__ import Tally, main, run
from tests.faults.cluster import Cluster

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(300)]

TRIES = 4
needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="a failing disk is made with a C compiler")


@pytest.mark.parametrize(
    "fault",
    [
        "kill",
        "kill-after-dead-letters",
        "kill-after-publish",
        "wiped-disk",
        pytest.param("read-only-disk", marks=needs_a_compiler),
        pytest.param("failed-write", marks=needs_a_compiler),
    ],
)
def test_an_engine_hit_at_work_loses_no_click_and_applies_none_twice(
    broker: Settings, tmp_path: Path, fault: str
) -> None:
    tallies = []
    for seed in range(TRIES):  # on a busy machine the engine may be done before it is hit, and that proves nothing
        options = Namespace(rounds=1, series=1, seed=seed)
        tallies.append(run(fault, broker, tmp_path, options, topics=f"{seed}-"))
        if tallies[-1].valid:
            break

    assert tallies[-1].valid == 1
    assert [(each.lost, each.applied_twice, each.differences) for each in tallies] == [(0, 0, [])] * len(tallies)


@pytest.mark.parametrize("fault", ["cut-connections", "full-disk"])
def test_an_engine_lives_through_what_the_way_to_the_broker_and_its_disk_do(tmp_path: Path, fault: str) -> None:
    cluster = Cluster(tmp_path / "brokers")
    try:
        cluster.start()
        tally = run(fault, cluster.settings, tmp_path, Namespace(rounds=1, series=1, seed=1), cluster)
    finally:
        cluster.stop()

    assert (tally.lost, tally.applied_twice, tally.differences) == (0, 0, [])
    if fault == "full-disk" and not tally.valid:
        pytest.skip("this machine doesn't let us mount a small disk")
    assert tally.valid == 1


def test_the_tally_counts_what_an_audit_names() -> None:
    tally = Tally()

    tally.add([{"kind": "click_missing"}, {"kind": "click_twice"}, {"kind": "order"}])

    assert (tally.lost, tally.applied_twice, tally.differing) == (1, 1, 3)


def test_help_teaches_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])

    assert "kill-after-publish" in capsys.readouterr().out
