"""The training loop: samples in, a trained InterestModel out.

AdamW with warm-up and cosine decay over a number of steps planned from the epochs. Where the planned steps would not
fit into `max_seconds`, the plan is shortened while it runs, so the learning rate still ends low; the progress says so.
While time suffices the result depends on log, config, options and the number of threads alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from engine.errors import ConfigError, TrainingDiverged
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.network import MindNetwork
from trainer.checkpoint import Checkpoint, Checkpoints, Position, fingerprint
from trainer.options import TrainOptions
from trainer.samples import ClickLog, Samples, build_samples, build_vocabulary, field_rows
from trainer.schedule import Plan, learning_rate
from trainer.start import start_items
from trainer.steps import Steps


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands after a step."""

    step: int
    steps: int
    """Steps of the plan now in force."""
    planned_steps: int
    """Steps that the epochs asked for; more than `steps` where time is short."""
    epochs: float
    """Passes over the samples so far."""
    loss: float
    """Mean over the last steps, natural log."""
    seconds: float
    resumed_at: int | None = None
    """The step that a checkpoint let the run go on from."""


def train(
    log: ClickLog,
    config: MindConfig,
    options: TrainOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    checkpoints: Checkpoints | None = None,
) -> InterestModel:
    """Return a model trained on all of *log*; for the rest see `train_samples`.

    Raises:
        ConfigError: no user of *log* has two positive clicks, so there is nothing to learn.
    """
    vocabulary = build_vocabulary(log)
    samples = build_samples(log, vocabulary, config)
    rows = field_rows(vocabulary, log.items)
    return train_samples(samples, vocabulary, rows, config, options, on_progress, clock=clock, checkpoints=checkpoints)


def train_samples(
    samples: Samples,
    vocabulary: Vocabulary,
    item_field_rows: np.ndarray,
    config: MindConfig,
    options: TrainOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    clock: Callable[[], float] = time.monotonic,
    checkpoints: Checkpoints | None = None,
) -> InterestModel:
    """Return a model trained on *samples*, whose items and profiles *vocabulary* names.

    Args:
        samples: clicks by item row.
        vocabulary: what the rows stand for.
        item_field_rows: (N + 1, F) int64, each item's fields as `samples.field_rows` gives them.
        config: what the model is.
        options: how it learns.
        on_progress: called after each step.
        clock: seconds, for the limit on the wall time.
        checkpoints: where the run keeps its state and looks for that of a run of the same inputs that was cut short;
            it goes on from there, to the same weights. None keeps nothing.

    Raises:
        ConfigError: no user of *samples* has two positive clicks, so there is nothing to learn; the device is not
            there; or the checkpoint can't be written.
        TrainingDiverged: the loss or a weight is not finite.
    """
    if not len(samples.targets):
        raise ConfigError("clicks", got=len(samples.rows), expected="a user with at least two clicks to learn from")
    device = _device(options.device)
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        torch.manual_seed(options.seed)
        network = MindNetwork(config, vocabulary, torch.from_numpy(item_field_rows))
        if options.start_from_cooccurrence:
            start_items(network, samples, horizon=options.horizon, seed=options.seed)
        network = network.to(device)
        checkpoint = None
        if checkpoints is not None:
            checkpoint = checkpoints.of(fingerprint(samples, vocabulary, item_field_rows, config, options))
        _run_steps(network, samples, options, on_progress, clock, checkpoint)
    finally:
        torch.set_num_threads(threads)
    return InterestModel(network, vocabulary)


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # no such word, or no such device here
        raise ConfigError("TrainOptions.device", got=name, expected="cpu, or cuda where torch finds one") from error


def _run_steps(
    network: MindNetwork,
    samples: Samples,
    options: TrainOptions,
    on_progress: Callable[[Progress], None],
    clock: Callable[[], float],
    checkpoint: Checkpoint | None = None,
) -> None:
    planned = max(1, math.ceil(options.epochs * len(samples.targets) / options.batch_size))
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    trainer = Steps(network, samples, options)
    found = None if checkpoint is None else checkpoint.read(network, optimizer)
    plan = Plan(planned, max_seconds=options.max_seconds, started=clock(), found=found)
    step, recent = 0, list[float]()
    if found is not None:
        step, recent = found.step, [*found.recent]
        trainer.go_on(found.random, found.order)
    while step < plan.steps:
        rate = learning_rate(step, plan.steps, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = trainer.loss(trainer.next_batch())
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        at = _Moment(step, rate, recent[-1] if recent else math.nan, checkpoint)
        recent = [*recent[-49:], at.finite(loss.item())]
        seconds = plan.hold_against_clock(step, clock())
        epochs = step * options.batch_size / len(samples.targets)
        resumed_at = None if found is None else found.step
        on_progress(Progress(step, plan.steps, planned, epochs, sum(recent) / len(recent), seconds, resumed_at))
        if checkpoint is not None and checkpoint.is_due(seconds):
            at.finite_weights(network)
            random, order = trainer.random_and_order()
            position = Position(step, plan.steps, seconds, plan.timed, tuple(recent), random, order)
            checkpoint.write(position, network, optimizer)
    if checkpoint is not None:
        checkpoint.clear()


@dataclass(frozen=True, slots=True)
class _Moment:
    """A step, for the sentence that a diverged training ends with."""

    step: int
    rate: float
    loss: float
    checkpoint: Checkpoint | None

    def finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise self._diverged("the loss")
        return loss

    def finite_weights(self, network: MindNetwork) -> None:
        for name, weights in network.named_parameters():
            if not bool(torch.isfinite(weights).all()):
                raise self._diverged(f"the weight {name}")

    def _diverged(self, what: str) -> TrainingDiverged:
        path, kept = (None, None) if self.checkpoint is None else (self.checkpoint.path, self.checkpoint.step)
        return TrainingDiverged(what, step=self.step, loss=self.loss, rate=self.rate, checkpoint=path, kept=kept)
