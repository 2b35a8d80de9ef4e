"""Damage the item index of a version in thousands of ways and see that no engine would load it.

    make damage                                   10,000 flipped bits and 1,000 truncations, then 1,000 without hashes
    python -m tests.ann.damage --flips 100 --truncations 10 --unhashed 20

An engine loads a version by its manifest, which has the size and sha256 of each file: there every damaged file must be
refused. Behind that, a file whose hash somebody made right again goes through the structural check in a child process:
what it lets pass must be a graph of the same vectors that answers, and no process may crash but that child.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from engine.ann.exact import ExactIndex
from engine.ann.index import Vectors
from engine.errors import DamagedIndex, DamagedVersion
from engine.model.registry import Registry
from tests.ann.vectors import load_content
from tests.served import make_parts

FLIPS, TRUNCATIONS, UNHASHED = 10_000, 1_000, 1_000
TOP, LEAST_RECALL = 10, 0.9
SAY_EVERY_S = 5.0


def damages(good: bytes, *, flips: int, truncations: int, seed: int) -> Iterator[bytes]:
    """Yield *good* with one bit flipped, so many times, and cut off at so many lengths."""
    rng = random.Random(seed)
    for _ in range(flips):
        at, bit = rng.randrange(len(good)), rng.randrange(8)
        yield good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :]
    for _ in range(truncations):
        yield good[: rng.randrange(len(good))]


def by_the_manifest(folder: Path, *, flips: int, truncations: int, seed: int) -> Counter[str]:
    """Return what became of each damaged index of a version that is loaded as an engine loads it."""
    registry = Registry(str(folder))
    version = registry.publish(make_parts(), created_at_ms=1)
    [file] = folder.rglob("index.hnsw")
    good, outcomes, said_s = file.read_bytes(), Counter[str](), time.monotonic()
    for content in damages(good, flips=flips, truncations=truncations, seed=seed):
        file.write_bytes(content)
        try:
            registry.load(version)
            outcomes["loaded"] += 1
        except DamagedVersion:
            outcomes["refused"] += 1
        if time.monotonic() - said_s > SAY_EVERY_S:
            said_s = time.monotonic()
            print(f"  {outcomes.total():,} of {flips + truncations:,}", flush=True)
    file.write_bytes(good)
    registry.load(version)  # and the good one is not refused
    return outcomes


def by_the_structure(parts_seed: int, contents: Sequence[bytes]) -> Counter[str]:
    """Return what became of each of *contents*, which somebody gave the right hash, in processes of their own."""
    outcomes, done, said_s = Counter[str](), 0, time.monotonic()
    while done < len(contents):
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
            try:
                for outcome in pool.map(_load, [parts_seed] * (len(contents) - done), contents[done:]):
                    outcomes[outcome] += 1
                    done += 1
                    if time.monotonic() - said_s > SAY_EVERY_S:
                        said_s = time.monotonic()
                        print(f"  {done:,} of {len(contents):,}", flush=True)
            except BrokenProcessPool:
                outcomes["crashed"] += 1
                done += 1
    return outcomes


def _load(parts_seed: int, content: bytes) -> str:
    vectors = _vectors(parts_seed)
    try:
        index = load_content(content, vectors)
    except DamagedIndex:
        return "refused"
    queries = vectors[::7]
    found, _ = index.search(queries, TOP)
    exact, _ = ExactIndex(vectors).search(queries, TOP)
    held = [len(set(a) & set(b)) / TOP for a, b in zip(found.tolist(), exact.tolist(), strict=True)]
    return "a sound graph" if np.mean(held) >= LEAST_RECALL else "answers badly"


def _vectors(parts_seed: int) -> Vectors:
    vectors: Vectors = make_parts(seed=parts_seed).item_vectors
    return vectors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run both; 1 where something was loaded that must not be, or a process crashed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ann.damage", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flips", type=int, default=FLIPS)
    parser.add_argument("--truncations", type=int, default=TRUNCATIONS)
    parser.add_argument("--unhashed", type=int, default=UNHASHED, help="damaged files whose hash is right; .2 s each")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="damage-") as folder:
        hashed = by_the_manifest(Path(folder), flips=options.flips, truncations=options.truncations, seed=options.seed)
    print(f"by the manifest, {hashed.total():,} damaged files: {_told(hashed)}")
    good = make_parts().index
    assert good is not None
    few = options.unhashed // 11
    contents = list(damages(good, flips=options.unhashed - few, truncations=few, seed=options.seed + 1))
    unhashed = by_the_structure(7, contents)
    print(f"by the structure alone, {unhashed.total():,} damaged files: {_told(unhashed)}")
    return 1 if hashed["loaded"] or unhashed["crashed"] or unhashed["answers badly"] else 0


def _told(outcomes: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(outcomes.items())) or "none"


if __name__ == "__main__":
    sys.exit(main())
