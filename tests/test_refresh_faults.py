"""Windows, models, stores and lists that a refresh stumbles over."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from engine import microbatch, refresh
from engine.errors import DamagedStore
from engine.logs import user_tag
from engine.metrics import (
    DIRTY_USERS,
    LISTS_FAILED,
    RECALL_AUDIT,
    REFRESH_FAILURES,
)
from engine.model import Interests, UserInput
from engine.snapshot import ServingSnapshot
from engine.store.scans import DirtyBatch
from engine.window import BehaviorWindow
from tests.builders import NOON_MS
from tests.refreshing import (
    SETTINGS,
    clicks,
    running,
)
from tests.served import ITEM_IDS, make_model, make_snapshot


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refresh, "BACK_OFF_S", (0.01, 0.02))
    monkeypatch.setattr(refresh, "IDLE_S", 0.05)


async def test_sampled_searches_are_audited_against_exact_search(tmp_path: Path) -> None:
    RECALL_AUDIT.set(0)
    async with running(tmp_path, make_snapshot(backend="exact")) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()

    assert RECALL_AUDIT._value.get() == 1.0


# --- windows that no list can be made of


class FragileModel:
    """A model that stumbles over one item, and over everything once it is `broken`."""

    def __init__(self, item_id: str, *, answers_nan: bool = False) -> None:
        self._sound, self._item_id, self._answers_nan = make_model(), item_id, answers_nan
        self.vocabulary, self.config = self._sound.vocabulary, self._sound.config
        self.is_broken = False

    def interests(self, users: Sequence[UserInput]) -> Interests:
        stumbles = [self._item_id in user.item_ids for user in users]
        if self.is_broken or (any(stumbles) and not self._answers_nan):
            raise ZeroDivisionError("float division by zero")
        found = self._sound.interests(users)
        found.vectors[np.array(stumbles)] *= np.float32(np.nan)
        return found


def make_fragile(
    item_id: str = "i013", *, activation: int = 1, answers_nan: bool = False
) -> tuple[ServingSnapshot, FragileModel]:
    model: Any = FragileModel(item_id, answers_nan=answers_nan)
    return replace(make_snapshot(activation=activation), model=model), model


@pytest.mark.parametrize("answers_nan", [False, True], ids=["raises", "answers NaN"])
async def test_window_that_the_model_stumbles_over_costs_nobody_else_a_list(tmp_path: Path, answers_nan: bool) -> None:
    failed, given_back = LISTS_FAILED._value.get(), REFRESH_FAILURES._value.get()
    snapshot, _ = make_fragile(answers_nan=answers_nan)
    with capture_logs() as logs:
        async with running(tmp_path, snapshot) as engine:
            engine.click(*clicks("u1", "i001"), *clicks("u2", "i001", "i013"), *clicks("u3", "i002"))
            await engine.settled()

            assert sorted(one.user_id for one in engine.lists()) == ["u1", "u3"]
    assert (LISTS_FAILED._value.get() - failed, REFRESH_FAILURES._value.get() - given_back) == (1, 0)
    told = [line for line in logs if line["event"] == "list_failed"]
    assert [line["user"] for line in told] == [user_tag(SETTINGS, "u2")]
    assert "u2" not in str(logs)


async def test_user_given_up_is_tried_again_with_the_next_click_and_under_the_next_version(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"window_max_clicks": 20})
    snapshot, _ = make_fragile()
    async with running(tmp_path, snapshot, settings=settings) as engine:
        engine.click(*clicks("u1", "i013"), *clicks("u2", "i013"))
        await engine.settled()
        assert engine.lists() == []

        engine.click(*clicks("u1", *ITEM_IDS[20:40], first_ms=NOON_MS + 10))  # i013 leaves the window of u1
        await engine.settled()
        assert [one.user_id for one in engine.lists()] == ["u1"]

        engine.holder.swap(make_snapshot(activation=2))
        engine.loop.notify()
        await engine.settled()
        assert engine.list_of("u2").activation == 2


async def test_sweep_ends_although_the_new_version_stumbles_over_a_window(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 4})
    async with running(tmp_path, make_snapshot(activation=1), settings=settings) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i013", first_ms=NOON_MS + 10), *clicks("u3", "i002"))
        await engine.settled()
        engine.log.messages.clear()

        engine.holder.swap(make_fragile(activation=2)[0])
        engine.loop.notify()
        await engine.settled()

        assert sorted(one.user_id for one in engine.lists()) == ["u1", "u3"]


async def test_model_that_fails_on_every_window_gives_nobody_up(tmp_path: Path) -> None:
    failed = LISTS_FAILED._value.get()
    snapshot, model = make_fragile()
    model.is_broken = True
    async with running(tmp_path, snapshot) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))
        given_back = REFRESH_FAILURES._value.get()
        await engine.until(lambda: REFRESH_FAILURES._value.get() > given_back)
        await engine.until(lambda: DIRTY_USERS._value.get() == 2)
        model.is_broken = False
        await engine.settled()

        assert sorted(one.user_id for one in engine.lists()) == ["u1", "u2"]
    assert LISTS_FAILED._value.get() == failed


async def test_list_too_large_for_the_log_costs_nobody_else_a_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatch, "MAX_MESSAGE_BYTES", 5_000)
    failed = LISTS_FAILED._value.get()
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i001", *(f"{n:0256d}" for n in range(19))))
        await engine.settled()

        assert [one.user_id for one in engine.lists()] == ["u1"]
    assert LISTS_FAILED._value.get() - failed == 1


async def test_a_store_that_can_not_be_read_ends_the_loop_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    def read_window(_batch: DirtyBatch, user_id: str) -> BehaviorWindow:
        reads.append(user_id)
        raise DamagedStore("clicks-0", cause="Corruption: block checksum mismatch")

    monkeypatch.setattr(DirtyBatch, "read_window", read_window)
    told: list[DamagedStore] = []
    async with running(tmp_path, make_snapshot(), on_damage=told.append) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.until(lambda: bool(told))
        engine.click(*clicks("u2", "i001"))
        await asyncio.sleep(0.2)

        assert (reads, len(told)) == (["u1"], 1)
        assert engine.stores[0].count_dirty() == 2, "the marks stay for the next start"


# --- figures
