"""EASE with recency decay: the closed-form linear model (Steck 2019), the strongest plain method on many sets.

B = I - P / diag(P) with P = inverse(X'X + lambda I), X being who clicked what; an item's score is the sum of its
column of B over the history, each older click weighing less. The diagonal of B is 0.

Lambda and decay are chosen on the valid questions: lambda walks along `LAMBDAS` from `FIRST_LAMBDA` in the direction
that helps, and at each stop all of `DECAYS` are tried. Above `MOST_ITEMS` items the square would not fit: then it holds
the `KEPT_ITEMS` most clicked, and pairs with another item score by their item-CF cosine, times a weight that is chosen
with the rest. What was chosen and the square itself are kept in the cache, under a hash of all that went in.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.offline.baselines import ItemCf, decayed
from trainer.offline.cooccurrence import Cooccurrence
from trainer.offline.metrics import judge
from trainer.offline.search import TOP, chunks, flat_histories, mask_histories, top_rows
from trainer.offline.sets import Part, Question

LAMBDAS = (30.0, 100.0, 300.0, 1_000.0, 2_000.0, 4_000.0)
FIRST_LAMBDA = 2
DECAYS = (0.7, 0.8, 0.9, 1.0)
REST_WEIGHTS = (0.1, 0.3, 1.0)
FIRST_REST_WEIGHT = 0.3
"""Under which the decays are compared."""
MOST_ITEMS = 30_000
KEPT_ITEMS = 20_000
MOST_QUESTIONS, TUNING_QUESTIONS = 5_000, 2_000
"""Up to 5,000 valid questions all are asked; of more, every so-manieth, which makes at most 2,000."""
FORMAT = 2
"""Of what lies in the cache."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class EaseChoice:
    """What was chosen on the valid questions."""

    ridge: float
    """Lambda."""
    decay: float
    rest_weight: float = 0.0
    """Factor on the cosines of pairs outside the square; 0 where every item is in it."""


class Ease:
    """The linear model of one training part, under one choice."""

    name = "EASE"

    def __init__(self, square: np.ndarray, rows: np.ndarray, choice: EaseChoice, counts: Cooccurrence) -> None:
        """Keep *square*, (M, M) float32 B of the items in *rows*, (M,) int64 ascending."""
        self._square = torch.from_numpy(square)
        self._rows = torch.from_numpy(rows)
        self._choice, self.item_count = choice, len(counts.users) - 1
        self._place = np.full(self.item_count + 1, -1, dtype=np.int64)
        self._place[rows] = np.arange(len(rows))
        self._rest = ItemCf(_outside(counts, self._place), last=10**9, decay=choice.decay)
        self._all_inside = len(rows) == self.item_count

    def scores(self, questions: Sequence[Question]) -> Tensor:
        """Return the sums of B over the histories, decayed."""
        owners, rows = flat_histories(questions)
        weights = decayed(questions, last=10**9, decay=self._choice.decay)
        places = self._place[rows]
        inside = places >= 0
        starts = np.searchsorted(owners[inside], np.arange(len(questions)))
        found = functional.embedding_bag(
            torch.from_numpy(places[inside]),
            self._square,
            torch.from_numpy(starts),
            mode="sum",
            per_sample_weights=torch.from_numpy(weights[inside]),
        )
        if self._all_inside:
            return torch.cat([torch.zeros(len(questions), 1), found], dim=1)
        scores = self._rest.scores(questions) * self._choice.rest_weight
        scores[:, self._rows] += found
        return scores


def tuned_ease(
    tuning: Part, asked: Sequence[Question], final: Part, *, counts: CountsOf, cache: Path, say: Say
) -> tuple[Ease, EaseChoice]:
    """Return EASE of *final* with what served *asked* best after learning from *tuning*.

    Args:
        tuning: the training part that goes with the valid questions.
        asked: the valid questions.
        final: the training part that goes with the questions to come.
        counts: the co-occurrences of a part.
        cache: folder for squares and choices; made where it is missing.
        say: told what takes long.
    """
    choice = _choose(tuning, asked, counts, cache, say)
    rows = chosen_rows(counts(final))
    path = cache / f"ease-{_hash(final, rows)}-{choice.ridge:g}.npy"
    square = _load(path)
    if square is None or square.shape != (len(rows), len(rows)):
        say(f"EASE: inverting a square of {len(rows):,} items, kept in {path} for the next time")
        square = invert(counts(final), rows, ridge=choice.ridge)
        _save(path, square)
    return Ease(square, rows, choice, counts(final)), choice


CountsOf = Callable[[Part], Cooccurrence]


def chosen_rows(counts: Cooccurrence, *, most: int = MOST_ITEMS, kept: int = KEPT_ITEMS) -> np.ndarray:
    """Return the (M,) int64 ascending rows of the items in the square: all up to *most*, else the *kept* most clicked.

    Args:
        counts: how many users clicked each item.
        most: up to so many items all are taken.
        kept: of more items so many.
    """
    items = len(counts.users) - 1
    if items <= most:
        return np.arange(1, items + 1)
    by_count = np.argsort(-counts.users[1:], kind="stable") + 1
    return np.sort(by_count[:kept])


