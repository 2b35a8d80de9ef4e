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
from torch import Tensor
from torch.nn import functional

from engine.errors import ConfigError
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.features import WindowBatch
from engine.model.mind import MindNetwork, WindowTensors, attend
from trainer.negatives import (
    FULL_SOFTMAX_ITEMS,
    NEGATIVES,
    SAMPLINGS,
    Sampler,
    full_softmax_loss,
    sampled_softmax_loss,
)
from trainer.samples import ClickLog, Samples, build_samples, build_vocabulary, cut_windows, field_rows
from trainer.start import start_items

TIMING_STEPS = 10
"""The plan is held against the clock after every so many steps."""


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How one run learns; the defaults are measured in docs/model.md."""

    batch_size: int = 512
    """Samples of one step."""
    epochs: float = 3.0
    """Passes over the samples."""
    max_seconds: float = 600.0
    """Wall time of the steps; fewer are made where they would not fit."""
    threads: int = 2
    """Threads of torch."""
    seed: int = 7
    device: str = "cpu"
    learning_rate: float = 3e-3
    """Peak, after the warm-up."""
    warmup_share: float = 0.03
    """Share of the steps in which the rate rises."""
    final_rate_share: float = 0.01
    """Share of the peak that the rate ends at."""
    weight_decay: float = 0.0
    start_from_cooccurrence: bool = True
    """Start item vectors from a truncated SVD of who clicked what; False: at random."""
    label_aware: bool = False
    """Score negatives with the vector that attention made for the target, as the paper does; False: every item by its
    best interest, as lists are ranked."""
    horizon: int = 50
    """The target is one of the next so many clicks after the window."""
    near_targets: bool = True
    """Draw near clicks more often: the one at distance d with a chance in proportion to log(1 + 1 / d)."""
    novel_targets: bool = True
    """Learn only targets that are not in their window, since lists leave seen items out."""
    negatives: int | None = None
    """Drawn negatives a step; None takes 2,048, or every item where there are no more and sampling is uniform."""
    sampling: str = "uniform"
    """Where negatives come from: one of `negatives.SAMPLINGS`."""
    hardness: float = 0.0
    """Beta of REMI's interest-aware hard negatives, 0 for none; not for the softmax over every item."""
    routing_variance_penalty: float = 0.0
    """Factor of REMI's routing regularization: the variance of each interest's routing weights over the clicks."""
    behavior_dropout: float = 0.2
    """Share of the numbers of behavior vectors set to 0."""
    click_dropout: float = 0.2
    """Share of a window's clicks left out."""
    id_dropout: float = 0.2
    """Share of items that a step knows by their fields alone, so that new items fit in."""
    profile_dropout: float = 0.1
    """Share of profiles taken as unknown, so that the unknown rows learn."""

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ConfigError("TrainOptions.sampling", got=self.sampling, expected=f"one of {', '.join(SAMPLINGS)}")
        if self.sampling == "in-batch" and self.batch_size < 2:
            expected = "at least 2 with in-batch negatives, which are the other targets"
            raise ConfigError("TrainOptions.batch_size", got=self.batch_size, expected=expected)


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


