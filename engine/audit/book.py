"""The auditor's book: the whole log folded by the window's rule, set against what an engine kept.

Memory: every good click of the log is held, about 0.6 KB each.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from engine.audit.given import NOTHING_GIVEN, Given
from engine.audit.lists import ListBook, epoch_of, shown
from engine.audit.messages import NEGATIVE, Click, Entry, Order, Refused, Rules, newest, partition_of, read_click
from engine.audit.report import CLASSES, AuditReport, Difference, Namer

LETTER_LIFE_MS = 23 * 3_600_000
"""A missing letter of an older message proves nothing: a redrive takes letters off, and its mark stays for a day."""
CLOCK_SKEW_MS = 3_600_000
"""A letter written longer than this before its message was logged is of an earlier topic of the same name."""
BEFORE = -1
"""The offset of a click that was given: somewhere before where the audit begins."""


class Letter(NamedTuple):
    """Where the message of one dead letter came from, and when the letter was written."""

    partition: int
    offset: int
    timestamp_ms: int
    is_taken_off: bool = False
    """True where what is left of the letter says that it is gone."""


@dataclass(frozen=True)
class Erasures:
    """Whose clicks must be gone; of the unsettled users, erased while the audit began, nothing is said."""

    until: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By user and partition, the last offset whose clicks are erased."""
    unsettled: frozenset[str] = frozenset()


def compare(
    entries: Iterable[Entry],
    claims: Iterable[Mapping[str, Any]],
    letters: Iterable[Letter],
    rules: Rules,
    *,
    ends: Mapping[int, int],
    given: Given = NOTHING_GIVEN,
    through: Mapping[int, int] | None = None,
    lists: Iterable[Entry] | None = None,
    erasures: Erasures | None = None,
    namer: Namer | None = None,
    now_ms: int = 0,
) -> AuditReport:
    """Return what an honest engine would have kept, set against *claims*, *letters* and *lists*.

    Args:
        entries: the log, each partition in offset order from 0, or from behind what is given.
        claims: the dump's lines.
        letters: the dead letters that there are.
        rules: what is a click, and how many a window keeps.
        ends: per partition, the offset after the last.
        given: windows to begin with; records that they reflect are passed over.
        through: per partition that the dump has no line of, the last offset that counts; None: all of the log.
        lists: the recall lists, each partition in offset order; None looks at none.
        erasures: whose clicks must be gone.
        namer: how users are named.
        now_ms: wall time, to tell letters that have expired.
    """
    book = _Book(
        rules,
        ends,
        claims,
        letters,
        given=given,
        through=through or {},
        lists=lists,
        erasures=erasures or Erasures(),
        namer=namer or Namer(),
        now_ms=now_ms,
    )
    for entry in entries:
        book.enter(entry)
    return book.close()


@dataclass
class _Claim:
    partition: int
    applied_offset: int
    clicks: list[Mapping[str, Any]]
    profile: Mapping[str, Any] | None
    line: Mapping[str, Any]

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> _Claim:
        return cls(line["partition"], line["applied_offset"], line["clicks"], line.get("profile"), line)


