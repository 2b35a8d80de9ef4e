"""The memory of a process: of the item index alone, and of whole model versions, steady and at its peaks.

**Index**: resident bytes of vectors and graph once they are loaded and serve, at the peak of a swap, at the peak of a
rebuild, after it, and at the peak of a swap then, against the files of raw vectors and graph together. Every version
takes in changed and new items before it serves.

**Version**: what an engine or a query service holds of a model version, bytes an item, as it serves, while the next
one is loaded beside it, and once that one is alone. Ids have eight characters, items no fields. The candidate pools and
what the libraries take are not in it.

Everything is built in one process and weighed in another: building leaves memory behind.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_index import clustered
from report import at_most, conclude, machine

from engine.ann.hnsw import HnswIndex
from engine.ann.live import LiveIndex, with_room
from engine.ann.memory import give_back_memory, keep_large_pieces_apart
from engine.catalog import Catalog
from engine.microbatch import ListMaker
from engine.model import InterestModel, MindConfig, Vocabulary
from engine.model.network import MindNetwork
from engine.model.registry import Registry
from engine.settings import Settings
from engine.snapshot import load_snapshot
from trainer.popular import PopularItems
from trainer.publish import prepare

STEADY, PEAK = 1.4, 2.4
VERSIONS = ("first", "second")
STEPS = ("save-index", "weigh-index", "save-versions", "weigh-versions")


def main() -> int:
    arguments = parse_arguments()
    if arguments.step:
        run = dict(zip(STEPS, (save_index, weigh_index, save_versions, weigh_versions), strict=True))[arguments.step]
        run(arguments)
        return 0
    figures: dict[str, Any] = {"machine": machine(f"torch {torch.__version__}")}
    print(f"memory of a process ({figures['machine']})")
    figures["index"] = in_turn(arguments, STEPS[:2])
    held = figures["index"]
    print(
        f"index of {arguments.items:,} items of D = 64: vectors and graph are {held['raw_bytes'] / 1e6:.0f} MB; a "
        f"process holds {held['steady']:.2f} times as much, {held['swap']:.2f} at the peak of a swap, "
        f"{held['peak']:.2f} at the peak of a rebuild, {held['after']:.2f} after it, {held['swap_after']:.2f} at the "
        "peak of a swap then"
    )
    figures["version"] = in_turn(arguments, STEPS[2:])
    each = figures["version"]
    print(
        f"version of {arguments.version_items:,} items of D = {arguments.dimensions}: {each['steady']:,.0f} bytes an "
        f"item, {each['swap']:,.0f} at the peak of a swap, {each['after']:,.0f} after it; "
        f"{each['before_bytes'] / 1e6:.0f} MB without any"
    )
    figures["checks"] = [
        at_most(f"index, {name}", held[key], bar)
        for name, key, bar in (
            ("steady", "steady", STEADY),
            ("peak of a swap", "swap", PEAK),
            ("peak of a rebuild", "peak", PEAK),
            ("after a rebuild", "after", STEADY),
            ("peak of a swap after a rebuild", "swap_after", PEAK),
        )
    ]
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200_000, help="of the index")
    parser.add_argument("--version-items", type=int, default=100_000, help="of a version")
    parser.add_argument("--dimensions", type=int, default=MindConfig().dimensions, help="D of a version")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def in_turn(arguments: argparse.Namespace, steps: tuple[str, ...]) -> dict[str, float]:
    """Run *steps*, each in a process of its own with the same folder, and return what the last one printed."""
    sizes = ("items", "version_items", "dimensions")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in sizes]
    with tempfile.TemporaryDirectory() as folder:
        for step in steps:
            command = [sys.executable, __file__, *options, "--step", step, "--folder", folder]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)
            if ended.returncode:
                raise SystemExit(f"{step} failed:\n{ended.stderr}")
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


# --- the index


def save_index(arguments: argparse.Namespace) -> None:
    """Write vectors and graphs of two versions."""
    vectors = clustered(arguments.items)
    for version in VERSIONS:
        np.save(arguments.folder / f"{version}.npy", vectors)
        HnswIndex.build(vectors, threads=os.cpu_count() or 1).save(arguments.folder / f"{version}.hnsw")
        vectors = -vectors


def weigh_index(arguments: argparse.Namespace) -> None:
    """Load, rebuild and take over, then swap, in this process, and print what it held."""
    items, folder = arguments.items, arguments.folder
    keep_large_pieces_apart()  # as `load_snapshot` does
    sample = clustered(1_000)
    build = partial(HnswIndex.build, threads=os.cpu_count() or 1)
    LiveIndex(build(sample), build=build, rebuild_at=1).search(sample[:1], 1)  # what libraries take once is not theirs
    raw = sum((folder / f"{VERSIONS[0]}.{kind}").stat().st_size for kind in ("npy", "hnsw"))
    held = Held()
    index = load_index(folder, VERSIONS[0])
    held.note("steady")
    changed = index.vectors[:1_000].copy()
    with held.watched("swap"):
        load_index(folder, VERSIONS[1]).put(np.arange(items - 500, items + 500), changed)
    held.note("steady")
    index.put(np.arange(items, items + 1_000), changed)
    with held.watched("peak"):
        while index.generation == 0:
            index.catch_up()
            time.sleep(0.05)
    held.note("after")
    with held.watched("swap_after"):
        load_index(folder, VERSIONS[1]).put(np.arange(items - 500, items + 500), changed)
    print(json.dumps({"raw_bytes": raw} | {name: size / raw for name, size in held.sizes.items()}))


def load_index(folder: Path, version: str) -> LiveIndex:
    """Return a version's index as `engine/snapshot.py` and `engine/served_items.py` make it."""
    vectors = np.load(folder / f"{version}.npy")
    count, room = len(vectors), with_room(vectors)
    del vectors
    graph = HnswIndex.load(folder / f"{version}.hnsw", room[:count])
    return LiveIndex(graph, build=partial(HnswIndex.build, threads=os.cpu_count() or 1), rebuild_at=1_000, room=room)


