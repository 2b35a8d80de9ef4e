from __future__ import annotations

import numpy as np

from trainer.negatives import draw_negatives


def test_negatives_are_uniform_and_never_padding() -> None:
    drawn = draw_negatives(np.random.default_rng(0), items=5, count=50_000)

    shares = np.bincount(drawn, minlength=6) / 50_000
    np.testing.assert_allclose(shares, [0.0, 0.2, 0.2, 0.2, 0.2, 0.2], atol=0.01)
