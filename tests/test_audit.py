"""The auditor on plain values: an honest engine passes, and every planted bug is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.audit import Entry, Letter, Namer, Rules, compare, partition_of
from engine.audit.records import read_dump, read_letters
from engine.errors import SourceError
from tests.builders import NOON_MS

PARTITIONS = 4
RULES = Rules(partitions=PARTITIONS, max_clicks=3)
Line = dict[str, Any]


def make_value(user_id: str, item_id: str, clicked_at_ms: int, **fields: Any) -> bytes:
    return json.dumps({"user_id": user_id, "item_id": item_id, "clicked_at_ms": clicked_at_ms, **fields}).encode()


class Log:
    """A `clicks` topic in a list, filled the way a producer fills it."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.ends = dict.fromkeys(range(PARTITIONS), 0)

    def send(self, user_id: str, value: bytes | None) -> Entry:
        partition = partition_of(user_id.encode(), PARTITIONS)
        entry = Entry(partition, self.ends[partition], NOON_MS + 60_000, user_id.encode(), value)
        self.entries.append(entry)
        self.ends[partition] += 1
        return entry

    def click(self, user_id: str, item_id: str, at: int, **fields: Any) -> Entry:
        return self.send(user_id, make_value(user_id, item_id, NOON_MS + at, **fields))


def make_log() -> Log:
    #  ann    1   2   3   4      a late click at 0, a repeat of 4 with another weight, a tie at 3
    #  bob    1                  a broken message, a tombstone, an event id
    log = Log()
    for at in (1, 2, 3, 4):
        log.click("ann", f"i{at}", at)
    log.click("ann", "late", 0)
    log.click("ann", "i4", 4, weight=2.0)
    log.click("ann", "a-tie", 3)
    log.click("bob", "i1", 1, event_id="e1", event_type="buy", profile={"country": "FR"})
    log.send("bob", b"{broken")
    log.send("bob", None)
    return log


def make_claims() -> list[Line]:
    """What an honest engine keeps of `make_log`."""
    clicks = {
        "ann": [("a-tie", 3, None, "click", 1.0), ("i3", 3, None, "click", 1.0), ("i4", 4, None, "click", 2.0)],
        "bob": [("i1", 1, "e1", "buy", 1.0)],
    }
    log = make_log()
    names = ("item_id", "clicked_at_ms", "event_id", "event_type", "weight")
    return [
        {
            "user_id": user_id,
            "partition": (partition := partition_of(user_id.encode(), PARTITIONS)),
            "applied_offset": log.ends[partition] - 1,
            "clicks": [dict(zip(names, (i, NOON_MS + at, *rest), strict=True)) for i, at, *rest in kept],
            "profile": {"country": "FR"} if user_id == "bob" else {},
        }
        for user_id, kept in clicks.items()
    ]


def make_letters() -> list[Letter]:
    broken = next(entry for entry in make_log().entries if entry.value == b"{broken")
    return [Letter(broken.partition, broken.offset, NOON_MS + 60_000)]


def audit_of(claims: list[Line], letters: list[Letter]) -> list[str]:
    log = make_log()
    report = compare(log.entries, claims, letters, RULES, ends=log.ends, now_ms=NOON_MS)
    return [difference.kind for difference in report.differences]


def test_honest_engine_passes():
    assert audit_of(make_claims(), make_letters()) == []


def test_every_offset_is_in_exactly_one_class():
    log = make_log()

    report = compare(log.entries, make_claims(), make_letters(), RULES, ends=log.ends, now_ms=NOON_MS)

    assert {name: report.total(name) for name in ("accepted", "duplicate", "trimmed", "rejected", "tombstone")} == {
        "accepted": 4,
        "duplicate": 1,
        "trimmed": 3,
        "rejected": 1,
        "tombstone": 1,
    }
    assert {partition: sum(counts.values()) for partition, counts in report.offsets.items()} == log.ends


