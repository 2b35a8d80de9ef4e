"""The published equations in float64 and plain loops: slow, obvious, and sharing no code with the model.

One window at a time, without padding. Notation of Li et al. 2019 (MIND) at the line's end, where it has one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Vector = np.ndarray
"""(D,) float64."""
Rows = Sequence[Sequence[float]]
"""A matrix, row by row."""


def pooled(vectors: Sequence[Vector]) -> Vector:
    """Average pooling of the vectors that an item has: its id's, and one for each known field."""
    total = np.zeros_like(vectors[0], dtype=np.float64)
    for vector in vectors:
        total = total + vector
    return total / len(vectors)


def interest_count(items: Sequence[object], *, interests: int) -> int:
    """K'_u = max(1, min(K, log2 |I_u|)), rounded down, |I_u| the distinct items; 0 for nobody."""
    distinct = len(set(items))
    if distinct == 0:
        return 0
    power = 0
    while 2 ** (power + 1) <= distinct:
        power += 1
    return max(1, min(interests, power))


def softmax(values: Sequence[float]) -> list[float]:
    greatest = max(values)
    raised = [math.exp(value - greatest) for value in values]
    return [value / sum(raised) for value in raised]


def squash(vector: Vector) -> Vector:
    """|v|^2 / (1 + |v|^2) * v / |v|; a zero vector stays."""
    squared = float(vector @ vector)
    return np.zeros_like(vector) if squared == 0.0 else squared / (1.0 + squared) * vector / math.sqrt(squared)