def train(
    log: ClickLog,
    config: MindConfig,
    options: TrainOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> InterestModel:
    """Return a model trained on all of *log*.

    Raises:
        ConfigError: no user of *log* has two positive clicks, so there is nothing to learn.
    """
    vocabulary = build_vocabulary(log)
    samples = build_samples(log, vocabulary, config)
    rows = field_rows(vocabulary, log.items)
    return train_samples(samples, vocabulary, rows, config, options, on_progress, clock=clock)


def train_samples(
    samples: Samples,
    vocabulary: Vocabulary,
    item_field_rows: np.ndarray,
    config: MindConfig,
    options: TrainOptions,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    *,
    clock: Callable[[], float] = time.monotonic,
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

    Raises:
        ConfigError: no user of *samples* has two positive clicks, so there is nothing to learn.
    """
    if not len(samples.targets):
        raise ConfigError("clicks", got=len(samples.rows), expected="a user with at least two clicks to learn from")
    threads = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        torch.manual_seed(options.seed)
        network = MindNetwork(config, vocabulary, torch.from_numpy(item_field_rows))
        if options.start_from_cooccurrence:
            start_items(network, samples, seed=options.seed)
        network = network.to(options.device)
        _run_steps(network, samples, options, on_progress, clock)
    finally:
        torch.set_num_threads(threads)
    return InterestModel(network, vocabulary)


def _run_steps(
    network: MindNetwork,
    samples: Samples,
    options: TrainOptions,
    on_progress: Callable[[Progress], None],
    clock: Callable[[], float],
) -> None:
    planned = max(1, math.ceil(options.epochs * len(samples.targets) / options.batch_size))
    plan = Plan(planned, max_seconds=options.max_seconds, started=clock())
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay, fused=True
    )
    trainer = _Steps(network, samples, options)
    recent: list[float] = []
    step = 0
    while step < plan.steps:
        rate = learning_rate(step, plan.steps, options)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = trainer.loss(trainer.next_batch())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        recent = [*recent[-49:], loss.item()]
        seconds = plan.hold_against_clock(step, clock())
        epochs = step * options.batch_size / len(samples.targets)
        on_progress(Progress(step, plan.steps, planned, epochs, sum(recent) / len(recent), seconds))


class Plan:
    """The number of steps: those planned, or fewer where the clock says that they don't fit."""

    def __init__(self, planned: int, *, max_seconds: float, started: float) -> None:
        self.steps = self._planned = planned
        self._max_seconds = max_seconds
        self._started = started
        self._last = (0, 0.0)

    def hold_against_clock(self, step: int, now: float) -> float:
        """Set `steps` to what fits at the pace of the last steps; return the seconds since the start."""
        seconds = now - self._started
        if seconds >= self._max_seconds:
            self.steps = step
        elif step % TIMING_STEPS == 0:
            pace = (seconds - self._last[1]) / (step - self._last[0])
            fitting = int((self._max_seconds - seconds) / max(pace, 1e-9))
            self.steps = min(self._planned, step + fitting)
            self._last = (step, seconds)
        return seconds


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """Return the rate of *step*, from 0, of *steps*: a linear rise, then half a cosine down to the final share."""
    warmup = options.warmup_share * steps
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    falling = 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(steps - warmup, 1.0)))
    return options.learning_rate * (options.final_rate_share + (1.0 - options.final_rate_share) * falling)