def test_offsets_without_a_record_are_control_records():
    log = make_log()
    marked = {partition: end + 2 for partition, end in log.ends.items()}

    report = compare(log.entries, make_claims(), make_letters(), RULES, ends=marked, now_ms=NOON_MS)

    assert (report.total("control"), report.ok) == (2 * PARTITIONS, True)


def plant_dropped_click(claims: list[Line]) -> None:
    del claims[0]["clicks"][1]


def plant_kept_click_that_was_trimmed(claims: list[Line]) -> None:
    claims[0]["clicks"].insert(0, {"item_id": "i2", "clicked_at_ms": NOON_MS + 2})


def plant_wrong_user(claims: list[Line]) -> None:
    claims[1]["clicks"].append(claims[0]["clicks"].pop())


def plant_wrong_tie_order(claims: list[Line]) -> None:
    first, second, *_ = claims[0]["clicks"]
    claims[0]["clicks"][:2] = second, first


def plant_first_of_equal_clicks(claims: list[Line]) -> None:
    claims[0]["clicks"][-1]["weight"] = 1.0


def plant_double_click(claims: list[Line]) -> None:
    claims[0]["clicks"].append(claims[0]["clicks"][-1])


def plant_offset_written_before_its_clicks(claims: list[Line]) -> None:
    """The store says it has applied the repeat and the tie, but holds neither."""
    claims[0]["clicks"] = [{"item_id": f"i{at}", "clicked_at_ms": NOON_MS + at} for at in (2, 3, 4)]


def plant_offset_behind_its_clicks(claims: list[Line]) -> None:
    for claim in claims:
        claim["applied_offset"] = 0


def plant_offset_beyond_the_log(claims: list[Line]) -> None:
    claims[0]["applied_offset"] += 1_000


def plant_missing_user(claims: list[Line]) -> None:
    del claims[1]


def plant_invented_user(claims: list[Line]) -> None:
    claims.append({**claims[1], "user_id": "nobody"})


def plant_second_window(claims: list[Line]) -> None:
    claims.append({**claims[0], "partition": (claims[0]["partition"] + 1) % PARTITIONS})


def plant_wrong_partition(claims: list[Line]) -> None:
    claims[0]["partition"] = (claims[0]["partition"] + 1) % PARTITIONS


def plant_unknown_partition(claims: list[Line]) -> None:
    claims[0]["partition"] = PARTITIONS


def plant_lost_profile(claims: list[Line]) -> None:
    claims[1]["profile"] = {}


@pytest.mark.parametrize(
    ("plant", "kind"),
    [
        (plant_dropped_click, "click_missing"),
        (plant_kept_click_that_was_trimmed, "click_unexpected"),
        (plant_wrong_user, "click_unexpected"),
        (plant_wrong_tie_order, "order"),
        (plant_first_of_equal_clicks, "click_different"),
        (plant_double_click, "click_twice"),
        (plant_offset_written_before_its_clicks, "click_missing"),
        (plant_offset_behind_its_clicks, "click_unexpected"),
        (plant_offset_beyond_the_log, "offset_beyond_log"),
        (plant_missing_user, "window_missing"),
        (plant_invented_user, "window_unexpected"),
        (plant_second_window, "window_twice"),
        (plant_wrong_partition, "wrong_partition"),
        (plant_unknown_partition, "wrong_partition"),
        (plant_lost_profile, "profile"),
    ],
)
def test_planted_bug_is_named(plant: Callable[[list[Line]], None], kind: str):
    claims = make_claims()
    plant(claims)

    assert kind in audit_of(claims, make_letters())


def test_skipped_dead_letter_is_named():
    assert audit_of(make_claims(), []) == ["letter_missing"]


def test_dead_letter_of_a_good_click_is_named():
    good = make_log().entries[0]

    letters = [*make_letters(), Letter(good.partition, good.offset, NOON_MS)]

    assert audit_of(make_claims(), letters) == ["letter_unexpected"]


def test_missing_letter_of_a_message_older_than_the_mark_of_a_redrive_proves_nothing():
    log, day_later_ms = make_log(), NOON_MS + 86_400_000

    report = compare(log.entries, make_claims(), [], RULES, ends=log.ends, now_ms=day_later_ms)

    assert (report.ok, report.letters_expired) == (True, 1)


