"""The ten planted bugs, each made by a real store, real lists and a real broker, and each named by the auditor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from engine.events import ClickEvent
from engine.log import Message
from engine.recall import decode_list
from engine.settings import Settings
from tests.audited import FIRST, MAX_CLICKS, PARTITIONS, SECOND, HandDrivenEngine, click, make_engine
from tests.served import ITEM_IDS, make_snapshot

pytestmark = pytest.mark.kafka


@pytest.fixture
def engine(broker: Settings, tmp_path: Path) -> Iterator[HandDrivenEngine]:
    made = make_engine(broker, tmp_path)
    yield made
    made.close()


def test_an_honest_engine_differs_in_nothing_and_every_list_is_compared(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST, bad=["bob"]))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    half_way = engine.audit()
    engine.refresh()

    report = engine.audit()

    assert half_way.differences == report.differences == []
    assert {name: half_way.lists[name] for name in ("checked", "waiting")} == {"checked": 3, "waiting": 2}
    assert (report.lists["checked"], report.lists["waiting"], report.letters) == (3, 0, 1)


def test_lists_made_after_the_dump_are_no_difference(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    lines = engine.dump()
    engine.ingest(engine.send(SECOND))
    engine.refresh()

    assert engine.found(lines) == set()


def test_a_rollback_to_an_older_version_is_no_difference(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh(snapshot=make_snapshot(activation=2, seed=8))
    engine.ingest(engine.send(SECOND))

    engine.refresh(snapshot=replace(engine.snapshot, activation=3))

    assert engine.found() == set()


def test_one_click_dropped_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST), change=lambda one: None if one.item_id == ITEM_IDS[3] else one)
    engine.refresh()

    assert {("click_missing", "user 'ann'"), ("list_window", "user 'ann'")} <= engine.found()


def test_a_hidden_item_is_kept_behind_a_windowful_of_clicks_and_named_where_it_is_lost(
    engine: HandDrivenEngine,
) -> None:
    hidden = msgspec.structs.replace(click("ann", 11, 0), event_type="hide")
    engine.ingest(engine.send([hidden, *FIRST]))
    engine.refresh()
    assert engine.found() == set()

    again = msgspec.structs.replace(click("bob", 12, 0), event_type="hide")
    engine.ingest(engine.send([again, *SECOND]), change=lambda one: None if one.item_id == ITEM_IDS[12] else one)
    engine.refresh()

    assert engine.found() == {("click_missing", "user 'bob'"), ("list_window", "user 'bob'")}


def test_one_click_applied_to_the_wrong_user_is_named(engine: HandDrivenEngine) -> None:
    def misplace(one: ClickEvent) -> ClickEvent:
        return msgspec.structs.replace(one, user_id="ann") if one.user_id == "cat" else one

    engine.ingest(engine.send(FIRST), change=misplace)

    found = engine.found()

    assert ("window_missing", "user 'cat'") in found
    assert found & {("click_unexpected", "user 'ann'"), ("window_twice", "user 'ann'")}


def test_one_dead_letter_skipped_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST, bad=["bob"]), letters=False)

    assert {kind for kind, _ in engine.found()} == {"letter_missing"}


def test_the_offset_advanced_early_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    for partition, store in engine.stores.items():
        places = [one.place for one in engine.send(SECOND) if one.place.partition == partition]
        store.apply([], through_offset=max((place.offset for place in places), default=-1))

    assert ("click_missing", "user 'ann'") in engine.found()


def test_a_lost_trim_is_named(engine: HandDrivenEngine) -> None:
    engine.close()
    engine.stores = {p: engine.open(engine.epoch, p, max_clicks=MAX_CLICKS + 1) for p in range(PARTITIONS)}
    engine.ingest(engine.send(FIRST))
    engine.refresh()

    found = engine.found()

    assert found == {("click_unexpected", "user 'ann'"), ("list_window", "user 'ann'")}


def test_an_erased_user_who_is_back_is_named_in_window_list_and_dead_letter(engine: HandDrivenEngine) -> None:
    sent = engine.send(FIRST, bad=["bob"])
    engine.ingest(sent)
    engine.refresh()
    engine.erase("bob", applied=sent)

    differences = engine.audit().differences

    assert {one.kind for one in differences} == {"erased_back"}
    assert sorted(one.subject.split()[0] for one in differences) == ["clicks", "user", "user"]


def test_an_erased_user_who_is_gone_and_clicks_again_is_no_difference(engine: HandDrivenEngine) -> None:
    sent = engine.send(FIRST, bad=["bob"])
    engine.erase("bob", applied=sent)
    engine.ingest([one for one in sent if one.message.key != b"bob"])
    engine.ingest(engine.send([click("bob", 7, 1), click("bob", 12, 4)]))
    engine.refresh()

    report = engine.audit()

    assert report.differences == []
    assert report.total("erased") == 2


def test_ties_ordered_wrongly_are_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST + SECOND))
    lines = engine.dump()
    clicks = next(line["clicks"] for line in lines if line["user_id"] == "ann")
    clicks[-1], clicks[-2] = clicks[-2], clicks[-1]

    assert engine.found(lines) == {("order", "user 'ann'")}


def test_an_older_list_published_after_a_newer_one_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    older = engine.refresh()
    engine.ingest(engine.send(SECOND))
    engine.refresh()
    engine.publish([one for one in older if one.key == b"ann"])

    assert engine.found() == {("list_older", "user 'ann'")}


def test_a_mark_cleared_before_the_list_was_out_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    engine.refresh(publishes=False)

    assert engine.found() == {("list_missing", "user 'ann'"), ("list_missing", "user 'bob'")}


def test_the_mark_of_a_click_that_came_meanwhile_cleared_with_the_others_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))
    for store in engine.stores.values():
        store.settle(store.take_dirty(100), [])  # as if the marks had been of the refresh before

    assert engine.found() == {("list_missing", "user 'ann'"), ("list_missing", "user 'bob'")}


def test_a_list_with_one_versions_value_under_anothers_headers_is_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))

    engine.refresh(change=lambda message: replace(message, headers={**message.headers, "activation": b"2"}))

    assert ("list_version", "user 'ann'") in engine.found()


def test_lists_of_two_versions_under_one_activation_are_named(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    engine.ingest(engine.send(SECOND))

    engine.refresh(snapshot=replace(make_snapshot(activation=2, seed=8), activation=1))

    assert {kind for kind, _ in engine.found()} == {"list_version"}


def test_items_of_one_version_with_the_interests_of_another_are_named(engine: HandDrivenEngine) -> None:
    def mix(message: Message) -> Message:
        made = decode_list(message.value or b"")
        items = [msgspec.structs.replace(item, interest=99) for item in made.items]
        return replace(message, value=msgspec.json.encode(msgspec.structs.replace(made, items=items)))

    engine.ingest(engine.send(FIRST))
    engine.refresh(change=mix)

    assert ("list_version", "user 'ann'") in engine.found()
