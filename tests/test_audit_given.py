"""Audits that begin behind windows taken as given: on plain values, and on a log whose first records are gone."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.admin import KafkaAdminClient

from engine.audit import AuditReport, Entry, Erasures, Given, Letter, Rules, audit, compare
from engine.audit.given import NOTHING_GIVEN
from engine.audit.lists import epoch_of
from engine.audit.records import read_dump
from engine.errors import LogError, SourceError
from engine.settings import Settings
from engine.store.checkpoints import Checkpoints
from engine.store.dump import dump_checkpoints
from engine.streams.checkpointing import find_continued, list_checkpoints
from tests.audited import FIRST, PARTITIONS, SECOND, HandDrivenEngine, click, make_engine
from tests.builders import NOON_MS

RULES = Rules(partitions=1, max_clicks=3)
LOG = {"cluster_id": "c", "topic_id": "t", "partitions": 1}
Line = dict[str, Any]


def make_entry(offset: int, item: int, *, user_id: str = "ann", **fields: Any) -> Entry:
    """A click on item *item* at its own time: the greater the item, the newer the click."""
    value = {"user_id": user_id, "item_id": f"i{item}", "clicked_at_ms": NOON_MS + item, **fields}
    return Entry(0, offset, NOON_MS + 60_000, user_id.encode(), json.dumps(value).encode())


def make_line(items: list[int], *, through: int, user_id: str = "ann", **fields: Any) -> Line:
    clicks = [{"item_id": f"i{item}", "clicked_at_ms": NOON_MS + item, "weight": 1.0} for item in items]
    return {"user_id": user_id, "partition": 0, "applied_offset": through, "clicks": clicks, "log": LOG} | fields


def audit_from(
    base: list[Line], entries: list[Entry], claims: list[Line], *, erased: dict[str, int] | None = None
) -> AuditReport:
    erasures = Erasures({user_id: {0: offset} for user_id, offset in (erased or {}).items()})
    given = Given.of(base, source="yesterday.jsonl")
    ends = {0: 1 + max(entry.offset for entry in entries)}
    return compare(entries, claims, [], RULES, ends=ends, given=given, erasures=erasures, now_ms=NOON_MS)


def kinds(report: AuditReport) -> list[str]:
    return [difference.kind for difference in report.differences]


BASE = make_line([1, 4, 5], through=9)
AFTER = [make_entry(10, 3), make_entry(11, 6), make_entry(12, 5)]
"""A late click that pushes one out, a newer one that does, and a repeat of one that was given."""
HONEST = make_line([4, 5, 6], through=12)


def test_windows_grow_from_what_is_given_and_each_offset_has_one_class():
    report = audit_from([BASE], AFTER, [HONEST])

    assert kinds(report) == []
    assert {name: count for name, count in report.offsets[0].items() if count} == {
        "given": 10,
        "accepted": 2,
        "trimmed": 1,
    }
    assert (report.given, report.given_windows) == ({0: 9}, 1)
    assert report.lines()[1] == "begins behind yesterday.jsonl, 1 windows taken as given: 0 at 10"
    assert report.lines()[-1].endswith("equal to the log from there")


def test_records_that_the_given_windows_reflect_are_passed_over():
    assert kinds(audit_from([BASE], [make_entry(9, 8), *AFTER], [HONEST])) == []


@pytest.mark.parametrize(
    ("kept", "kind"),
    [
        ([4, 6], ["click_missing"]),
        ([1, 4, 5, 6], ["click_unexpected"]),
        ([3, 5, 6], ["click_missing", "click_unexpected"]),
        ([1, 4, 5], ["click_missing", "click_unexpected"]),
    ],
    ids=["a given click dropped", "a trim lost", "the wrong one trimmed", "nothing applied"],
)
def test_each_planted_bug_is_found_from_there(kept: list[int], kind: list[str]):
    assert kinds(audit_from([BASE], AFTER, [make_line(kept, through=12)])) == kind


def test_a_user_who_was_given_and_never_clicked_again_must_still_be_there():
    bob = make_line([2], through=9, user_id="bob")
    kept = bob | {"applied_offset": 12}

    assert kinds(audit_from([BASE, bob], AFTER, [HONEST, kept])) == []
    assert kinds(audit_from([BASE, bob], AFTER, [HONEST])) == ["window_missing"]


@pytest.mark.parametrize(
    ("late", "country", "expected"),
    [(2, "FR", []), (2, "DE", ["profile"]), (7, "DE", []), (7, "FR", ["profile"])],
)
def test_an_attribute_is_that_of_the_greatest_click_also_where_that_was_given(
    late: int, country: str, expected: list[str]
):
    base = make_line([1, 4, 5], through=9, profile={"country": "FR"}, profile_set_at={"country": [NOON_MS + 5, "i5"]})
    claim = make_line([4, 5, 7] if late == 7 else [2, 4, 5], through=10, profile={"country": country})

    report = audit_from([base], [make_entry(10, late, profile={"country": "DE"})], [claim])

    assert kinds(report) == expected


def test_a_given_profile_without_the_clicks_that_set_it_is_not_audited():
    base = make_line([4, 5], through=9, profile={"country": "FR"})
    claim = make_line([4, 5, 6], through=10, profile={"country": "whatever"})

    assert kinds(audit_from([base], [make_entry(10, 6)], [claim])) == []


def test_given_clicks_of_a_user_erased_since_must_be_gone():
    gone = make_line([6], through=12)

    assert kinds(audit_from([BASE], [make_entry(12, 6)], [gone], erased={"ann": 11})) == []
    assert kinds(audit_from([BASE], [make_entry(12, 6)], [make_line([5, 6], through=12)], erased={"ann": 11})) == [
        "erased_back"
    ]


def test_of_a_user_erased_before_the_given_windows_were_dumped_nothing_is_said():
    assert kinds(audit_from([BASE], AFTER, [make_line([6], through=12)], erased={"ann": 5})) == []


def make_list(at: int, items: list[int]) -> Entry:
    order = {"epoch": epoch_of(LOG), "window_offset": at, "activation": 1}
    window = [{"item_id": f"i{n}", "clicked_at_ms": NOON_MS + n, "event_type": "click"} for n in items]
    body = {"user_id": "ann", "items": [], "interests": [], "window": window, "model_version": "v1"}
    headers = tuple((name, str(value).encode()) for name, value in order.items())
    return Entry(0, 0, NOON_MS + 60_000, b"ann", json.dumps(body | order).encode(), headers)


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        (make_list(7, [1, 4]), ([], 1, 0)),
        (make_list(9, [1, 4, 5]), ([], 0, 1)),
        (make_list(12, [4, 5, 6]), ([], 0, 1)),
        (make_list(12, [1, 5, 6]), (["list_window"], 0, 0)),
    ],
    ids=["of before", "of the given windows", "right", "wrong"],
)
def test_lists_of_before_are_counted_and_later_ones_compared(published: Entry, expected: tuple[list[str], int, int]):
    given = Given.of([BASE], source="")

    report = compare(AFTER, [HONEST], [], RULES, ends={0: 13}, given=given, lists=[published], now_ms=NOON_MS)

    assert (kinds(report), report.lists["before"], report.lists["checked"]) == expected


def test_letters_of_before_are_not_asked_for():
    broken = Entry(0, 9, NOON_MS + 60_000, b"ann", b"{")
    given = Given.of([BASE], source="")

    report = compare([broken, *AFTER], [HONEST], [Letter(0, 3, NOON_MS)], RULES, ends={0: 13}, given=given, now_ms=0)

    assert (kinds(report), report.letters) == ([], 0)


@pytest.mark.parametrize(
    ("base", "starts", "error", "said"),
    [
        ([], {0: 5}, LogError, "begins at offset 5, and nothing is given of it"),
        ([BASE], {0: 11}, LogError, "begins at offset 11, and what is given of it ends at 9"),
        ([make_line([1], through=13)], {0: 0}, SourceError, "later than the dump"),
        ([BASE | {"partition": 3}], {0: 0}, SourceError, "partition 3, which clicks does not have"),
        ([BASE | {"log": LOG | {"topic_id": "earlier"}}], {0: 0}, SourceError, "another life of clicks"),
    ],
)
def test_windows_that_an_audit_can_not_begin_with_are_refused(
    base: list[Line], starts: dict[int, int], error: type[Exception], said: str
):
    with pytest.raises(error, match=said):
        Given.of(base, source="base.jsonl").check([HONEST], starts=starts, topic="clicks")


def test_a_log_that_is_whole_needs_nothing_given():
    NOTHING_GIVEN.check([HONEST], starts={0: 0}, topic="clicks")

    assert (NOTHING_GIVEN.offsets, NOTHING_GIVEN.lines) == ({}, ())


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"17",
        b'{"user_id": "ann", "partition": 0, "applied_offset": 1}',
        b'{"user_id": "ann", "partition": 0, "applied_offset": NaN, "clicks": []}',
        b'{"user_id": "ann", "partition": "0", "applied_offset": 1, "clicks": []}',
        b'{"user_id": "ann", "partition": 0, "applied_offset": 1, "clicks": [{"item_id": "i1"}]}',
        b'{"user_id": "ann", "partition": 0, "applied_offset": 1, "clicks": [{"item_id": 5, "clicked_at_ms": 1}]}',
        b'{"user_id": "ann", "partition": 0, "applied_offset": 1, "clicks": 5}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_line_that_is_no_window_is_named_by_its_number(tmp_path: Path, line: bytes):
    file = tmp_path / "base.jsonl"
    file.write_bytes(json.dumps(BASE).encode() + b"\n" + line + b"\n")

    with pytest.raises(SourceError, match=r"base\.jsonl: line 2 is no"):
        list(read_dump(file))


# --- on a real log


@pytest.fixture
def engine(broker: Settings, tmp_path: Path) -> Iterator[HandDrivenEngine]:
    made = make_engine(broker, tmp_path)
    made.settings = made.settings.model_copy(update={"checkpoint_url": str(tmp_path / "checkpoints")})
    yield made
    made.close()


def checkpoint(engine: HandDrivenEngine) -> None:
    """Copy every store that has applied anything to where the settings say."""
    assert engine.settings.checkpoint_url is not None
    checkpoints = Checkpoints(engine.settings.checkpoint_url)
    for partition, store in engine.stores.items():
        folder = engine.settings.data_dir / f"copy-{partition}"
        applied = store.copy_to(folder)
        if applied >= 0:
            checkpoints.write(folder, store.header, applied_offset=applied, created_at_ms=NOON_MS)
        shutil.rmtree(folder)


def cut_log(settings: Settings, firsts: dict[int, int]) -> None:
    """Have the broker delete what lies before these offsets, as retention does."""
    admin = KafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(settings.topic("clicks"), p): at for p, at in firsts.items()})
    finally:
        admin.close()


def run_audit(settings: Settings, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "KAFKA_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "MINDSTREAM_TOPIC_PREFIX": settings.topic_prefix,
        "MINDSTREAM_WINDOW_MAX_CLICKS": str(settings.window_max_clicks),
        "MINDSTREAM_DATA_DIR": str(settings.data_dir),
        "MINDSTREAM_CHECKPOINT_URL": settings.checkpoint_url or "",
    }
    command = [sys.executable, "-m", "engine.cli", "audit", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.kafka
def test_a_cut_log_is_audited_from_checkpoints_by_the_command(engine: HandDrivenEngine) -> None:
    engine.ingest(engine.send(FIRST, bad=["bob"]))
    engine.refresh()
    checkpoint(engine)
    ends = {p: store.applied_offset + 1 for p, store in engine.stores.items() if store.applied_offset >= 0}
    engine.ingest(engine.send(SECOND))
    engine.refresh()
    cut_log(engine.settings, ends)
    engine.close()

    honest = run_audit(engine.settings)
    without = run_audit(engine.settings.model_copy(update={"checkpoint_url": None}))
    engine.stores = {partition: engine.open(engine.epoch, partition) for partition in range(PARTITIONS)}
    engine.ingest(engine.send([click("cat", 9, 9)]), change=lambda _: None)
    engine.close()
    lossy = run_audit(engine.settings)

    assert (honest.returncode, lossy.returncode, without.returncode) == (0, 1, 1), honest.stdout + honest.stderr
    assert "begins behind checkpoints, 3 windows taken as given" in honest.stdout
    assert "equal to the log from there" in honest.stdout
    assert "click_missing" in lossy.stdout
    assert "nothing is given of it: the clicks in between are gone; name checkpoints" in without.stderr


@pytest.mark.kafka
def test_an_audit_begins_behind_an_earlier_dump_where_one_is_given(engine: HandDrivenEngine, tmp_path: Path) -> None:
    engine.ingest(engine.send(FIRST))
    engine.refresh()
    base = engine.dump()
    engine.ingest(engine.send(SECOND))
    engine.refresh()
    file = tmp_path / "base.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in base))

    report = audit(engine.settings, windows=engine.dump(), base=file)

    assert (report.differences, report.given_by, report.given_windows) == ([], str(file), 3)
    assert report.total("given") == len(FIRST)
    assert report.total("accepted") == len(SECOND)


@pytest.mark.kafka
def test_a_damaged_checkpoint_is_passed_over_for_the_next_and_left_where_it_lies(
    engine: HandDrivenEngine,
) -> None:
    settings = engine.settings
    engine.ingest(engine.send(FIRST))
    checkpoint(engine)
    engine.ingest(engine.send(SECOND))
    checkpoint(engine)
    checkpoints = Checkpoints(settings.checkpoint_url or "")
    found = asyncio.run(find_continued(settings, checkpoints))
    whole = list(dump_checkpoints(settings, checkpoints, found))
    only_first = {file.sha256 for file in found[0][0].files} - {file.sha256 for file in found[0][1].files}
    damaged = next(Path(settings.checkpoint_url or "").rglob(next(iter(only_first))))
    damaged.write_bytes(b"something else")

    rest = list(dump_checkpoints(settings, checkpoints, found))

    assert {line["applied_offset"] for line in whole if line["partition"] == 0} == {found[0][0].applied_offset}
    assert {line["applied_offset"] for line in rest if line["partition"] == 0} == {found[0][1].applied_offset}
    assert damaged.read_bytes() == b"something else"
    assert len(asyncio.run(list_checkpoints(settings, verify=False))) == sum(map(len, found))
    assert not list(settings.data_dir.glob("dump-*"))
