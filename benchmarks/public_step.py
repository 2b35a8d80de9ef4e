"""A training step as public code makes it, operation by operation, for `bench_model.py` to compare ours with.

The MIND of pytorch_ComiRec as Tokkiu/REMI has it (commit ad5af06, `src/train.py`, `utils.py`, `MIND.py`,
`BasicModel.py`), written anew from what these do at each step with their defaults:

1. 128 users, a place of each history, the clicks before it as padded lists, through a `DataLoader`, as tensors.
2. Embeddings of clicks and targets, one map of all clicks, a copy of them for every interest.
3. Three rounds of routing with a mask made in each, one ReLU layer, the interest that the target likes best.
4. Its scores of every item, which the sampled loss doesn't use.
5. 1,280 negatives of an alias table, shared by the batch but written out for every user with their log chances, looked
   up twice; their rows and the targets' taken from the table anew; cross-entropy.
6. Adam over the whole table.

Two things are other than there, neither for speed: the softmax is over the interests, and no matrices of time and order
are made, which the model doesn't read.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset

BATCH, CLICKS, NEGATIVES, ROUNDS = 128, 20, 1_280, 3
SHORTEST_HISTORY = 4


def public_step(
    histories: Sequence[Sequence[int]], *, items: int, dimensions: int, interests: int
) -> Callable[[], float]:
    """Return a step that draws its users of *histories*, lists of item rows from 1 to *items*, and learns from them."""
    model, noise = PublicMind(items=items, dimensions=dimensions, interests=interests), UniformNoise(items + 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batches = iter(DataLoader(Batches(histories), batch_size=None))

    def step() -> float:
        targets, clicks, masks = next(batches)
        optimizer.zero_grad()
        wanted, rows, mask = (torch.Tensor(values).long() for values in (targets, clicks, masks))
        loss = model.loss(model(rows, wanted, mask), wanted.unsqueeze(-1), noise)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


class Batches(IterableDataset[tuple[list[int], list[list[int]], list[list[float]]]]):
    """Targets, padded clicks and masks of users drawn anew for each batch, without end."""

    def __init__(self, histories: Sequence[Sequence[int]]) -> None:
        self._histories = histories
        self._drawn = random.Random(7)

    def __iter__(self) -> Iterator[tuple[list[int], list[list[int]], list[list[float]]]]:
        while True:
            targets, clicks, masks = [], [], []
            for user in self._drawn.sample(range(len(self._histories)), BATCH):
                history = self._histories[user]
                place = self._drawn.choice(range(SHORTEST_HISTORY, len(history)))
                newest = list(history[max(0, place - CLICKS) : place])
                targets.append(history[place])
                clicks.append(newest + [0] * (CLICKS - len(newest)))
                masks.append([1.0] * len(newest) + [0.0] * (CLICKS - len(newest)))
            yield targets, clicks, masks


class UniformNoise:
    """An alias table of *count* items, all alike."""

    def __init__(self, count: int) -> None:
        self.chances, self.aliases = torch.ones(count), torch.zeros(count, dtype=torch.int64)
        self.log_chances = torch.full((count,), 1.0 / count).log()

    def draw(self, users: int) -> Tensor:
        """Return (users, 1, M) rows, the same for each user."""
        drawn = self.aliases.new_empty(1, 1, NEGATIVES).random_(0, len(self.aliases)).view(-1)
        chances, aliases = self.chances[drawn], self.aliases[drawn]
        stays = torch.bernoulli(chances).long()
        rows = (drawn.mul(stays) + aliases.mul(1 - stays)).view(1, 1, NEGATIVES)
        return rows.expand(users, 1, NEGATIVES).contiguous()


class PublicMind(nn.Module):
    """MIND of item ids alone."""

    def __init__(self, *, items: int, dimensions: int, interests: int) -> None:
        super().__init__()
        self.interests = interests
        self.items = nn.Embedding(items + 1, dimensions, padding_idx=0)
        self.shared_map = nn.Linear(dimensions, dimensions, bias=False)
        self.layer = nn.Sequential(nn.Linear(dimensions, dimensions, bias=False), nn.ReLU())

    def forward(self, rows: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
        """Return the (B, D) interests that like the (B,) targets best, of (B, L) rows with a mask of 0 and 1."""
        batch, length = rows.shape
        clicked = self.items(rows) * mask.view(batch, length, 1)
        wanted = self.items(targets)
        behaviors = self.shared_map(clicked).repeat(1, 1, self.interests)
        behaviors = behaviors.view(batch, length, self.interests, -1).transpose(1, 2).contiguous()  # (B, K, L, D)
        capsules = self.route(behaviors, mask)
        vectors = self.layer(capsules)
        agreement = torch.matmul(vectors, wanted.unsqueeze(-1)).view(batch, self.interests)
        best = torch.argmax(functional.softmax(torch.pow(agreement, 1), dim=-1), dim=-1)
        chosen = vectors.view(batch * self.interests, -1)[best + torch.arange(batch) * self.interests]
        torch.matmul(chosen, self.items.weight.transpose(1, 0))  # the scores of all items
        return chosen

    def route(self, behaviors: Tensor, mask: Tensor) -> Tensor:
        """Return (B, K, D) capsules of (B, K, L, D) behavior vectors."""
        batch, interests, length, _ = behaviors.shape
        fixed, logits = behaviors.detach(), torch.randn(batch, interests, length)
        capsules = behaviors
        for step in range(ROUNDS):
            masks = mask.unsqueeze(1).repeat(1, interests, 1)
            weights = functional.softmax(logits, dim=1)
            weights = torch.where(torch.eq(masks, 0), torch.zeros_like(masks, dtype=torch.float), weights).unsqueeze(2)
            is_last = step == ROUNDS - 1
            capsules = torch.matmul(weights, behaviors if is_last else fixed)  # (B, K, 1, D)
            squared = torch.sum(torch.square(capsules), -1, keepdim=True)
            capsules = squared / (1 + squared) / torch.sqrt(squared + 1e-9) * capsules
            if not is_last:
                agreement = torch.matmul(fixed, torch.transpose(capsules, 2, 3).contiguous())
                logits = logits + agreement.view(batch, interests, length)
        return capsules.view(batch, interests, -1)

    def loss(self, users: Tensor, targets: Tensor, noise: UniformNoise) -> Tensor:
        """Return the mean cross-entropy of (B, 1) targets among the batch's negatives."""
        batch, table = len(targets), self.items.weight
        negatives = noise.draw(batch)  # (B, 1, M)
        for _ in range(2):
            of_negatives = noise.log_chances[negatives.view(-1)].view_as(negatives)
            of_targets = noise.log_chances[targets.view(-1)].view_as(targets)
        own = torch.sum(users * table[targets.view(-1)], dim=1).view(batch, 1).sub(0)
        others = torch.matmul(users, table[negatives[0, 0]].t()).view(batch, 1, -1).sub(0)
        scores = torch.cat([own.unsqueeze(2), others], dim=2)
        chances = torch.cat([of_targets.unsqueeze(2), of_negatives], dim=2)
        logits = scores - chances
        first = torch.zeros_like(logits.narrow(2, 0, 1)).squeeze(2).long()
        losses = functional.cross_entropy(logits.view(-1, logits.shape[-1]), first.view(-1), reduction="none")
        return losses.view_as(first).mean()
