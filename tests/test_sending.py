from __future__ import annotations

from pathlib import Path

import pytest

from engine.replay import ReplayReport
from engine.sending import choose_source, outcome, run_simulate
from engine.settings import Settings
from engine.simulate import SimulatedShop
from engine.sources import open_source

SMALL = {"items": 1_000, "users": 600, "clicks": 24_000}


def test_no_path_chooses_the_simulated_shop_of_the_seed():
    assert next(iter(choose_source(None, seed=9).clicks())) == next(iter(SimulatedShop(9).clicks()))


def test_simulated_clicks_are_written_to_a_file_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run_simulate(Settings(seed=3), to_file=tmp_path / "shop.parquet", **SMALL)

    assert "24,000 simulated clicks written" in capsys.readouterr().out
    assert list(open_source(tmp_path / "shop.parquet").clicks()) == list(SimulatedShop(3, **SMALL).clicks())


@pytest.mark.parametrize(
    ("is_resumable", "ending"),
    [(True, "; stopped before click 40, the next run goes on there."), (False, "; stopped before click 40.")],
)
def test_stopped_run_promises_to_go_on_only_where_its_place_is_kept(is_resumable: bool, ending: str):
    report = ReplayReport(items_sent=5, clicks_sent=40, next_click=40, seconds=2.0, outages=0, finished=False)

    assert outcome(report, is_resumable=is_resumable) == "40 clicks and 5 items sent in 2.0 s" + ending
