from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from engine.events import ClickEvent, ItemEvent
from engine.settings import Settings
from engine.summary import Measured, report
from engine.up import claim_data_dir, count_users, describe_source
from tests.builders import make_click


@dataclass
class Source:
    name: str = "a-shop"
    simulated: bool = False
    users: tuple[str, ...] = ("u1", "u2", "u1", "u3")

    @property
    def click_count(self) -> int:
        return len(self.users)

    @property
    def dropped(self) -> Mapping[str, int]:
        return {}

    def items(self) -> Iterable[ItemEvent]:
        return []

    def clicks(self) -> Iterable[ClickEvent]:
        return [make_click(user_id=user) for user in self.users]


def quiet() -> Console:
    return Console(quiet=True)


def test_first_source_takes_the_data_directory_and_keeps_it(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")

    first = claim_data_dir(settings, Source(), quiet())
    again = claim_data_dir(settings, Source(), quiet())

    assert first.data_dir == again.data_dir == tmp_path / "data"


def test_another_source_gets_a_directory_of_its_own_so_that_shops_never_mix(tmp_path: Path):
    settings = Settings(data_dir=tmp_path / "data")
    claim_data_dir(settings, Source("a-shop"), quiet())

    other = claim_data_dir(settings, Source("b-shop"), quiet())
    other_again = claim_data_dir(settings, Source("b-shop"), quiet())

    assert other.data_dir == other_again.data_dir == tmp_path / "data" / "b-shop"


@pytest.mark.parametrize(("simulated", "words"), [(True, "simulated shop, not real events"), (False, "real events")])
def test_source_says_plainly_whether_it_is_simulated(simulated: bool, words: str):
    assert words in describe_source(Source(simulated=simulated))


def test_users_are_counted_over_the_clicks_that_were_sent():
    assert count_users(Source(), 3) == 2
    assert count_users(Source(), 4) == 3


def engine_figures(applied: float, lag: float = 0.0, dirty: float = 0.0) -> dict[str, float]:
    return {"applied": applied, "rejected": 0.0, "lag": lag, "dirty": dirty, "on_current": 1.0}


def test_clicks_of_a_crashed_engine_stay_counted():
    measured = Measured(source="a-shop", simulated=False)

    for applied in (10.0, 70.0, 5.0, 30.0):
        measured.take_engine(engine_figures(applied))

    assert measured.clicks_applied == 100


def test_system_is_not_drained_before_the_engine_was_seen():
    measured = Measured(source="a-shop", simulated=False)

    assert not measured.is_applied
    assert not measured.is_drained
    assert not measured.has_applied_everything


def test_report_has_every_contracted_name_before_anything_was_measured():
    names = (
        "clicks_sent clicks_applied users lists_personal first_personal_list_s versions click_to_visible_p50_s "
        "click_to_visible_p99_s recall_at_50 popular_recall_at_50 itemcf_recall_at_50"
    )

    assert set(names.split()) <= set(report(Measured(source="a-shop", simulated=False)))
