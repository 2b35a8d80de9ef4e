"""The three splits: what is learned from, and what is asked.

- `comirec`: unseen users. Items seen at least 5 times, then users with at least 5 such clicks; users shuffled with
  Python's `random.Random(1230)`, 8:1:1. Of a valid or test user's n clicks the first int(0.8 n) are the history, the
  others the targets. A file that names the parts itself is taken as it stands.
- `next-click`: what comes next. Sessions: every prefix of the folder's test sessions asks for the click after it, and
  the last tenth of the train sessions is valid. Users: the last click is the test target, the one before it the valid
  one.
- `time`: the latest tenth of all clicks is test, the tenth before it valid; a user's clicks before the moment are the
  history, the distinct ones after it the targets.

Who can't be asked, for want of a history or a target, is left out, and a remark says how many.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

import numpy as np

from engine.errors import ConfigError, SourceError
from trainer.offline.sequences import TEST, TRAIN, VALID, Kind, Sequences
from trainer.offline.sets import OfflineSet, Part, Question

SHUFFLE_SEED = 1230
LEAST_CLICKS = 5
"""`comirec`: clicks that an item, then a user, must have."""
HELD_OUT_SHARE = 0.1
"""Of clicks (`time`) or of train sessions (`next-click`)."""


class Split(StrEnum):
    """How a data set is taken apart."""

    COMIREC = "comirec"
    NEXT_CLICK = "next-click"
    TIME = "time"


FITTING = {
    Kind.PARTED: (Split.COMIREC,),
    Kind.SESSIONS: (Split.NEXT_CLICK,),
    Kind.USERS: (Split.COMIREC, Split.NEXT_CLICK, Split.TIME),
}


def split_sequences(sequences: Sequences, split: Split) -> OfflineSet:
    """Return *sequences* under *split*.

    Raises:
        ConfigError: the data can't be split so.
        SourceError: nothing to learn from, or nobody to ask, is left.
    """
    fitting = FITTING[sequences.kind]
    if split not in fitting:
        expected = f"{' or '.join(fitting)} for {sequences.name}, which holds {sequences.kind.value}"
        raise ConfigError("--split", got=split.value, expected=expected)
    if split is Split.TIME and sequences.times_ms is None:
        raise ConfigError("--split", got=split.value, expected=f"another one: {sequences.name} has no event times")
    if sequences.kind is Kind.PARTED:
        made = _by_users(sequences, split)
    elif split is Split.COMIREC:
        made = _ranked(_by_users(_assign_parts(sequences), split))
    elif split is Split.TIME:
        made = _ranked(_by_time(sequences))
    elif sequences.kind is Kind.SESSIONS:
        made = _ranked(_by_sessions(sequences))
    else:
        made = _ranked(_leave_last_out(sequences))
    _check(made)
    return replace(made, of_sessions=sequences.kind is Kind.SESSIONS)


def _by_users(sequences: Sequences, split: Split) -> OfflineSet:
    parts = sequences.parts
    assert parts is not None
    train = _part(sequences, np.flatnonzero(parts == TRAIN))
    asked = {
        part: [
            _ask(sequences, user, known=int(0.8 * count))
            for user in np.flatnonzero(parts == part).tolist()
            if (count := len(sequences.sequence(user))) > 1
        ]
        for part in (VALID, TEST)
    }
    short = int((parts != TRAIN).sum()) - sum(len(questions) for questions in asked.values())
    return _set(sequences, split, train, train, asked[VALID], asked[TEST], _unasked(short, "fewer than 2 clicks"))


def _assign_parts(sequences: Sequences) -> Sequences:
    """Return *sequences* without rare items and short users, shuffled and divided 8:1:1."""
    common = np.bincount(sequences.rows, minlength=len(sequences.item_ids) + 1) >= LEAST_CLICKS
    stays = [common[rows] for rows in map(sequences.sequence, range(sequences.user_count))]
    lists = [sequences.sequence(user)[kept] for user, kept in enumerate(stays)]
    users = [user for user, rows in enumerate(lists) if len(rows) >= LEAST_CLICKS]
    random.Random(SHUFFLE_SEED).shuffle(users)
    edges = (int(len(users) * 0.8), int(len(users) * 0.9))
    parts = np.full(len(users), TRAIN, dtype=np.int8)
    parts[edges[0] :], parts[edges[1] :] = VALID, TEST
    chosen = [lists[user] for user in users]
    starts = np.append(0, np.cumsum([len(rows) for rows in chosen])).astype(np.int64)
    return replace(
        sequences,
        user_ids=[sequences.user_ids[user] for user in users],
        rows=np.concatenate([np.zeros(0, dtype=np.int64), *chosen]),
        starts=starts,
        times_ms=None,
        weights=None if sequences.weights is None else _chosen(sequences.weights, sequences.starts, stays, users),
        parts=parts,
        profiles=[sequences.profile(user) for user in users] if sequences.profiles else (),
    )


def _chosen(values: np.ndarray, starts: np.ndarray, stays: Sequence[np.ndarray], users: Sequence[int]) -> np.ndarray:
    """Return those of the clicks' *values* that stay, user by user in the order of *users*."""
    kept = [values[starts[user] : starts[user + 1]][stays[user]] for user in users]
    return np.concatenate([np.zeros(0, dtype=values.dtype), *kept])