def route(
    behaviors: Rows,
    logits: Rows,
    strengths: Sequence[float],
    count: int,
    *,
    rounds: int,
    accumulate: bool,
    scale: float = 1.0,
    general: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1: (L, D) mapped behaviors and (L, K) logits in; (K, D) capsules and (L, K) weights out.

    With *general*, which is ours, the first of several interests takes each behavior whole, the others compete.
    """
    vectors = np.array(behaviors, dtype=np.float64)
    mapped = np.repeat(vectors[:, None], len(logits[0]), axis=1)  # the same S for every interest
    return route_mapped(
        mapped, logits, strengths, count, rounds=rounds, accumulate=accumulate, scale=scale, general=general
    )


def route_mapped(
    mapped: np.ndarray,
    logits: Rows,
    strengths: Sequence[float],
    count: int,
    *,
    rounds: int,
    accumulate: bool = True,
    scale: float = 1.0,
    general: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The same where each interest maps the behaviors its own way: (L, K, D) in."""
    length, slots, size = mapped.shape
    b = [[float(number) for number in row] for row in logits]  # b_ij
    for _ in range(rounds):
        capsules, weights = np.zeros((slots, size)), np.zeros((length, slots))
        for i in range(length):
            apart = 1 if general and count > 1 else 0
            for j, share in enumerate([1.0] * apart + softmax(b[i][apart:count])):
                weights[i, j] = share * strengths[i]  # w_ij
        for j in range(count):
            total = np.zeros(size)
            for i in range(length):
                total = total + weights[i, j] * mapped[i, j].astype(np.float64)
            capsules[j] = squash(total)  # u_j
        for i in range(length):
            for j in range(count):
                agreement = scale * float(mapped[i, j].astype(np.float64) @ capsules[j])
                b[i][j] = b[i][j] + agreement if accumulate else agreement
    return capsules, weights


def attend(interests: Sequence[Vector], target: Vector, *, power: float) -> Vector:
    """Label-aware attention with softmax(p * score): p = 0 is the mean, p = inf the best interest."""
    scores = [float(interest @ target) for interest in interests]
    if math.isinf(power):
        return interests[scores.index(max(scores))]
    total = np.zeros_like(interests[0])
    for weight, interest in zip(softmax([power * score for score in scores]), interests, strict=True):
        total = total + weight * interest
    return total


def self_attention(
    behaviors: np.ndarray,
    places: np.ndarray,
    hidden: tuple[np.ndarray, np.ndarray],
    heads: tuple[np.ndarray, np.ndarray],
    strengths: Sequence[float],
) -> tuple[np.ndarray, np.ndarray]:
    """ComiRec-SA: softmax over the clicks of W2 tanh(W1 (H + P)), weights (matrix, bias); (K, D) and (L, K) out."""
    length, count = len(behaviors), len(heads[1])
    logits = np.zeros((length, count))
    for i in range(length):
        logits[i] = heads[0] @ np.tanh(hidden[0] @ (behaviors[i] + places[i]) + hidden[1]) + heads[1]
    weights = np.zeros((length, count))
    for j in range(count):
        raised = [strengths[i] * math.exp(logits[i, j]) for i in range(length)]
        for i in range(length):
            weights[i, j] = raised[i] / sum(raised)
    return weights.T @ behaviors, weights


def k_means(
    behaviors: np.ndarray, seeds: Sequence[float], strengths: Sequence[float], count: int, *, rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lloyd's k-means from the click of the greatest seed and the clicks farthest from those taken."""
    length = len(behaviors)
    means = [behaviors[max(range(length), key=lambda i: seeds[i])]]
    while len(means) < count:
        means.append(max(behaviors, key=lambda vector: min(_apart(vector, mean) for mean in means)))
    for _ in range(rounds):
        clusters: list[list[int]] = [[] for _ in range(count)]
        for i in range(length):
            clusters[min(range(count), key=lambda j: _apart(behaviors[i], means[j]))].append(i)
        for j in range(count):
            clusters[j] = clusters[j] or [min(range(length), key=lambda i: _apart(behaviors[i], means[j]))]
        weights = _shares(clusters, strengths)
        means = list(weights.T @ behaviors)
    return np.array(means), weights


def ward(behaviors: np.ndarray, strengths: Sequence[float], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Ward's clusters by the growth of squared distances to the mean; medoids, the most important cluster first."""
    clusters = [[i] for i in range(len(behaviors))]
    while len(clusters) > count:
        pairs = [(left, right) for left in range(len(clusters)) for right in range(left + 1, len(clusters))]
        left, right = min(pairs, key=lambda pair: _growth(behaviors, clusters[pair[0]], clusters[pair[1]]))
        clusters[left] = clusters[left] + clusters.pop(right)
    clusters.sort(key=lambda cluster: -sum(strengths[i] for i in cluster))
    medoids = []
    for cluster in clusters:
        costs = {i: sum(_apart(behaviors[i], behaviors[other]) for other in cluster) for i in cluster}
        least = min(costs.values())
        medoids.append(behaviors[max(i for i in cluster if costs[i] <= least + 1e-12)])
    return np.array(medoids), _shares(clusters, strengths)


def sampled_loss(own: float, others: Sequence[tuple[float, float]], *, hardness: float = 0.0) -> float:
    """-log of the target's share among it and the negatives: (score, times the negative was drawn on average).

    REMI's hard negatives count exp(hardness * score) over the mean of that.
    """
    raised = [math.exp(hardness * score) for score, _ in others]
    values = [own] + [
        score - math.log(drawn) + math.log(factor * len(raised) / sum(raised))
        for (score, drawn), factor in zip(others, raised, strict=True)
    ]
    greatest = max(values)
    return greatest + math.log(sum(math.exp(value - greatest) for value in values)) - own


def full_loss(scores: Sequence[float], target: int) -> float:
    """-log of the target's share among all items."""
    others = [(score, 1.0) for item, score in enumerate(scores) if item != target]
    return sampled_loss(scores[target], others)


def _apart(left: Vector, right: Vector) -> float:
    return float((left - right) @ (left - right))


def _growth(behaviors: np.ndarray, left: Sequence[int], right: Sequence[int]) -> float:
    def within(cluster: Sequence[int]) -> float:
        mean = sum(behaviors[i] for i in cluster) / len(cluster)
        return sum(_apart(behaviors[i], mean) for i in cluster)

    return within([*left, *right]) - within(left) - within(right)


def _shares(clusters: Sequence[Sequence[int]], strengths: Sequence[float]) -> np.ndarray:
    weights = np.zeros((len(strengths), len(clusters)))
    for j, cluster in enumerate(clusters):
        for i in cluster:
            weights[i, j] = strengths[i] / sum(strengths[other] for other in cluster)
    return weights
