"""How fast the model learns and answers, against plain eager PyTorch in the same process.

Four parts, each a ratio of medians over alternating runs on one thread:
a training step (128 windows of 20 clicks, 12,000 items, D = 64, K = 4, 1,280 negatives), routing of a batch of windows
(B = 1,024, L = 50, D = 64, K = 4) and of the engine's micro-batches, an evaluation of 512 test users, from windows to
figures; and, where a CUDA device is at hand, the windows of a large shop on it, also against the time that copying the
bytes alone would take.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from eager_mind import EagerMind
from public_step import public_step
from report import at_least, conclude, machine
from torch.nn import functional

from engine.merge import ListLimits
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.features import WindowBatch
from engine.model.network import MindNetwork
from engine.model.routing import count_interests
from engine.settings import Settings
from trainer.offline.metrics import judge
from trainer.offline.neural import InterestMethod
from trainer.offline.recall import recall_lists
from trainer.offline.sets import OfflineSet, Part, Question
from trainer.options import TrainOptions
from trainer.presets import paper
from trainer.samples import Samples
from trainer.steps import Steps

ITEMS, DIMENSIONS, INTERESTS = 12_000, 64, 4
TOP, TARGETS = 50, 10
BARS = (("training step", "training", 3.0), ("batch inference", "inference", 2.5), ("evaluation", "evaluation", 3.0))
GPU_WINDOWS = 10_000_000


def main() -> int:
    arguments = parse_arguments()
    torch.set_num_threads(1)
    repeats = 3 if arguments.quick else 25
    figures: dict[str, Any] = {
        "machine": machine(f"torch {torch.__version__}", "one thread"),
        "training": training(repeats),
        "inference": inference(repeats),
    }
    figures["micro_batches"] = micro_batches(repeats)
    figures["evaluation"] = evaluation(repeats)
    figures["gpu"] = on_a_gpu(arguments.quick) if torch.cuda.is_available() else "left out: no CUDA device here"
    figures["checks"] = [
        at_least(f"{name}, times the reference", figures[part]["ratio"], bar) for name, part, bar in BARS
    ]
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 runs of each in place of 25")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    return parser.parse_args()


def training(repeats: int) -> dict[str, float]:
    """Return milliseconds of a step: ours with dense Adam, which the trainer uses, and with lazy Adam; and two others.

    The bar is against what public code does at each step, from users to weights (`public_step.py`), on the users that
    we learn from; the lean step (`eager_mind.py`) is handed its rows and leaves out what the model doesn't need. All
    have one layer after the capsules.
    """
    samples = draw_samples()
    histories = [rows.tolist() for rows in np.split(samples.rows, samples.starts[1:])]
    public = public_step(histories, items=ITEMS, dimensions=DIMENSIONS, interests=INTERESTS)
    ours, lazy, lean = our_step(samples), our_step(samples, lazy=True), eager_step()
    ours_s, lazy_s, lean_s, public_s = alternate([ours, lazy, lean, public], repeats, rounds=8)
    return {
        "public_ms": 1e3 * public_s,
        "lean_ms": 1e3 * lean_s,
        "ours_dense_adam_ms": 1e3 * ours_s,
        "ours_lazy_adam_ms": 1e3 * lazy_s,
        "ratio": public_s / ours_s,
        "ratio_lazy_adam": public_s / lazy_s,
        "ratio_to_lean": lean_s / ours_s,
    }


def our_step(samples: Samples, *, lazy: bool = False) -> Callable[[], object]:
    """Return one step of `trainer/loop.py` as the `paper` preset makes it, in the size of the public code."""
    config, options = paper()
    config = replace(config, max_clicks=20, dynamic_interests=False, hidden=())
    options = replace(options, batch_size=128, negatives=1_280)
    network = MindNetwork(config, words(), torch.zeros(ITEMS + 1, 0, dtype=torch.int64))
    steps = Steps(network, samples, options)
    optimizer = adam_of(network, options, lazy=lazy)

    def step() -> float:
        loss = steps.loss(steps.next_batch())
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for one in optimizer:
            one.step()
        return loss.item()

    return step


def adam_of(network: MindNetwork, options: TrainOptions, *, lazy: bool) -> list[torch.optim.Optimizer]:
    """Return the trainer's AdamW, or lazy Adam for the item table, whose moments then rest where no gradient comes."""
    if not lazy:
        return [torch.optim.AdamW(network.parameters(), lr=options.learning_rate, weight_decay=0.0, fused=True)]
    table = network.item_ids.weight
    vars(network)["pool_items"] = lambda rows, id_kept: functional.embedding(rows, table, padding_idx=0, sparse=True)
    others = [weights for name, weights in network.named_parameters() if name != "item_ids.weight"]
    return [
        torch.optim.SparseAdam([table], lr=options.learning_rate),
        torch.optim.AdamW(others, lr=options.learning_rate, weight_decay=0.0, fused=True),
    ]