def _by_sessions(sequences: Sequences) -> OfflineSet:
    parts = sequences.parts
    if parts is None:
        parts = np.full(sequences.user_count, TRAIN, dtype=np.int8)
        parts[int(len(parts) * (1 - HELD_OUT_SHARE)) :] = TEST
    trained = np.flatnonzero(parts == TRAIN)
    edge = int(len(trained) * (1 - HELD_OUT_SHARE))
    valid = _prefixes(sequences, trained[edge:])
    test = _prefixes(sequences, np.flatnonzero(parts == TEST))
    train, final = _part(sequences, trained[:edge]), _part(sequences, trained)
    return _set(sequences, Split.NEXT_CLICK, train, final, valid, test, [])


def _prefixes(sequences: Sequences, users: np.ndarray) -> list[Question]:
    return [
        _ask(sequences, user, known=end, until=end + 1)
        for user in users.tolist()
        for end in range(1, len(sequences.sequence(user)))
    ]


def _leave_last_out(sequences: Sequences) -> OfflineSet:
    everybody = np.arange(sequences.user_count)
    lengths = np.diff(sequences.starts)
    asked: dict[int, list[Question]] = {}
    for part, kept in ((VALID, 2), (TEST, 1)):
        asked[part] = [
            _ask(sequences, user, known=lengths[user] - kept, until=lengths[user] - kept + 1)
            for user in everybody[lengths > kept].tolist()
        ]
    remarks = _unasked(int((lengths <= 1).sum()), "fewer than 2 clicks")
    train, final = (_part(sequences, everybody, leave_out=left) for left in (2, 1))
    return _set(sequences, Split.NEXT_CLICK, train, final, asked[VALID], asked[TEST], remarks)


def _by_time(sequences: Sequences) -> OfflineSet:
    times_ms = sequences.times_ms
    assert times_ms is not None
    ordered = np.sort(times_ms)
    edges = [ordered[int(len(ordered) * (1 - share * HELD_OUT_SHARE))] for share in (2, 1)]
    users = np.repeat(np.arange(sequences.user_count), np.diff(sequences.starts))
    before = [np.bincount(users[times_ms < edge], minlength=sequences.user_count) for edge in edges]
    whole = np.diff(sequences.starts)
    valid = _later(sequences, before[0], before[1])
    test = _later(sequences, before[1], whole)
    remarks = _unasked(int(((before[1] == 0) & (whole > 0)).sum()), "no click before the test part")
    train, final = (_cut(sequences, known) for known in before)
    return _set(sequences, Split.TIME, train, final, valid, test, remarks)


