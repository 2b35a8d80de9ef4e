"""Text files of sequences: the four shapes that public sequence data comes in, told apart by their first lines.

- parted: `train|valid|test row row ...`, the item rows fixed by the file; user id = line number from 1
- sessions: `item item ...`, one session a line; a folder's `train_sessions` come before its `test_sessions`
- pairs: `user item`, one click a line, grouped by user or not
- user lines: `user item item ...`, one user a line
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from engine.errors import SourceError
from trainer.offline.sequences import TEST, TRAIN, VALID, Kind, Sequences

SUFFIXES = (".txt", ".txt.gz")
PARTS = {"train": TRAIN, "valid": VALID, "test": TEST}
LOOK_LINES = 10_000
"""So many lines tell the shape of a file."""
MAX_ROW = 5_000_000
"""A larger item row in a parted file is taken for an error: tables of that size would not fit anyway."""
MAX_ID_BYTES = 256


def is_text(path: Path) -> bool:
    """Return whether the name of *path* is that of a text file of sequences."""
    return path.name.lower().endswith(SUFFIXES)


def read_text(path: Path) -> Sequences:
    """Return what the text file at *path* holds.

    Raises:
        SourceError: it can't be read, is empty, or a line of a parted file is none.
    """
    looked = [line.split() for line in islice(lines_of(path), LOOK_LINES)]
    looked = [words for words in looked if words]
    if not looked:
        raise SourceError(path, problem="is empty", remedy="give a file with one user or session a line")
    if looked[0][0] in PARTS:
        return _read_parted(path)
    if "session" in path.name.lower():
        return _read_lines(path, lines_of(path), kind=Kind.SESSIONS)
    if all(len(words) == 2 for words in looked):
        return _read_pairs(path)
    if len({words[0] for words in looked}) == len(looked):
        return _read_lines(path, lines_of(path), kind=Kind.USERS)
    return _read_lines(path, lines_of(path), kind=Kind.SESSIONS)


def read_sessions(folder: Path, *, train: Path, test: Path | None) -> Sequences:
    """Return the sessions of *folder*: those of *train*, then those of *test*, marked as such."""
    first = list(lines_of(train))
    later = [] if test is None else list(lines_of(test))
    found = _read_lines(folder, [*first, *later], kind=Kind.SESSIONS)
    kept = sum(bool(line.strip()) for line in first)
    parts = np.full(found.user_count, TRAIN, dtype=np.int8)
    parts[kept:] = TEST
    return replace(found, parts=parts if test is not None else None)


def lines_of(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, plain or gzipped.

    Raises:
        SourceError: it isn't there, or is no such file.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
            yield from lines
    except (OSError, UnicodeDecodeError, EOFError, zlib.error) as error:
        raise SourceError(path, problem=f"can't be read: {error}", remedy="give a text file in UTF-8") from error


def _read_parted(path: Path) -> Sequences:
    lists: list[list[int]] = []
    users: list[str] = []
    parts: list[int] = []
    for number, line in enumerate(lines_of(path), start=1):
        words = line.split()
        if not words:
            continue
        part = PARTS.get(words[0])
        if part is None:
            raise _bad_line(path, number, f"starts with {words[0]!r}", "train, valid or test")
        lists.append(_rows_of(path, number, words[1:]))
        users.append(str(number))
        parts.append(part)
    items = max((max(rows, default=0) for rows in lists), default=0)
    if not items:
        raise SourceError(path, problem="holds no click", remedy="give each user at least two item rows")
    return Sequences.of_lists(
        lists,
        name=path.name.split(".")[0],
        kind=Kind.PARTED,
        item_ids=[str(row) for row in range(1, items + 1)],
        user_ids=users,
        parts=np.array(parts, dtype=np.int8),
    )


def _rows_of(path: Path, number: int, words: Sequence[str]) -> list[int]:
    try:
        rows = list(map(int, words))
    except ValueError:
        wrong = next(word for word in words if not word.lstrip("+-").isdecimal())
        raise _bad_line(path, number, f"has item {wrong!r}", f"rows from 1 to {MAX_ROW:,}") from None
    wrong_row = next((row for row in rows if not 1 <= row <= MAX_ROW), None)
    if wrong_row is not None:
        raise _bad_line(path, number, f"has item row {wrong_row}", f"rows from 1 to {MAX_ROW:,}")
    return rows


def _bad_line(path: Path, number: int, got: str, expected: str) -> SourceError:
    return SourceError(path, problem=f"line {number} {got}, expected {expected}", remedy="mend that line")


def _read_pairs(path: Path) -> Sequences:
    by_user: dict[str, list[str]] = {}
    for number, line in enumerate(lines_of(path), start=1):
        words = line.split()
        if not words:
            continue
        if len(words) != 2:
            raise _bad_line(path, number, f"has {len(words)} fields", "2: a user and an item")
        by_user.setdefault(words[0], []).append(words[1])
    return _number(path, list(by_user), list(by_user.values()), Kind.USERS)


def _read_lines(path: Path, lines: Iterable[str], *, kind: Kind) -> Sequences:
    sessions = [words for words in (line.split() for line in lines) if words]
    if kind is Kind.SESSIONS:
        digits = len(str(len(sessions)))
        return _number(path, [f"s{number:0{digits}d}" for number in range(len(sessions))], sessions, kind)
    return _number(path, [words[0] for words in sessions], [words[1:] for words in sessions], kind)


def _number(path: Path, users: Sequence[str], lists: Sequence[Sequence[str]], kind: Kind) -> Sequences:
    """Return the sequences of ids *lists*, items numbered as they first appear."""
    rows: dict[str, int] = {}
    numbered = [[rows.setdefault(word, len(rows) + 1) for word in words] for words in lists]
    longest = max(rows, key=len, default="")
    if len(longest.encode()) > MAX_ID_BYTES:
        problem = f"has an item id of {len(longest.encode())} bytes, expected at most {MAX_ID_BYTES}"
        raise SourceError(path, problem=problem, remedy="separate item ids by spaces")
    if not rows:
        raise SourceError(path, problem="holds no click", remedy="write item ids, separated by spaces")
    return Sequences.of_lists(
        numbered, name=path.name.split(".")[0], kind=kind, item_ids=list(rows), user_ids=list(users)
    )
