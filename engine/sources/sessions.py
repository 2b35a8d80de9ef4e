"""Session files: one session per line, item ids separated by spaces, in click order.

Such sets know no user and no time. Each session becomes a user of its own, and the clicks get synthetic times, one
second apart in the order of the file, so that order is kept and nothing else is claimed.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import structlog

from engine.errors import SourceError
from engine.events import ClickEvent, ItemEvent
from engine.sources.table import find_table, read_table
from engine.sources.tabular import BadRow, as_id, read_catalog

FILE_NAMES = ("train_sessions.txt.gz", "train_sessions.txt", "test_sessions.txt.gz", "test_sessions.txt")
"""What a folder of sessions holds, in the order of time."""
START_MS = 1_704_067_200_000
"""2024-01-01 00:00 UTC: the time of the first click."""
STEP_MS = 1_000

log = structlog.get_logger()


class Sessions:
    """A session file, or a folder with `train_sessions.txt[.gz]` and perhaps `test_sessions` and `items.*`."""

    simulated = False

    def __init__(self, path: Path) -> None:
        files = session_files(path) if path.is_dir() else [path]
        self.name = (path if path.is_dir() else files[0]).resolve().name.split(".")[0]
        self.dropped: Counter[str] = Counter()
        """Ids left out, by reason."""
        self._sessions: list[list[str]] = []
        first_bad: str | None = None
        for file in files:
            for number, line in enumerate(_lines(file), start=1):
                session, problem = self._ids(line)
                first_bad = first_bad or (problem and f"{file.name} line {number}: {problem}")
                if session:
                    self._sessions.append(session)
        if not self._sessions:
            raise SourceError(
                path, problem="holds no session", remedy="write one per line, item ids separated by spaces"
            )
        if first_bad:
            log.warning("ids_dropped", file=self.name, **self.dropped, first=first_bad)
        items = find_table(path, "items") if path.is_dir() else None
        self._items = read_catalog(read_table(items)) if items else {}
        self.click_count = sum(len(session) for session in self._sessions)

    def clicks(self) -> Iterator[ClickEvent]:
        """Yield the clicks, session after session, one second apart."""
        place = 0
        digits = len(str(len(self._sessions)))
        for number, session in enumerate(self._sessions):
            for item_id in session:
                yield ClickEvent(
                    user_id=f"s{number:0{digits}d}",
                    item_id=item_id,
                    clicked_at_ms=START_MS + place * STEP_MS,
                    event_id=str(place),
                )
                place += 1

    def items(self) -> Iterator[ItemEvent]:
        """Yield the catalog by ascending item id: every item of the catalog's table and of the sessions."""
        for item_id in sorted({item_id for session in self._sessions for item_id in session} | self._items.keys()):
            yield self._items.get(item_id) or ItemEvent(item_id=item_id)

    def _ids(self, line: str) -> tuple[list[str], str | None]:
        session, problem = [], None
        for word in line.split():
            try:
                session.append(as_id(word, "item"))
            except BadRow as bad:
                self.dropped[bad.reason] += 1
                problem = problem or bad.detail
        return session, problem


def session_files(folder: Path) -> list[Path]:
    """Return the session files of *folder* in the order of time."""
    return [folder / name for name in FILE_NAMES if (folder / name).is_file()]


def _lines(file: Path) -> Iterator[str]:
    try:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open() as lines:
            yield from lines
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise SourceError(file, problem=f"can't be read: {error}", remedy="give a text file in UTF-8") from error
