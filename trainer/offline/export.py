"""Vectors for outside evaluation: one `.npz` file from which anybody's evaluator can check ours.

No object arrays, so nothing has to be unpickled: ids are fixed-width Unicode. A file appears under its name when it is
complete.

    item_vectors  (N + 1, D) float32, row 0 padding, zero where an item has no vector
    user_vectors  (U, K, D) float32, interest_mask (U, K) bool
    history_ptr, target_ptr  (U + 1,) int64: user u's are ids[ptr[u] : ptr[u + 1]]
    history_ids, target_ids  int64 item rows; histories oldest first
    item_ids      (N + 1,) text, row 0 empty; user_ids (U,) text
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from engine.errors import SourceError, UnusableInterests
from trainer.offline.neural import InterestMethod
from trainer.offline.sets import OfflineSet, Question


def export_vectors(path: Path, method: InterestMethod, made: OfflineSet, questions: Sequence[Question]) -> None:
    """Write the vectors of *method* and the *questions* to *path*.

    Raises:
        UnusableInterests: a vector is not finite.
        SourceError: the file can't be written.
    """
    vectors, mask = method.users(questions)
    if not np.isfinite(vectors).all() or not np.isfinite(method.item_vectors).all():
        bad = int((~np.isfinite(vectors)).any(axis=(1, 2)).sum())
        raise UnusableInterests(f"({method.name}, to be exported)", users=bad, of=len(questions))
    arrays = {
        "item_vectors": method.item_vectors,
        "user_vectors": vectors,
        "interest_mask": mask,
        "item_ids": np.array(["", *made.item_ids], dtype=np.str_),
        "user_ids": np.array([question.user_id for question in questions], dtype=np.str_),
    }
    for name, lists in (
        ("history", [question.history for question in questions]),
        ("target", [question.targets for question in questions]),
    ):
        arrays[f"{name}_ptr"] = np.append(0, np.cumsum([len(rows) for rows in lists])).astype(np.int64)
        arrays[f"{name}_ids"] = np.concatenate([np.zeros(0, dtype=np.int64), *lists])
    written = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        written.replace(path)
    except OSError as error:
        raise SourceError(path, problem=f"can't be written: {error}", remedy="choose another place") from error