def eager_step() -> Callable[[], object]:
    model = EagerMind(items=ITEMS, dimensions=DIMENSIONS, interests=INTERESTS, layers=(DIMENSIONS,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    random = np.random.default_rng(7)

    def step() -> float:
        rows = torch.from_numpy(random.integers(1, ITEMS + 1, size=(128, 20)))
        targets = torch.from_numpy(random.integers(1, ITEMS + 1, size=128))
        negatives = torch.from_numpy(random.integers(1, ITEMS + 1, size=1_280))
        loss = model.loss(rows, targets, negatives)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.item()

    return step


def draw_samples() -> Samples:
    """Return 2,000 users of 40 clicks each."""
    random, users, clicks = np.random.default_rng(7), 2_000, 40
    user_of = np.repeat(np.arange(users), clicks)
    return Samples(
        rows=random.integers(1, ITEMS + 1, size=users * clicks),
        strengths=np.ones(users * clicks, dtype=np.float32),
        users=user_of,
        starts=np.arange(users) * clicks,
        profile_rows=np.zeros((users, 0), dtype=np.int64),
        profile_numbers=np.zeros((users, 0), dtype=np.float32),
        targets=np.flatnonzero(user_of[1:] == user_of[:-1]) + 1,
    )


def words() -> Vocabulary:
    return Vocabulary.build([str(number) for number in range(ITEMS)], {}, [])


def inference(repeats: int) -> dict[str, float]:
    """Return windows a second: our answer and those of two eager references, each with one layer after the capsules.

    Public code repeats the behavior vectors for every interest; the lean reference, which the bar is against, doesn't.
    """
    ours, eager = our_answer(1_024, dimensions=DIMENSIONS), eager_answer(1_024, dimensions=DIMENSIONS)
    lean = eager_answer(1_024, dimensions=DIMENSIONS, repeats=False)
    ours_s, eager_s, lean_s = alternate([ours, eager, lean], repeats, rounds=4)
    return {
        "repeating_eager_windows_per_s": 1_024 / eager_s,
        "eager_windows_per_s": 1_024 / lean_s,
        "ours_windows_per_s": 1_024 / ours_s,
        "ratio_to_repeating": eager_s / ours_s,
        "ratio": lean_s / ours_s,
    }


def micro_batches(repeats: int) -> dict[str, dict[str, float]]:
    """Return milliseconds for the engine's own sizes at D = 128, the defaults otherwise."""
    figures = {}
    for windows in (1, 32, 256):
        ours, eager = (
            our_answer(windows, dimensions=128, plain=False),
            eager_answer(windows, dimensions=128, plain=False),
        )
        ours_s, eager_s = alternate([ours, eager], repeats, rounds=10)
        figures[f"{windows} windows"] = {"ours_ms": 1e3 * ours_s, "eager_ms": 1e3 * eager_s}
    return figures


def our_answer(
    windows: int, *, dimensions: int, plain: bool = True, device: str = "cpu", length: int = 50
) -> Callable[[], object]:
    """Return `InterestModel.extract` on drawn windows; *plain* is MIND's routing, else the defaults."""
    config = MindConfig(dimensions=dimensions, max_clicks=length)
    if plain:
        config = replace(
            config, general_interest=False, dynamic_interests=False, recency=False, agreement_scale=1.0, hidden=()
        )
    model = InterestModel(
        MindNetwork(config, words(), torch.zeros(ITEMS + 1, 0, dtype=torch.int64)), words(), device=device
    )
    rows = np.random.default_rng(3).integers(1, ITEMS + 1, size=(windows, length))
    batch = WindowBatch(
        rows=rows,
        strengths=np.ones(rows.shape, dtype=np.float32),
        counts=count_interests(rows, interests=INTERESTS, dynamic=config.dynamic_interests),
        profile_rows=np.zeros((windows, 0), dtype=np.int64),
        profile_numbers=np.zeros((windows, 0), dtype=np.float32),
    )
    return lambda: model.extract(batch)


def eager_answer(
    windows: int, *, dimensions: int, plain: bool = True, device: str = "cpu", length: int = 50, repeats: bool = True
) -> Callable[[], object]:
    layers = (dimensions,) if plain else (*MindConfig().hidden, dimensions)
    model = EagerMind(items=ITEMS, dimensions=dimensions, interests=INTERESTS, layers=layers, repeats=repeats)
    model = model.to(device).eval()
    rows = torch.from_numpy(np.random.default_rng(3).integers(1, ITEMS + 1, size=(windows, length)))

    @torch.inference_mode()
    def answer() -> np.ndarray:
        interests: np.ndarray = model(rows.to(device)).cpu().numpy()
        return interests

    return answer


def evaluation(repeats: int) -> dict[str, float]:
    """Return questions a second, from windows to Recall, HitRate, NDCG and MRR; ours makes three lists of each.

    The reference makes one, as public code does: a search by all interests, then users one by one in Python.
    """
    random = np.random.default_rng(5)
    questions = [
        Question(str(user), random.integers(1, ITEMS + 1, size=50), np.unique(random.integers(1, ITEMS + 1, TARGETS)))
        for user in range(512)
    ]
    ours, eager = our_evaluation(questions), eager_evaluation(questions)
    ours_s, eager_s = alternate([ours, eager], max(3, repeats // 5), rounds=1)
    return {
        "eager_questions_per_s": len(questions) / eager_s,
        "ours_questions_per_s": len(questions) / ours_s,
        "ratio": eager_s / ours_s,
    }


def our_evaluation(questions: Sequence[Question]) -> Callable[[], object]:
    """Return what `mindstream evaluate` does with the questions: lists with and without the history, and as served."""
    config = MindConfig(dimensions=DIMENSIONS, hidden=(DIMENSIONS,), general_interest=False, dynamic_interests=False)
    model = InterestModel(MindNetwork(config, words(), torch.zeros(ITEMS + 1, 0, dtype=torch.int64)), words())
    part = Part([question.history for question in questions], [question.user_id for question in questions])
    made = OfflineSet("drawn", "comirec", words().item_ids, part, part, questions, questions)
    method = InterestMethod(model, made, name="drawn")
    limits = ListLimits.of(Settings(list_size=TOP, max_query_items=TOP))

    def evaluate() -> dict[str, np.ndarray]:
        found = recall_lists(method, questions, ranks=made.ranks, limits=limits)
        return judge(found.answers.kept, questions)

    return evaluate


def eager_evaluation(questions: Sequence[Question]) -> Callable[[], object]:
    model = EagerMind(items=ITEMS, dimensions=DIMENSIONS, interests=INTERESTS, layers=(DIMENSIONS,), repeats=False)
    rows = torch.from_numpy(np.stack([question.history for question in questions]))
    wanted = [set(question.targets.tolist()) for question in questions]

    @torch.inference_mode()
    def evaluate() -> list[tuple[float, float, float, float]]:
        figures = []
        for start in range(0, len(rows), 128):
            interests = model(rows[start : start + 128])  # (B, K, D)
            scores, found = torch.topk(interests.flatten(0, 1) @ model.items.weight.T, TOP, dim=1)
            by_user = zip(*(part.view(-1, INTERESTS * TOP).tolist() for part in (scores, found)), strict=True)
            for targets, (values, items) in zip(wanted[start : start + 128], by_user, strict=True):
                figures.append(eager_figures(values, items, targets))
        return figures

    return evaluate


def eager_figures(
    values: Sequence[float], items: Sequence[int], targets: set[int]
) -> tuple[float, float, float, float]:
    """Return Recall, HitRate, NDCG and MRR of one user's items, the best of each taken, in plain Python."""
    ranked: list[int] = []
    held = {0}
    for item, _value in sorted(zip(items, values, strict=True), key=lambda pair: -pair[1]):
        if item not in held:
            held.add(item)
            ranked.append(item)
            if len(ranked) == TOP:
                break
    places = [place for place, item in enumerate(ranked) if item in targets]
    gain = sum(1 / math.log2(place + 2) for place in places)
    ideal = sum(1 / math.log2(place + 2) for place in range(min(TOP, len(targets))))
    return len(places) / len(targets), float(bool(places)), gain / ideal, 1 / (places[0] + 1) if places else 0.0


def alternate(runs: list[Callable[[], object]], repeats: int, *, rounds: int) -> list[float]:
    """Return the median seconds of each run, taken in turns so that a busy moment hits all of them alike."""
    for run in runs:
        run()
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(repeats):
        for run, own in zip(runs, seconds, strict=True):
            started = time.perf_counter()
            for _ in range(rounds):
                run()
            own.append((time.perf_counter() - started) / rounds)
    return [statistics.median(own) for own in seconds]


def on_a_gpu(quick: bool) -> dict[str, float]:
    """Return windows a second on the device, and what its copy bandwidth would allow for the bytes gathered."""
    size, total = 65_536, GPU_WINDOWS // (100 if quick else 1)
    seconds = {}
    for name, make in (("ours", our_answer), ("eager", eager_answer)):
        run = make(size, dimensions=DIMENSIONS, device="cuda")
        run()
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(max(1, total // size)):
            run()
        torch.cuda.synchronize()
        seconds[name] = (time.perf_counter() - started) / max(1, total // size)
    floor_s = size * 50 * DIMENSIONS * 4 / copied_bytes_per_s()
    return {
        "ours_windows_per_s": size / seconds["ours"],
        "eager_windows_per_s": size / seconds["eager"],
        "ratio": seconds["eager"] / seconds["ours"],
        "times_the_floor_of_bytes": seconds["ours"] / floor_s,
    }


def copied_bytes_per_s() -> float:
    """Return the bandwidth of reading on the device, from a copy of 1 GiB."""
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    target.copy_(source)
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(10):
        target.copy_(source)
    torch.cuda.synchronize()
    return 10 * 2**30 / (time.perf_counter() - started)


def show(figures: dict[str, Any]) -> None:
    for part, found in figures.items():
        if part != "checks":
            print(f"{part}: {json.dumps(found)}")


if __name__ == "__main__":
    sys.exit(main())
