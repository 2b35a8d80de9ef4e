"""The auditor's reading of lists, marks and erasures on plain values: what is no difference, and what is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from engine.audit import AuditReport, Entry, Erasures, Letter, Rules, compare, partition_of
from engine.audit.lists import epoch_of
from engine.audit.records import read_erasures
from tests.builders import NOON_MS

RULES = Rules(partitions=1, max_clicks=3)
LOG = {"cluster_id": "c", "topic_id": "t", "partitions": 1}
OLD = {"as_of_ms": NOON_MS, "activation": 4}
"""A refresh that has seen the first click alone."""
Line = dict[str, Any]


def make_entries(clicks: int = 2) -> list[Entry]:
    values = [{"user_id": "ann", "item_id": f"i{at}", "clicked_at_ms": NOON_MS + at} for at in range(clicks)]
    return [Entry(0, at, NOON_MS + 60_000, b"ann", json.dumps(value).encode()) for at, value in enumerate(values)]


def make_line(**fields: Any) -> Line:
    """What a store says that has applied two clicks and published their list."""
    line = {
        "user_id": "ann",
        "partition": 0,
        "applied_offset": 1,
        "clicks": [{"item_id": f"i{at}", "clicked_at_ms": NOON_MS + at} for at in range(2)],
        "waiting": False,
        "refreshed": {"as_of_ms": NOON_MS + 1, "activation": 4, "window_offset": 1},
        "log": LOG,
    }
    return {name: value for name, value in {**line, **fields}.items() if value is not ...}


def make_list(offset: int, *, at: int = 1, activation: int = 4, log: Line = LOG, **fields: Any) -> Entry:
    """The list at *offset* of `recall-lists`, made when the store had applied the clicks up to offset *at*."""
    order = {"epoch": epoch_of(log), "window_offset": at, "activation": activation}
    window = [{"item_id": f"i{n}", "clicked_at_ms": NOON_MS + n, "event_type": "click"} for n in range(at + 1)][-3:]
    body = {"user_id": "ann", "items": [], "interests": [], "window": window, "model_version": f"v{activation}"}
    headers = tuple((name, str(value).encode()) for name, value in order.items())
    return Entry(0, offset, NOON_MS + 60_000, b"ann", json.dumps({**body, **order, **fields}).encode(), headers)


def audit_of(
    line: Line, lists: list[Entry], *, entries: list[Entry] | None = None, erasures: Erasures | None = None
) -> AuditReport:
    entries = make_entries() if entries is None else entries
    return compare(entries, [line], [], RULES, ends={0: len(entries)}, lists=lists, erasures=erasures, now_ms=NOON_MS)


def kinds(report: AuditReport) -> list[str]:
    return [difference.kind for difference in report.differences]


def test_a_list_of_the_window_is_compared_and_equal():
    report = audit_of(make_line(), [make_list(0)])

    assert (kinds(report), report.lists["checked"]) == ([], 1)


@pytest.mark.parametrize(
    ("line", "counted"),
    [
        (make_line(waiting=True, refreshed=None), "waiting"),
        (make_line(refreshed={"as_of_ms": NOON_MS + 1, "activation": 4, "window_offset": None}), "not_due"),
        (make_line(refreshed={"as_of_ms": None, "activation": 4, "window_offset": None}), "given_up"),
        (make_line(waiting=..., refreshed=...), "untold"),
        (make_line(log=...), "untold"),
    ],
)
def test_a_user_without_a_list_for_a_good_reason_is_counted_and_no_difference(line: Line, counted: str):
    report = audit_of(line, [])

    assert (kinds(report), report.lists[counted]) == ([], 1)


def test_a_list_of_an_earlier_life_of_the_topic_is_counted_and_not_compared():
    report = audit_of(make_line(waiting=True), [make_list(0, at=70, log={**LOG, "topic_id": "earlier"})])

    assert (kinds(report), report.lists["foreign"]) == ([], 1)


def test_a_list_of_a_log_that_no_dump_names_is_counted_and_not_compared():
    report = audit_of(make_line(log=...), [make_list(0, window=[])])

    assert (kinds(report), report.lists["foreign"]) == ([], 1)


def test_a_later_list_of_an_earlier_life_is_not_taken_for_the_list_that_the_store_speaks_of():
    assert kinds(audit_of(make_line(), [make_list(0, at=70, log={**LOG, "topic_id": "earlier"})])) == ["list_missing"]


def test_a_list_made_after_the_dump_is_compared_with_the_log_as_it_was_then():
    lists = [make_list(0), make_list(1, at=4)]

    right = audit_of(make_line(), lists, entries=make_entries(5))
    wrong = audit_of(make_line(), [make_list(0), make_list(1, at=4, window=[])], entries=make_entries(5))

    assert (kinds(right), kinds(wrong)) == ([], ["list_window"])


@pytest.mark.parametrize(
    ("line", "lists", "kind"),
    [
        (make_line(refreshed=None), [], "list_missing"),
        (make_line(), [], "list_missing"),
        (make_line(), [make_list(0, activation=3)], "list_missing"),
        (make_line(), [make_list(0), Entry(0, 1, NOON_MS, b"ann", None)], "list_missing"),
        (make_line(refreshed={**OLD, "window_offset": 0}), [make_list(0, at=0)], "list_missing"),
        (make_line(refreshed={**OLD, "window_offset": None}), [], "list_missing"),
        (make_line(), [make_list(0), make_list(1, at=0)], "list_older"),
        (make_line(), [make_list(0), make_list(1, activation=3)], "list_older"),
        (make_line(waiting=True), [make_list(0, at=2)], "list_window"),
        (make_line(), [make_list(0)._replace(partition=7)], "list_partition"),
        (make_line(), [make_list(0), make_list(1, window_offset=0)], "list_version"),
        (make_line(), [make_list(0), make_list(1, model_version="other")], "list_version"),
        (make_line(), [make_list(0), make_list(1, items=[{"item_id": "x", "interest": 2}])], "list_version"),
        (
            make_line(),
            [make_list(0), make_list(1, interests=[{"interest": 0, "clicks": [{"item_id": "never-clicked"}]}])],
            "list_version",
        ),
        (make_line(), [make_list(0), make_list(1)._replace(headers=())], "list_unreadable"),
        (make_line(), [make_list(0), make_list(1)._replace(value=b"{")], "list_unreadable"),
        (make_line(), [make_list(0), make_list(1, window=[{"item_id": []}])], "list_unreadable"),
        (make_line(), [make_list(0), make_list(1, user_id="bob")], "list_unreadable"),
    ],
)  # fmt: skip
def test_a_wrong_list_or_a_lost_mark_is_named(line: Line, lists: list[Entry], kind: str):
    assert kinds(audit_of(line, lists)) == [kind]


def test_the_same_order_published_again_is_no_difference():
    assert kinds(audit_of(make_line(), [make_list(0), make_list(1)])) == []


def test_an_older_list_that_says_all_that_the_newer_one_says_is_counted():
    entries = [*make_entries(), Entry(0, 2, NOON_MS, b"ann", None)]
    newer = make_list(0, at=2, window=json.loads(make_list(0).value or b"")["window"])

    report = audit_of(make_line(), [newer, make_list(1)], entries=entries)

    assert (kinds(report), report.lists["older_alike"]) == ([], 1)


# --- erasure

GONE = Erasures({"ann": {0: 1}})


def test_an_erased_user_without_a_window_and_with_an_empty_list_is_no_difference():
    report = compare(
        make_entries(), [], [], RULES, ends={0: 2}, lists=[make_list(0, window=[])], erasures=GONE, now_ms=NOON_MS
    )

    assert (kinds(report), report.total("erased")) == ([], 2)
    assert {partition: sum(counts.values()) for partition, counts in report.offsets.items()} == {0: 2}


def test_an_erased_user_is_named_once_for_the_window_and_once_for_the_list():
    assert kinds(audit_of(make_line(), [make_list(0)], erasures=GONE)) == ["erased_back", "erased_back"]


def test_erased_clicks_beside_new_ones_are_named():
    line = make_line(applied_offset=2, waiting=True)
    line["clicks"] = [{"item_id": f"i{at}", "clicked_at_ms": NOON_MS + at} for at in range(3)]

    assert kinds(audit_of(line, [], entries=make_entries(3), erasures=GONE)) == ["erased_back", "erased_back"]


def test_a_click_sent_again_after_the_erasure_belongs_to_the_window():
    entries = make_entries()
    entries.append(entries[1]._replace(offset=2))
    line = make_line(applied_offset=2, waiting=True)
    line["clicks"] = line["clicks"][1:]

    assert kinds(audit_of(line, [], entries=entries, erasures=GONE)) == []


def test_the_profile_of_an_erased_user_is_named():
    assert kinds(audit_of(make_line(clicks=[], profile={"country": "FR"}), [], erasures=GONE)) == ["erased_back"]


def test_a_dead_letter_of_an_erased_user_is_named_and_its_absence_is_not():
    entries = [make_entries()[0]._replace(value=b"{")]

    with_letter = compare(
        entries, [], [Letter(0, 0, NOON_MS + 60_000)], RULES, ends={0: 1}, erasures=GONE, now_ms=NOON_MS
    )
    without = compare(entries, [], [], RULES, ends={0: 1}, erasures=GONE, now_ms=NOON_MS)
    letter = Letter(0, 0, NOON_MS + 60_000, is_taken_off=True)
    taken_off = compare(entries, [], [letter], RULES, ends={0: 1}, erasures=GONE, now_ms=NOON_MS)

    assert (kinds(with_letter), kinds(without), kinds(taken_off)) == (["erased_back"], [], [])


def test_a_user_erased_while_the_audit_began_may_be_there_or_gone():
    unsettled = Erasures({"ann": {0: 1}}, frozenset({"ann"}))

    there = audit_of(make_line(), [make_list(0)], erasures=unsettled)
    gone = compare(make_entries(), [], [], RULES, ends={0: 2}, lists=[], erasures=unsettled, now_ms=NOON_MS)

    assert (kinds(there), kinds(gone)) == ([], [])


def test_the_greatest_offset_of_a_partition_counts_and_odd_records_erase_nothing():
    good = [{"user_id": "ann", "partition": 0, "offset": offset} for offset in (3, 9, 5)]
    odd: list[Any] = [{"user_id": "ann"}, {**good[0], "offset": True}, {**good[0], "user_id": 5}, [], "text", None]
    values = [json.dumps(value).encode() for value in [*good, *odd]] + [b"{", b"\xff", None]

    entries = [Entry(0, n, NOON_MS, b"ann", value) for n, value in enumerate(values)]

    assert read_erasures(entries, None) == {"ann": {0: 9}}


def test_an_erasure_of_another_life_of_the_log_erases_nothing_of_this_one():
    named = [{"user_id": user, "partition": 0, "offset": 3, "epoch": epoch} for user, epoch in (("a", "x"), ("b", "y"))]
    plain = {"user_id": "c", "partition": 0, "offset": 3}
    entries = [Entry(0, n, NOON_MS, b"k", json.dumps(value).encode()) for n, value in enumerate([*named, plain])]

    assert read_erasures(entries, "x") == {"a": {0: 3}, "c": {0: 3}}
    assert set(read_erasures(entries, None)) == {"a", "b", "c"}


def test_every_user_of_these_tests_is_in_partition_0():
    assert partition_of(b"ann", RULES.partitions) == 0