def invert(counts: Cooccurrence, rows: np.ndarray, *, ridge: float) -> np.ndarray:
    """Return B, (M, M) float32, of the items in *rows*."""
    place = np.full(len(counts.users), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    owners = np.repeat(np.arange(len(counts.users)), np.diff(counts.starts))
    inside = (place[owners] >= 0) & (place[counts.neighbors] >= 0)
    gram = torch.zeros(len(rows), len(rows))
    gram[torch.from_numpy(place[owners[inside]]), torch.from_numpy(place[counts.neighbors[inside]])] = torch.from_numpy(
        counts.together[inside]
    )
    gram.diagonal().copy_(torch.from_numpy(counts.users[rows]) + ridge)
    lower = torch.linalg.cholesky(gram)
    del gram
    inverse = torch.cholesky_inverse(lower)
    del lower
    inverse.div_(-inverse.diagonal().clone())
    inverse.fill_diagonal_(0.0)
    return inverse.numpy()


def _choose(part: Part, asked: Sequence[Question], counts: CountsOf, cache: Path, say: Say) -> EaseChoice:
    if len(asked) > MOST_QUESTIONS:
        asked = asked[:: -(-len(asked) // TUNING_QUESTIONS)]
    rows = chosen_rows(counts(part))
    path = cache / f"ease-choice-{_hash(part, rows, asked)}.json"
    kept = _load_choice(path)
    if kept is not None:
        return kept
    if not asked:
        return EaseChoice(
            LAMBDAS[FIRST_LAMBDA], DECAYS[1], 0.0 if len(rows) == len(counts(part).users) - 1 else FIRST_REST_WEIGHT
        )
    best, found, square = EaseChoice(LAMBDAS[FIRST_LAMBDA], DECAYS[0]), -1.0, None
    tried: set[int] = set()
    for direction in (1, -1):
        place = FIRST_LAMBDA if direction == 1 else FIRST_LAMBDA - 1
        while 0 <= place < len(LAMBDAS) and place not in tried:
            tried.add(place)
            candidate = invert(counts(part), rows, ridge=LAMBDAS[place])
            choice, recall = _best_decay(candidate, rows, LAMBDAS[place], asked, counts(part))
            say(f"EASE: lambda {LAMBDAS[place]:g}, decay {choice.decay:g}: Recall@50 {recall:.4f} on valid")
            if recall <= found:
                break
            best, found, square = choice, recall, candidate
            place += direction
        if best.ridge > LAMBDAS[FIRST_LAMBDA]:
            break
    if square is not None:
        _save(cache / f"ease-{_hash(part, rows)}-{best.ridge:g}.npy", square)
    _save_choice(path, best)
    return best


def _best_decay(
    square: np.ndarray, rows: np.ndarray, ridge: float, asked: Sequence[Question], counts: Cooccurrence
) -> tuple[EaseChoice, float]:
    """Return the best decay for one square, then the best weight of the rest under it, and its Recall@50."""

    def recall(choice: EaseChoice) -> float:
        return _recall(Ease(square, rows, choice, counts), asked)

    whole = len(rows) == len(counts.users) - 1
    decays = {
        recall(choice): choice
        for choice in (EaseChoice(ridge, decay, 0.0 if whole else FIRST_REST_WEIGHT) for decay in reversed(DECAYS))
    }
    if not whole:
        best = decays[max(decays)]
        weights = [weight for weight in REST_WEIGHTS if weight != FIRST_REST_WEIGHT]
        decays |= {recall(choice): choice for choice in (replace(best, rest_weight=weight) for weight in weights)}
    return decays[max(decays)], max(decays)


def _recall(method: Ease, asked: Sequence[Question]) -> float:
    lists = np.zeros((len(asked), TOP), dtype=np.int64)
    for start, batch in chunks(asked, method.item_count):
        scores = method.scores(batch)
        scores[:, 0] = -torch.inf
        lists[start : start + len(batch)] = top_rows(mask_histories(scores, batch), TOP)
    return float(judge(lists, asked)["recall_at_50"].mean())


def _outside(counts: Cooccurrence, place: np.ndarray) -> Cooccurrence:
    """Return the co-occurrences of pairs that the square leaves out."""
    owners = np.repeat(np.arange(len(counts.users)), np.diff(counts.starts))
    outside = (place[owners] < 0) | (place[counts.neighbors] < 0)
    starts = np.append(0, np.cumsum(np.bincount(owners[outside], minlength=len(counts.users))))
    return Cooccurrence(starts, counts.neighbors[outside], counts.together[outside], counts.users)


def _hash(part: Part, rows: np.ndarray, asked: Sequence[Question] = ()) -> str:
    digest = hashlib.sha256(f"{FORMAT} {LAMBDAS} {DECAYS} {REST_WEIGHTS}".encode())
    lists = [rows, *part.sequences, *(array for question in asked for array in (question.history, question.targets))]
    digest.update(np.array([len(array) for array in lists], dtype="<i8").tobytes())
    digest.update(np.concatenate(lists).astype("<i8").tobytes())
    return digest.hexdigest()[:32]


def _load(path: Path) -> np.ndarray | None:
    try:
        # Copy on write, so that torch may take it; nothing writes to it.
        square: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there, or cut short: it is made anew
    return square


def _save(path: Path, square: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(path.name + ".new")
    with written.open("wb") as file:
        np.save(file, square, allow_pickle=False)
    written.replace(path)


def _load_choice(path: Path) -> EaseChoice | None:
    try:
        return EaseChoice(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _save_choice(path: Path, choice: EaseChoice) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(choice)))