class _Book:
    """Every offset in its class, every user's clicks, and at the end the differences."""

    def __init__(
        self,
        rules: Rules,
        ends: Mapping[int, int],
        claims: Iterable[Mapping[str, Any]],
        letters: Iterable[Letter],
        *,
        given: Given,
        through: Mapping[int, int],
        lists: Iterable[Entry] | None,
        erasures: Erasures,
        namer: Namer,
        now_ms: int,
    ) -> None:
        self._rules, self._ends, self._namer, self._now_ms, self._given = rules, ends, namer, now_ms, given
        self._letters = {(letter.partition, letter.offset): letter for letter in letters}
        self._letters_found = self._letters_expired = 0
        self._counts = {partition: Counter(dict.fromkeys(CLASSES, 0)) for partition in ends}
        for partition, offset in given.offsets.items():
            self._counts[partition]["given"] = offset + 1
        self._clicks: dict[str, dict[Order, tuple[int, Click]]] = {}
        self._profiles: dict[str, dict[str, tuple[tuple[int, bytes], str | float]]] = {}
        self._profile_unknown: set[str] = set()
        self._home: dict[str, int] = {}
        self._history: dict[str, list[tuple[int, Click]]] = {}
        self._erasures = erasures
        self._erased: dict[str, dict[Order, Click]] = {}
        self._differences: list[Difference] = []
        self._claims = self._take_claims(claims)
        applied = {claim.partition: claim.applied_offset for claim in self._claims.values()}
        self._epochs = {c.partition: epoch_of(c.line["log"]) for c in self._claims.values() if "log" in c.line}
        self._lists = None if lists is None else ListBook(lists, self._differ, partitions=rules.partitions)
        self._through = {p: applied.get(p, through.get(p, end - 1)) for p, end in ends.items()}
        for line in given.lines:
            self._take_given(line)

    def enter(self, entry: Entry) -> None:
        """Put one record in its class."""
        if entry.offset <= self._given.offsets.get(entry.partition, -1):
            return
        counts, is_applied = self._counts[entry.partition], entry.offset <= self._through[entry.partition]
        if not is_applied:
            counts["waiting"] += 1
        if entry.value is None:
            counts["tombstone"] += is_applied
            self._expect_no_letter(entry, is_applied=is_applied)
            return
        is_erased = self._is_erased(entry)
        counts["erased"] += is_erased and is_applied
        try:
            click = read_click(entry, self._rules)
        except Refused as refusal:
            if is_applied and not is_erased:
                counts["rejected"] += 1
                self._expect_letter(entry, str(refusal))
            elif is_erased and not self._is_taken_off(entry):
                self._expect_no_letter(entry, is_applied=is_applied, kind="erased_back")
        else:
            self._expect_no_letter(entry, is_applied=is_applied)
            if is_erased:
                self._erased.setdefault(click.user_id, {})[click.order] = click
            else:
                self._keep(entry, click, is_applied=is_applied)

    def _is_erased(self, entry: Entry) -> bool:
        until = self._erasures.until.get((entry.key or b"").decode("utf-8", "replace"), {})
        return entry.offset <= until.get(entry.partition, -1)

    def _is_settled(self, key: bytes | None) -> bool:
        return (key or b"").decode("utf-8", "replace") not in self._erasures.unsettled

    def close(self) -> AuditReport:
        """Compare the windows and report; the book is done then."""
        for user_id in sorted(self._clicks.keys() | self._claims.keys()):
            self._compare_user(user_id)
        self._compare_lists()
        for partition, counts in self._counts.items():
            counts["control"] = self._ends[partition] - sum(counts.values())
        return AuditReport(
            offsets={partition: dict(counts) for partition, counts in sorted(self._counts.items())},
            logged=dict(self._ends),
            users=len(self._clicks),
            windows=len(self._claims),
            letters=self._letters_found,
            letters_expired=self._letters_expired,
            given=dict(self._given.offsets),
            given_by=self._given.source,
            given_windows=len(self._given.lines),
            lists={} if self._lists is None else dict(self._lists.counts),
            differences=self._differences,
        )

    def _has_letter(self, entry: Entry) -> bool:
        letter = self._letters.get((entry.partition, entry.offset))
        return letter is not None and letter.timestamp_ms >= entry.timestamp_ms - CLOCK_SKEW_MS

    def _is_taken_off(self, entry: Entry) -> bool:
        letter = self._letters.get((entry.partition, entry.offset))
        return letter is not None and letter.is_taken_off

    def _expect_letter(self, entry: Entry, reason: str) -> None:
        if self._has_letter(entry):
            self._letters_found += 1
        elif not self._is_settled(entry.key):
            pass  # erased while the audit began: the letter may be gone already
        elif self._now_ms - entry.timestamp_ms < LETTER_LIFE_MS:
            self._differences.append(Difference("letter_missing", f"clicks {entry.partition}:{entry.offset}", reason))
        else:
            self._letters_expired += 1

    def _expect_no_letter(self, entry: Entry, *, is_applied: bool, kind: str = "letter_unexpected") -> None:
        if is_applied and self._has_letter(entry) and self._is_settled(entry.key):
            detail = "is a good click, or has no value, or is of an erased user, and has a dead letter"
            self._differences.append(Difference(kind, f"clicks {entry.partition}:{entry.offset}", detail))

    def _take_claims(self, lines: Iterable[Mapping[str, Any]]) -> dict[str, _Claim]:
        claims = [(line["user_id"], _Claim.of(line)) for line in lines]
        newest: dict[int, int] = {}
        for _, claim in claims:
            newest[claim.partition] = max(newest.get(claim.partition, -1), claim.applied_offset)
        taken: dict[str, _Claim] = {}
        for user_id, claim in claims:
            if claim.partition not in self._ends:
                self._differ("wrong_partition", user_id, f"the log has no partition {claim.partition}")
            elif claim.applied_offset < newest[claim.partition]:
                continue  # an engine that had the partition before keeps its store; the newest one counts
            elif user_id in taken:
                self._differ("window_twice", user_id, f"in partitions {taken[user_id].partition} and {claim.partition}")
            else:
                taken[user_id] = claim
        for partition, end in self._ends.items():
            if newest.get(partition, -1) >= end:
                detail = f"the store has applied offset {newest[partition]}, the log ends at {end}"
                self._differences.append(Difference("offset_beyond_log", f"partition {partition}", detail))
        return taken

    def _take_given(self, line: Mapping[str, Any]) -> None:
        user_id, partition = line["user_id"], line["partition"]
        clicks = {click.order: click for click in map(_click_of(user_id), line["clicks"])}
        until = self._erasures.until.get(user_id, {}).get(partition, -1)
        if until >= self._given.offsets[partition]:
            self._erased[user_id] = clicks
            return
        if until >= 0:  # whether these clicks were logged before or after that, nobody says
            self._erasures = replace(self._erasures, unsettled=self._erasures.unsettled | {user_id})
        if not clicks:
            return
        self._home[user_id] = partition
        self._clicks[user_id] = {order: (BEFORE, click) for order, click in clicks.items()}
        self._history[user_id] = [(BEFORE, click) for click in clicks.values()]
        profile, set_at = line.get("profile"), line.get("profile_set_at")
        if profile is None or set_at is None:
            self._profile_unknown.add(user_id)
            return
        orders = {name: (clicked_at_ms, identity.encode()) for name, (clicked_at_ms, identity) in set_at.items()}
        self._profiles[user_id] = {name: (orders[name], value) for name, value in profile.items()}

    def _keep(self, entry: Entry, click: Click, *, is_applied: bool) -> None:
        if self._lists is not None:
            self._history.setdefault(click.user_id, []).append((entry.offset, click))
        if not is_applied:
            return
        self._home[click.user_id] = entry.partition
        clicks = self._clicks.setdefault(click.user_id, {})
        self._counts[entry.partition]["duplicate"] += clicks.get(click.order, (BEFORE,))[0] != BEFORE
        clicks[click.order] = entry.offset, click
        profile = self._profiles.setdefault(click.user_id, {})
        for name, value in click.profile:
            order = click.order[:2]
            if name not in profile or order >= profile[name][0]:
                profile[name] = order, value

    def _compare_user(self, user_id: str) -> None:
        clicks, claim = self._clicks.get(user_id, {}), self._claims.get(user_id)
        window = {order: clicks[order] for order in newest(clicks, self._rules.max_clicks)}
        if clicks:
            counts = self._counts[self._home[user_id]]
            logged = {order for order, (offset, _) in clicks.items() if offset != BEFORE}
            counts["accepted"] += len(logged & window.keys())
            counts["trimmed"] += len(logged - window.keys())
        if user_id in self._erasures.unsettled:
            return
        if claim is None:
            self._differ("window_missing", user_id, f"the log gives it {len(window)} clicks, the dump has no line")
        elif not clicks:
            self._compare_nothing(user_id, claim)
        elif claim.partition != self._home[user_id]:
            detail = f"kept by partition {claim.partition}, logged in {self._home[user_id]}"
            self._differ("wrong_partition", user_id, detail)
        else:
            self._compare_clicks(user_id, window, claim)
            self._compare_profile(user_id, claim)

    def _compare_nothing(self, user_id: str, claim: _Claim) -> None:
        kind = "erased_back" if user_id in self._erased else "window_unexpected"
        if claim.clicks or kind == "window_unexpected":
            self._differ(kind, user_id, f"the dump has {len(claim.clicks)} clicks, the log none")
        elif claim.profile:
            self._differ(kind, user_id, "the dump still has a profile")

    def _compare_clicks(self, user_id: str, window: Mapping[Order, tuple[int, Click]], claim: _Claim) -> None:
        kept = {_claimed_order(click): click for click in claim.clicks}
        for order, (offset, click) in window.items():
            if order not in kept:
                self._differ("click_missing", user_id, f"{_told(order)} of offset {offset} is not in the window")
            elif _claimed_values(kept[order]) != (click.item_id, click.event_type, click.weight):
                self._differ("click_different", user_id, f"{_told(order)} of offset {offset} has other values")
        for order in kept.keys() - window.keys():
            kind = "erased_back" if order in self._erased.get(user_id, {}) else "click_unexpected"
            self._differ(kind, user_id, f"{_told(order)} does not belong to the window")
        if len(kept) < len(claim.clicks):
            self._differ("click_twice", user_id, f"{len(claim.clicks) - len(kept)} clicks stand there again")
        elif kept.keys() == window.keys() and list(kept) != list(window):
            self._differ("order", user_id, "the clicks are not oldest first with ties by identity")

    def _compare_profile(self, user_id: str, claim: _Claim) -> None:
        if claim.profile is None or user_id in self._profile_unknown:
            return
        profile = {name: value for name, (_, value) in self._profiles[user_id].items()}
        for name in sorted(profile.keys() | claim.profile.keys()):
            if profile.get(name) != claim.profile.get(name):
                self._differ("profile", user_id, f"attribute {name!r} is not what the log says")

    def _compare_lists(self) -> None:
        if self._lists is None:
            return
        for user_id in sorted(self._lists.users - self._erasures.unsettled):
            history = self._history.get(user_id, [])
            partition = partition_of(user_id.encode(), self._rules.partitions)
            erased = {shown(click) for click in self._erased.get(user_id, {}).values()}
            self._lists.compare(
                user_id,
                history,
                frozenset(erased - {shown(click) for _, click in history}),
                epoch=self._epoch(partition),
                since=self._given.offsets.get(partition, -1),
                end=self._ends[partition],
                max_clicks=self._rules.max_clicks,
            )
        for user_id in sorted((self._claims.keys() & self._clicks.keys()) - self._erasures.unsettled):
            claim, epoch = self._claims[user_id], self._epoch(self._home[user_id])
            offsets = [offset for offset, _ in self._history[user_id] if offset <= self._through[self._home[user_id]]]
            self._lists.expect(user_id, claim.line, epoch, offsets[-1], max(self._clicks[user_id])[0])

    def _epoch(self, partition: int) -> str | None:
        every = set(self._epochs.values())
        return self._epochs.get(partition, every.pop() if len(every) == 1 else None)

    def _differ(self, kind: str, user_id: str, detail: str) -> None:
        self._differences.append(Difference(kind, self._namer.name(user_id), detail))


def _click_of(user_id: str) -> Callable[[Mapping[str, Any]], Click]:
    def read(click: Mapping[str, Any]) -> Click:
        item_id, event_type, weight = _claimed_values(click)
        return Click(user_id, item_id, click["clicked_at_ms"], click.get("event_id"), event_type, weight)

    return read


def _claimed_order(click: Mapping[str, Any]) -> Order:
    event_id = click.get("event_id")
    identity = click["item_id"] if event_id is None else event_id
    return click["clicked_at_ms"], identity.encode(), click.get("event_type", "click") in NEGATIVE


def _claimed_values(click: Mapping[str, Any]) -> tuple[str, str, float]:
    return click["item_id"], click.get("event_type", "click"), click.get("weight", 1.0)


def _told(order: Order) -> str:
    return f"click at {order[0]} ms, identity {order[1].decode()!r}"
