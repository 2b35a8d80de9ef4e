"""Hit a real engine again and again, and hold its windows and dead letters against the log.

    make faults REPORT=faults.json                                      every fault, a few times each
    python -m tests.faults --fault kill --rounds 200 --report kill.json one fault, many times

A series of rounds shares one topic and one disk; after it the engine finishes what is left, is stopped, and is audited.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from engine.settings import Settings
from tests.faults.broker_hits import NEED_THREE_NODES
from tests.faults.cluster import Cluster
from tests.faults.hits import FAULTS
from tests.faults.rig import Rig

ROUNDS, SERIES = 3, 10
LOST = ("click_missing", "window_missing", "letter_missing", "log_lost")
TWICE = ("click_twice", "window_twice", "letter_unexpected", "click_unexpected", "window_unexpected")


@dataclass
class Tally:
    """What came of one fault."""

    rounds: int = 0
    valid: int = 0
    invalid: int = 0
    """Rounds in which the fault hit nothing under way; they prove nothing."""
    sent: int = 0
    lost: int = 0
    applied_twice: int = 0
    differing: int = 0
    """All differences of the audits, the two above among them."""
    drained_s: list[float] = field(default_factory=list)
    """How long the engine took after each series to finish what was left, its start included."""
    pauses_s: list[float] = field(default_factory=list)
    """How long a partition stood still when engines came, went or were restarted."""
    differences: list[dict[str, str]] = field(default_factory=list)

    def add(self, differences: Sequence[dict[str, str]]) -> None:
        """Count the differences of one audit."""
        self.differing += len(differences)
        self.lost += sum(one["kind"] in LOST for one in differences)
        self.applied_twice += sum(one["kind"] in TWICE for one in differences)
        self.differences += differences[:20]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the faults; 1 where a window differs or a round hit nothing."""
    options = parse(arguments)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        names = options.fault or list(FAULTS)
        try:
            tallies = {}
            for nodes in (1, 3):
                chosen = [name for name in names if (3 if name in NEED_THREE_NODES else 1) == nodes]
                tallies |= run_on(nodes, chosen, Path(folder), options)
        except KeyboardInterrupt:
            print("broken off; nothing is written", file=sys.stderr)
            return 130
    report = {
        "command": " ".join(["python -m tests.faults", *(arguments if arguments is not None else sys.argv[1:])]),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "seed": options.seed,
        "faults": {name: asdict(tally) for name, tally in tallies.items()},
    }
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n")
    print(table(tallies))
    return 1 if any(tally.differing or not tally.valid for tally in tallies.values()) else 0


def run_on(nodes: int, names: Sequence[str], folder: Path, options: argparse.Namespace) -> dict[str, Tally]:
    """Run the faults *names* on a cluster of so many nodes."""
    if not names:
        return {}
    cluster = Cluster(folder / f"brokers-{nodes}", nodes=nodes)
    try:
        cluster.start()
        return {name: run(name, cluster.settings, folder, options, cluster) for name in names}
    finally:
        cluster.stop()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fault", action="append", choices=FAULTS, help="this one alone; repeatable")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each fault, {ROUNDS} without it")
    parser.add_argument("--series", type=int, default=SERIES, help=f"rounds between two audits, {SERIES} without it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="write every figure to this file, as JSON")
    return parser.parse_args(arguments)


def run(
    name: str,
    broker: Settings,
    folder: Path,
    options: argparse.Namespace,
    cluster: Cluster | None = None,
    *,
    topics: str = "",
) -> Tally:
    """Run all rounds of one fault, on topics whose names begin with *topics*."""
    tally, series = Tally(), 0
    while tally.rounds < options.rounds:
        rounds = min(options.series, options.rounds - tally.rounds)
        prefix = f"{topics}{name}-{series}-"
        rig = Rig(broker, folder / prefix, prefix=prefix, seed=hash_of(options.seed, name, series), cluster=cluster)
        try:
            hit_in_series(rig, name, rounds, tally)
        finally:
            rig.close()
        series += 1
    return tally


def hit_in_series(rig: Rig, name: str, rounds: int, tally: Tally) -> None:
    """Hit the engine *rounds* times, let it finish, stop it, audit it."""
    rig.send(4_000)
    rig.train()
    for _ in range(rounds):
        began = time.monotonic()
        is_valid = FAULTS[name](rig)
        tally.rounds += 1
        tally.valid += is_valid
        tally.invalid += not is_valid
        verdict = "hit at work" if is_valid else "hit nothing under way"
        print(f"{name}: round {tally.rounds}, {verdict}, {time.monotonic() - began:.1f} s", flush=True)
    engine = rig.start()
    tally.drained_s.append(rig.drain(engine))
    if engine.stop() != 0:
        raise RuntimeError(f"the engine did not stop cleanly: {engine.last_lines()}")
    differences = rig.audit()
    tally.add(differences)
    tally.sent += rig.sent
    tally.pauses_s += rig.pauses_s
    print(f"{name}: {rig.sent:,} messages, {len(differences)} differences", flush=True)


def hash_of(seed: int, name: str, series: int) -> int:
    """Return a seed of its own for each series."""
    return seed * 1_000_003 + sum(name.encode()) * 1_009 + series


def table(tallies: dict[str, Tally]) -> str:
    """Return the tallies as lines of Markdown."""
    lines = [
        "| fault | rounds hit at work | hit nothing | messages | lost | applied twice | differing | done again after |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, one in tallies.items():
        done = f"{statistics.median(one.drained_s):.1f} s, at most {max(one.drained_s):.1f} s"
        cells = (name, one.valid, one.invalid, f"{one.sent:,}", one.lost, one.applied_twice, one.differing, done)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    for name, one in tallies.items():
        if one.pauses_s:
            ordered = sorted(one.pauses_s)
            p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            lines.append(
                f"{name}: a partition stood still for {statistics.median(ordered):.1f} s, p99 {p99:.1f} s, "
                f"of {len(ordered)} times"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
