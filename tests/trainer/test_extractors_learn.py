from __future__ import annotations

import pytest

from engine.model import MindConfig
from engine.model.config import EXTRACTORS
from tests.trainer.log_builders import draw_groups
from trainer.loop import train
from trainer.options import TrainOptions


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_loss_of_every_extractor_falls(name: str) -> None:
    losses: list[float] = []
    config = MindConfig(extractor=name, interests=1 if name == "single" else 4, dimensions=16, hidden=(16,))
    options = TrainOptions(
        batch_size=64, epochs=4.0, threads=1, learning_rate=5e-3, start_from_cooccurrence=False, novel_targets=False
    )

    train(draw_groups(), config, options, lambda progress: losses.append(progress.loss))

    assert losses[-1] < 0.9 * losses[0]