def test_letter_of_an_earlier_topic_of_the_same_name_is_no_letter_of_this_one():
    good, day_earlier_ms = make_log().entries[0], NOON_MS - 86_400_000

    of_before = [Letter(good.partition, good.offset, day_earlier_ms)]
    of_before += [letter._replace(timestamp_ms=day_earlier_ms) for letter in make_letters()]

    assert audit_of(make_claims(), of_before) == ["letter_missing"]


def test_store_left_behind_by_an_engine_that_had_the_partition_before_does_not_count():
    left_behind = [{**claim, "applied_offset": 0, "clicks": []} for claim in make_claims()]

    assert audit_of([*left_behind, *make_claims()], make_letters()) == []


def test_clicks_after_the_applied_offset_wait_and_are_no_difference():
    log = make_log()
    for item in ("new", "newer"):
        log.click("ann", item, 5)

    report = compare(log.entries, make_claims(), make_letters(), RULES, ends=log.ends, now_ms=NOON_MS)

    assert (report.total("waiting"), report.ok) == (2, True)


def test_user_is_named_by_the_hash_unless_asked_for():
    log, claims = make_log(), make_claims()
    del claims[0]

    hashed = compare(log.entries, claims, make_letters(), RULES, ends=log.ends, now_ms=NOON_MS)
    clear = compare(
        log.entries, claims, make_letters(), RULES, ends=log.ends, now_ms=NOON_MS, namer=Namer(show_ids=True)
    )

    assert "ann" not in "".join(hashed.lines())
    assert clear.differences[0].subject == "user 'ann'"


def test_partitioner_gives_what_kafkas_own_test_vectors_say():
    # UtilsTest.testMurmur2 of Apache Kafka; its numbers are signed.
    vectors = {
        b"21": -973932308,
        b"foobar": -790332482,
        b"a-little-bit-long-string": -985981536,
        b"a-little-bit-longer-string": -1486304829,
        b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
        b"abc": 479470107,
    }

    assert {key: partition_of(key, 2**31) for key in vectors} == {key: n & 0x7FFFFFFF for key, n in vectors.items()}


def test_letters_of_other_topics_and_odd_keys_are_passed_over():
    keys = [b"c/t/4:clicks:2:17", b"c/t/4:items:2:18", b"nonsense", None, b"c:d:clicks:0:3", b"e:clicks:x:1"]
    entries = [Entry(0, offset, 5, key, b"{}") for offset, key in enumerate(keys)]

    assert list(read_letters(entries, topic="clicks")) == [Letter(2, 17, 5), Letter(0, 3, 5)]


def test_a_letter_without_a_value_was_taken_off_and_the_last_record_of_a_key_counts():
    values = [b"{}", None, b"{}", b"{}"]
    keys = [b"e:clicks:0:1", b"e:clicks:0:1", b"e:clicks:0:2", b"e:clicks:0:2"]
    entries = [
        Entry(0, offset, 5 + offset, key, value) for offset, (key, value) in enumerate(zip(keys, values, strict=True))
    ]

    assert list(read_letters(entries, topic="clicks")) == [Letter(0, 1, 6, is_taken_off=True), Letter(0, 2, 8)]


@pytest.mark.parametrize("text", ["[1]\n", "{}\n", "no json\n", '{"user_id": "u"}\n'])
def test_file_that_is_no_dump_is_refused_with_its_line(tmp_path: Path, text: str):
    path = tmp_path / "windows.jsonl"
    path.write_text(json.dumps(make_claims()[0]) + "\n" + text)

    with pytest.raises(SourceError, match="line 2"):
        list(read_dump(path))


def test_dump_is_read_line_by_line_whatever_its_ids_hold(tmp_path: Path):
    path = tmp_path / "windows.jsonl"
    line = {**make_claims()[0], "user_id": "line\u2028separator"}
    path.write_text(json.dumps(line, ensure_ascii=False) + "\n", encoding="utf-8")

    assert list(read_dump(path)) == [line]
