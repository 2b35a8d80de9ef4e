"""Where an audit begins that does not begin at offset 0: windows dumped before, taken as given.

They are what `mindstream windows dump --jsonl` printed earlier, or prints of checkpoints. Of a partition that they
name, the log counts from the offset behind theirs; nothing before it is proved, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.audit.lists import epoch_of
from engine.errors import LogError, SourceError

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Given:
    """Windows that an audit begins with, as of one offset for each partition."""

    offsets: Mapping[int, int]
    """Per partition, the last offset that the windows reflect."""
    lines: tuple[Line, ...] = ()
    source: str = ""
    """Where they are from, in words."""

    @property
    def epochs(self) -> set[str]:
        """The lives of the log that the windows are of, where they say so: one, if all is well."""
        return {epoch_of(line["log"]) for line in self.lines if "log" in line}

    @classmethod
    def of(cls, lines: Iterable[Line], *, source: str) -> Given:
        """Return what a dump's *lines* give; of a partition with several stores the newest counts."""
        found = tuple(lines)
        offsets: dict[int, int] = {}
        for line in found:
            offsets[line["partition"]] = max(line["applied_offset"], offsets.get(line["partition"], -1))
        newest = tuple(line for line in found if line["applied_offset"] == offsets[line["partition"]])
        return cls(offsets, newest, source)

    def only(self, partitions: Iterable[int]) -> Given:
        """Return what is given of these *partitions* alone."""
        chosen = set(partitions)
        offsets = {partition: offset for partition, offset in self.offsets.items() if partition in chosen}
        return Given(offsets, tuple(line for line in self.lines if line["partition"] in chosen), self.source)

    def check(self, claims: Iterable[Line], *, starts: Mapping[int, int], topic: str) -> None:
        """Raise where an audit of *claims* can't begin here.

        Args:
            claims: the lines of the dump that is audited.
            starts: per partition, the first offset that the log still holds.
            topic: name of the log.

        Raises:
            LogError: the log begins after what is given, or nothing is given of a partition that begins behind 0.
            SourceError: what is given is newer than the dump, or of another life of the log.
        """
        for partition, start in starts.items():
            begins_at = self.offsets.get(partition, -1) + 1
            if start > begins_at:
                given = f"what is given of it ends at {begins_at - 1}" if begins_at else "nothing is given of it"
                raise LogError(
                    f"partition {partition} of {topic}",
                    problem=f"begins at offset {start}, and {given}: the clicks in between are gone",
                    remedy="name checkpoints in MINDSTREAM_CHECKPOINT_URL, or give an earlier dump with --base",
                )
        unknown = self.offsets.keys() - starts.keys()
        if unknown:
            problem = f"is of partition {min(unknown)}, which {topic} does not have"
            raise SourceError(self.source, problem=problem, remedy="give a dump of the same topic and cluster")
        dumped = Given.of(claims, source="")
        for partition, offset in self.offsets.items():
            if dumped.offsets.get(partition, offset) < offset:
                problem = f"is of offset {offset} of partition {partition}, later than the dump"
                raise SourceError(self.source, problem=problem, remedy="give a dump that was made before")
        if self.offsets and len(self.epochs | dumped.epochs) > 1:
            problem = f"is of another life of {topic} than the dump"
            raise SourceError(self.source, problem=problem, remedy="give a dump of the same topic and cluster")


NOTHING_GIVEN = Given({})


def choose_given(
    starts: Mapping[int, int],
    base: Iterable[Line] | None,
    checkpoints: Callable[[], Iterable[Line]] | None,
    source: str,
) -> Given:
    """Return what an audit begins with: all of *base* where there is one, else checkpoints of what the log has lost.

    Args:
        starts: per partition, the first offset that the log still holds.
        base: windows to begin with.
        checkpoints: dumps the checkpoints that the log goes on from; None where there are none.
        source: where *base* is from, in words.
    """
    if base is not None:
        return Given.of(base, source=source)
    cut = [partition for partition, start in starts.items() if start > 0]
    if not cut or checkpoints is None:
        return NOTHING_GIVEN
    return Given.of(checkpoints(), source="checkpoints").only(cut)
