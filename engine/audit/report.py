"""What an audit found: every offset in its class, and everything that differs, by name."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import Any, NamedTuple

CLASSES = ("accepted", "duplicate", "trimmed", "rejected", "erased", "tombstone", "control", "waiting", "given")
"""What an offset can be: in a window, melted into a later equal click, pushed out by newer ones, a dead letter, of an
erased user, no value, no record of ours (a transaction's marker), not applied when the dump was made, or before where
the audit begins."""
LIST_CLASSES = ("checked", "waiting", "not_due", "given_up", "older_alike", "foreign", "untold", "before")
"""What became of lists: compared and right; and users who wait for one, who can have none, of whom none could be made,
whose last list is older but says the same, whose list is of another epoch, of whom the dump doesn't say whether they
wait, and whose list is older than where the audit begins."""


@dataclass(frozen=True)
class Namer:
    """How a report names a user: by the keyed hash that logs use, or in clear where that was asked for."""

    key: bytes = b"mindstream"
    show_ids: bool = False

    def name(self, user_id: str) -> str:
        """Return the user's name in the report."""
        if self.show_ids:
            return f"user {user_id!r}"
        return "user #" + hmac.new(self.key, user_id.encode(), hashlib.sha256).hexdigest()[:8]


class Difference(NamedTuple):
    """One thing that is not as the log says."""

    kind: str
    subject: str
    detail: str


@dataclass
class AuditReport:
    """What was compared and everything that differs; `ok` is the verdict."""

    offsets: dict[int, dict[str, int]]
    """Per partition, how many offsets are of each class; they add up to `logged`."""
    logged: dict[int, int]
    """Per partition, how many offsets the log has."""
    users: int
    windows: int
    letters: int
    """Dead letters found for the messages that the auditor refuses."""
    letters_expired: int = 0
    """Refused messages without a letter that are too old to prove anything."""
    given: dict[int, int] = field(default_factory=dict)
    """Per partition that the audit does not begin at offset 0 of, the last offset that was not looked at."""
    given_by: str = ""
    """Where the windows as of these offsets are from."""
    given_windows: int = 0
    """How many windows were taken as given."""
    lists: dict[str, int] = field(default_factory=dict)
    """Lists and users without one, by class."""
    differences: list[Difference] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True when nothing differs."""
        return not self.differences

    def total(self, name: str) -> int:
        """Return how many offsets of all partitions are of class *name*."""
        return sum(counts[name] for counts in self.offsets.values())

    def as_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return {
            "ok": self.ok,
            "users": self.users,
            "windows": self.windows,
            "letters": self.letters,
            "letters_expired": self.letters_expired,
            "given": {"by": self.given_by, "windows": self.given_windows, "through": self.given},
            "lists": self.lists,
            "offsets": {str(partition): counts for partition, counts in self.offsets.items()},
            "totals": {name: self.total(name) for name in CLASSES},
            "differences": [difference._asdict() for difference in self.differences],
        }

    def lines(self) -> list[str]:
        """Return the report in sentences, the verdict last."""
        counted = ", ".join(f"{self.total(name)} {name}" for name in CLASSES)
        told = [f"{sum(self.logged.values())} offsets of {len(self.logged)} partitions: {counted}"]
        if self.given:
            begins = ", ".join(f"{partition} at {offset + 1}" for partition, offset in sorted(self.given.items()))
            told.append(f"begins behind {self.given_by}, {self.given_windows} windows taken as given: {begins}")
        if self.lists:
            told.append("lists: " + ", ".join(f"{count} {name}" for name, count in self.lists.items()))
        told += [f"{kind}  {subject}  {detail}" for kind, subject, detail in self.differences]
        whole = "equal to the log" + (" from there" if self.given else "")
        verdict = whole if self.ok else f"{len(self.differences)} differences"
        return [*told, f"{self.windows} windows of {self.users} users, {self.letters} dead letters: {verdict}"]