class _Steps:
    """Batches without end, and the loss of one; holds the run's random generators."""

    def __init__(self, network: MindNetwork, samples: Samples, options: TrainOptions) -> None:
        self._network, self._samples, self._options = network, samples, options
        self._random = np.random.default_rng(options.seed)
        self._items = network.item_ids.num_embeddings - 1
        takes_all = options.sampling == "uniform" and options.negatives is None and self._items <= FULL_SOFTMAX_ITEMS
        self._sampler = None if takes_all else self._make_sampler()
        self._device = network.item_ids.weight.device
        self._ends = np.append(samples.starts[1:], len(samples.rows))[samples.users]
        self._order = np.zeros(0, dtype=np.int64)

    def _make_sampler(self) -> Sampler:
        return Sampler(
            self._options.sampling,
            items=self._items,
            count=self._options.negatives or NEGATIVES,
            target_counts=np.bincount(self._samples.rows[self._samples.targets], minlength=self._items + 1),
        )

    def next_batch(self) -> tuple[WindowBatch, np.ndarray]:
        """Return the next windows, with their dropout done, and their (B,) target rows."""
        options, samples, config = self._options, self._samples, self._network.config
        while len(self._order) < options.batch_size:
            self._order = np.append(self._order, self._random.permutation(samples.targets))
        ends, self._order = self._order[: options.batch_size], self._order[options.batch_size :]
        windows = cut_windows(samples, ends, config)
        reach = np.minimum(self._ends[ends] - ends, options.horizon)
        targets = samples.rows[ends + draw_distances(self._random, reach, near=options.near_targets)]
        if options.novel_targets:
            is_novel = ~(windows.rows == targets[:, None]).any(axis=1)
            if is_novel.any():
                windows, targets = _keep(windows, is_novel), targets[is_novel]
        return self._with_dropout(windows), targets

    def _with_dropout(self, windows: WindowBatch) -> WindowBatch:
        kept = self._random.random(windows.rows.shape) >= self._options.click_dropout
        kept[:, -1] = True  # the newest click stays, so no window is left empty
        known = (self._random.random(windows.profile_rows.shape) >= self._options.profile_dropout).astype(np.int64)
        return WindowBatch(
            rows=windows.rows,
            strengths=windows.strengths * kept,
            counts=windows.counts,
            profile_rows=windows.profile_rows * known,
            profile_numbers=windows.profile_numbers * known.astype(np.float32),
        )

    def loss(self, batch: tuple[WindowBatch, np.ndarray]) -> Tensor:
        """Return the mean loss of one batch.

        Items are pooled, dropped out and mapped once a step, however many clicks of the batch are on them.
        """
        windows, targets = batch
        negatives, draws = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        if self._sampler is not None:
            negatives, draws = self._sampler.draw(self._random, targets)
        rows = self._rows_in_use(windows.rows, targets, negatives)
        table = self._pool(rows)
        behaviors = self._network.map_behaviors(functional.dropout(table, self._options.behavior_dropout))
        vectors, weights = self._network(
            functional.embedding(self._places(rows, windows.rows), behaviors),
            WindowTensors.of(windows, self._device),
        )
        wanted = self._places(rows, targets)
        target_vectors = functional.embedding(wanted, table)
        used = torch.from_numpy(np.arange(vectors.shape[1]) < windows.counts[:, None]).to(self._device)  # (B, K)
        penalty = self._penalty(weights, windows)
        if self._options.label_aware:
            chosen = attend(vectors, used, target_vectors, power=self._network.config.attention_power)
            vectors, used = chosen.unsqueeze(1), used[:, :1]
        if self._sampler is None:
            return full_softmax_loss(vectors, used, table, wanted) + penalty
        drawn = self._places(rows, negatives)
        loss = sampled_softmax_loss(
            vectors,
            used,
            target_vectors,
            functional.embedding(drawn, table),
            targets=wanted,
            negatives=drawn,
            draws=torch.from_numpy(draws).to(self._device),
            hardness=self._options.hardness,
        )
        return loss + penalty

    def _penalty(self, weights: Tensor, windows: WindowBatch) -> Tensor | float:
        factor = self._options.routing_variance_penalty
        if not factor:
            return 0.0
        return factor * routing_variance(weights, torch.from_numpy(windows.rows > 0).to(self._device))

    def _rows_in_use(self, *used: np.ndarray) -> np.ndarray:
        """Return ascending item rows, 0 among them: all rows where every item is a negative, else those of *used*."""
        if self._sampler is None:
            return np.arange(self._items + 1)
        return np.unique(np.concatenate([np.zeros(1, dtype=np.int64), *(rows.ravel() for rows in used)]))

    def _places(self, rows: np.ndarray, wanted: np.ndarray) -> Tensor:
        places = wanted if len(rows) == self._items + 1 else np.searchsorted(rows, wanted)
        return torch.from_numpy(places).to(self._device)

    def _pool(self, rows: np.ndarray) -> Tensor:
        kept = None
        if self._options.id_dropout:
            kept = torch.from_numpy(self._random.random(len(rows)) >= self._options.id_dropout).to(self._device)
        return self._network.pool_items(torch.from_numpy(rows).to(self._device), id_kept=kept)


def routing_variance(weights: Tensor, present: Tensor) -> Tensor:
    """Return the mean variance, over a window's clicks, of the shares that they have in each interest.

    Xie et al. 2023 (REMI), section 3.3: an interest made of one click alone varies most. Interests not in use count
    nothing. MIND's last round takes its logits as given, so there only the strengths feel it.

    Args:
        weights: (B, L, K) float32 routing weights, 0 for padding.
        present: (B, L) bool, False for padding.
    """
    clicks = present.sum(dim=1).clamp(min=1).view(-1, 1, 1)
    shares = weights / weights.sum(dim=1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    apart = (shares - 1.0 / clicks) * present.unsqueeze(-1)
    is_used = weights.detach().sum(dim=1) > 0  # (B, K)
    variances = apart.square().sum(dim=1) / clicks.squeeze(-1)
    return (variances * is_used).sum() / is_used.sum().clamp(min=1)


def draw_distances(random: np.random.Generator, reach: np.ndarray, *, near: bool) -> np.ndarray:
    """Return (B,) int64 numbers from 0 to below the (B,) *reach*: all alike, or small ones more often.

    Log-uniform where *near*: number n has the chance log((n + 2) / (n + 1)) / log(reach + 1).
    """
    drawn = random.random(len(reach))
    numbers = np.exp(drawn * np.log(reach + 1.0)) - 1.0 if near else drawn * reach
    chosen: np.ndarray = np.minimum(numbers.astype(np.int64), reach - 1)
    return chosen


def _keep(windows: WindowBatch, chosen: np.ndarray) -> WindowBatch:
    return WindowBatch(
        rows=windows.rows[chosen],
        strengths=windows.strengths[chosen],
        counts=windows.counts[chosen],
        profile_rows=windows.profile_rows[chosen],
        profile_numbers=windows.profile_numbers[chosen],
    )
