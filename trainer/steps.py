"""The batches of a run and the loss of one: windows and targets drawn, dropped out, routed and scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from engine.model.features import WindowBatch
from engine.model.gather import gather
from engine.model.network import MindNetwork, WindowTensors, attend
from trainer.loss import full_softmax_loss, sampled_softmax_loss
from trainer.negatives import FULL_SOFTMAX_ITEMS, NEGATIVES, Sampler
from trainer.options import TrainOptions
from trainer.samples import Samples, cut_windows


class Steps:
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
        self._places = np.zeros(self._items + 1, dtype=np.int64)

    def random_and_order(self) -> tuple[dict[str, Any], np.ndarray]:
        """Return what the next batches depend on: the generator's state, and the samples of this pass still to come."""
        return dict(self._random.bit_generator.state), self._order

    def go_on(self, random: dict[str, Any], order: np.ndarray) -> None:
        """Draw the next batches as a run did that was at this state."""
        self._random.bit_generator.state = random
        self._order = order

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
        if not (self._options.click_dropout or self._options.profile_dropout):
            return windows
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
        """Return the mean loss of one batch."""
        windows, targets = batch
        if self._sampler is None:
            return self._full_loss(windows, targets)
        negatives, draws = self._sampler.draw(self._random, targets)
        # One gather for all three parts, and one scatter of their gradients.
        clicked = self._distinct(windows.rows)
        parts = (clicked, targets, negatives)
        items, wanted, others = torch.split(self._pool(np.concatenate(parts)), [len(part) for part in parts])
        vectors, used, penalty = self._route(windows, clicked, items)
        if self._options.label_aware:
            vectors, used = self._attend(vectors, used, wanted)
        loss = sampled_softmax_loss(
            vectors,
            used,
            wanted,
            others,
            targets=self._tensor(targets),
            negatives=self._tensor(negatives),
            draws=self._tensor(draws),
            hardness=self._options.hardness,
        )
        return loss + penalty

    def _distinct(self, rows: np.ndarray) -> np.ndarray:
        """Return the distinct *rows*, ascending, 0 among them, and note the place of each; no sort, as rows are few."""
        is_there = np.zeros(self._items + 1, dtype=bool)
        is_there[rows] = is_there[0] = True
        distinct = np.flatnonzero(is_there)
        self._places[distinct] = np.arange(len(distinct))
        return distinct

    def _full_loss(self, windows: WindowBatch, targets: np.ndarray) -> Tensor:
        rows = np.arange(self._items + 1)
        items, wanted = self._pool(rows), self._tensor(targets)
        vectors, used, penalty = self._route(windows, rows, items)
        if self._options.label_aware:
            vectors, used = self._attend(vectors, used, functional.embedding(wanted, items))
        return full_softmax_loss(vectors, used, items, wanted) + penalty

    def _route(self, windows: WindowBatch, rows: np.ndarray, items: Tensor) -> tuple[Tensor, Tensor, Tensor | float]:
        """Return (B, K, D) interests, the (B, K) bool of those in use, and the penalty, from the *items* in *rows*.

        Items are dropped out, and mapped where the extractor maps items, once for all clicks of the batch on them.
        """
        share = self._options.behavior_dropout
        behaviors = self._network.map_behaviors(dropout(items, share) if share else items)
        places = windows.rows if len(rows) == self._items + 1 else self._places[windows.rows]
        vectors, weights = self._network(
            gather(behaviors, self._tensor(places)), WindowTensors.of(windows, self._device)
        )
        used = self._tensor(np.arange(vectors.shape[1]) < windows.counts[:, None])
        return vectors, used, self._penalty(weights, windows)

    def _attend(self, vectors: Tensor, used: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        chosen = attend(vectors, used, wanted, power=self._network.config.attention_power)
        return chosen.unsqueeze(1), used[:, :1]

    def _tensor(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self._device)

    def _penalty(self, weights: Tensor, windows: WindowBatch) -> Tensor | float:
        factor = self._options.routing_variance_penalty
        if not factor:
            return 0.0
        return factor * routing_variance(weights, self._tensor(windows.rows > 0))

    def _pool(self, rows: np.ndarray) -> Tensor:
        kept = None
        if self._options.id_dropout:
            kept = self._tensor(self._random.random(len(rows)) >= self._options.id_dropout)
        return self._network.pool_items(self._tensor(rows), id_kept=kept)


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


def dropout(vectors: Tensor, share: float) -> Tensor:
    """Return *vectors* with *share* of their numbers 0 and the others larger by as much, on average the same.

    PyTorch's own dropout draws four times as slowly on a CPU.
    """
    return vectors * ((torch.rand_like(vectors) >= share) / (1.0 - share))


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
