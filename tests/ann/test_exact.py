from __future__ import annotations

import numpy as np
import pytest
import torch

from engine.ann.exact import ExactIndex
from tests.ann.test_index import draw


def test_of_items_equal_at_the_last_place_the_lowest_rows_are_taken():
    vectors = np.zeros((40, 4), dtype=np.float32)
    vectors[30] = [2, 0, 0, 0]
    vectors[5:25] = [1, 0, 0, 0]

    rows, _ = ExactIndex(vectors).search(np.array([[1, 0, 0, 0]], dtype=np.float32), 4)

    assert list(rows[0]) == [30, 5, 6, 7]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_answers_as_the_cpu_does():
    vectors, interests = draw(5_000, 64), draw(100, 64, seed=4)

    on_gpu, on_cpu = (ExactIndex(vectors, device=device).search(interests, 50) for device in ("cuda", "cpu"))

    assert (on_gpu[0] == on_cpu[0]).mean() > 0.999