# --- versions


def save_versions(arguments: argparse.Namespace) -> None:
    """Publish two versions of an untrained model to a registry."""
    count, dimensions = arguments.version_items, arguments.dimensions
    ids = [f"i{row:07d}" for row in range(count)]
    vocabulary = Vocabulary.build(ids, {}, [])
    config = MindConfig(dimensions=dimensions, hidden=(dimensions,))
    registry = Registry(str(arguments.folder))
    for vectors in (clustered(count, dimensions), -clustered(count, dimensions)):
        network = MindNetwork(config, vocabulary, torch.zeros(count + 1, 0, dtype=torch.int64))
        with torch.no_grad():
            network.item_ids.weight[1:] = torch.from_numpy(vectors)
        model = InterestModel(network, vocabulary)
        threads = os.cpu_count() or 1
        parts = prepare(model, PopularItems(ids[:100]), items={}, manifest={}, threads=threads, seed=7)
        registry.publish(parts, created_at_ms=1)


def weigh_versions(arguments: argparse.Namespace) -> None:
    """Serve the first version, load the second beside it, let go of the first, and print what that took."""
    settings = Settings(registry_url=str(arguments.folder))
    first, second = Registry(settings.registry).list_versions()
    held = Held()
    serving = serve(settings, first)
    held.note("steady")
    with held.watched("swap"):
        following = serve(settings, second)
    del serving
    held.note("after")
    del following
    each = {name: size / arguments.version_items for name, size in held.sizes.items()}
    print(json.dumps({"before_bytes": held.before} | each))


def serve(settings: Settings, version: str) -> ListMaker:
    """Return what makes lists of *version*, with everything that a process keeps of it."""
    snapshot = load_snapshot(settings, version, 0)
    return ListMaker(settings, snapshot, Catalog(settings), epoch="", now_ms=lambda: 0)


# --- weighing


class Held:
    """What this process holds more than when this was made."""

    def __init__(self) -> None:
        self.before = resident_bytes()
        self.sizes: dict[str, int] = {}

    def note(self, name: str) -> None:
        """Note what is held now under *name*, or what was held then where that is more."""
        gc.collect()
        give_back_memory()  # as an engine does with what it has replaced
        self._note(name)

    def _note(self, name: str) -> None:
        self.sizes[name] = max(self.sizes.get(name, 0), resident_bytes() - self.before)

    @contextmanager
    def watched(self, name: str) -> Iterator[None]:
        """Note the most that is held meanwhile."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.005):
                self._note(name)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            self._note(name)
            ended.set()
            watcher.join()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