def _later(sequences: Sequences, known: np.ndarray, until: np.ndarray) -> list[Question]:
    users = np.flatnonzero((known > 0) & (until > known)).tolist()
    return [_ask(sequences, user, known=known[user], until=until[user]) for user in users]


def _ask(sequences: Sequences, user: int, *, known: int, until: int | None = None) -> Question:
    """Ask for the clicks of *user* from number *known* up to *until*, or the last one, after those before them."""
    rows, weights = sequences.sequence(user), sequences.weights_of(user)
    return Question(
        sequences.user_ids[user],
        rows[:known],
        np.unique(rows[known:until]),
        sequences.profile(user),
        None if weights is None else weights[:known],
    )


def _part(sequences: Sequences, users: np.ndarray, *, leave_out: int = 0) -> Part:
    chosen = users.tolist()
    ends = [max(len(sequences.sequence(user)) - leave_out, 0) for user in chosen]
    return _first_clicks(sequences, chosen, ends)


def _first_clicks(sequences: Sequences, users: Sequence[int], ends: Sequence[int]) -> Part:
    weights = [
        own[:end] for user, end in zip(users, ends, strict=True) if (own := sequences.weights_of(user)) is not None
    ]
    return Part(
        [sequences.sequence(user)[:end] for user, end in zip(users, ends, strict=True)],
        [sequences.user_ids[user] for user in users],
        [sequences.profile(user) for user in users] if sequences.profiles else (),
        weights,
    )


def _cut(sequences: Sequences, known: np.ndarray) -> Part:
    return _first_clicks(sequences, range(sequences.user_count), known.tolist())


def _unasked(count: int, reason: str) -> list[str]:
    return [f"{count:,} users are not asked about: {reason}"] if count else []


def _set(
    sequences: Sequences,
    split: Split,
    train: Part,
    final_train: Part,
    valid: Sequence[Question],
    test: Sequence[Question],
    remarks: Sequence[str],
) -> OfflineSet:
    return OfflineSet(
        name=sequences.name,
        split=split.value,
        item_ids=sequences.item_ids,
        train=train,
        final_train=final_train,
        valid=valid,
        test=test,
        items=sequences.items,
        categories=sequences.categories,
        remarks=[*sequences.remarks, *remarks],
    )


def _ranked(made: OfflineSet) -> OfflineSet:
    """Return the set with items numbered by falling count in the final training, ties by id; unused ones are gone."""
    questions = [*made.valid, *made.test]
    counts = made.final_train.counts(made.item_count)
    used = counts > 0
    for question in questions:
        used[question.history] = used[question.targets] = True
    order = sorted(np.flatnonzero(used).tolist(), key=lambda row: (-counts[row], made.item_ids[row - 1]))
    new_row = np.zeros(made.item_count + 1, dtype=np.int64)
    new_row[order] = np.arange(1, len(order) + 1)
    train = _renumbered(made.train, new_row)
    same = made.final_train is made.train
    return replace(
        made,
        item_ids=[made.item_ids[row - 1] for row in order],
        train=train,
        final_train=train if same else _renumbered(made.final_train, new_row),
        valid=[_renamed(question, new_row) for question in made.valid],
        test=[_renamed(question, new_row) for question in made.test],
    )


def _renumbered(part: Part, new_row: np.ndarray) -> Part:
    return replace(part, sequences=[new_row[rows] for rows in part.sequences])


def _renamed(question: Question, new_row: np.ndarray) -> Question:
    return replace(question, history=new_row[question.history], targets=np.sort(new_row[question.targets]))


def _check(made: OfflineSet) -> None:
    if not any(len(rows) > 1 for rows in made.final_train.sequences):
        problem = f"leaves {made.final_train.click_count} clicks to learn from under --split {made.split}"
        raise SourceError(made.name, problem=problem, remedy="give a data set whose users have two clicks or more")
    if not made.test:
        problem = f"leaves nobody to ask about under --split {made.split}"
        raise SourceError(made.name, problem=problem, remedy="give a data set with test users of two clicks or more")
