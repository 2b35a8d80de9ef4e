"""How long a partition has nobody: stores opened again, and stores restored from checkpoints.

The stores hold a million users, two clicks and a derived row each. **Opened again**: in a fresh process, by the
engine's own `Recovery`, from assignment to the offset that each partition is read from; what the log holds beyond
comes on top. **Restored**: a checkpoint of the same stores is fetched, each file compared with its sha256, against
`cp` and `sha256sum` of the same files, in turns. Replay from the log is ingest, which `bench_ingest.py` measures;
engines that are restarted and scaled are in `make faults FAULT=rolling-restart` and `FAULT=scale`.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from report import at_least, at_most, conclude, machine
from store_load import PARTITIONS, bytes_on_disk, fill, header_of

from engine.settings import Settings
from engine.store.checkpoints import Checkpoints
from engine.store.header import stores_dir
from engine.store.recovery import Bounds, Recovery
from engine.store.windows import PartitionStore

CLICKS_EACH = 2
MOST_OPEN_S, LEAST_OF_COPY = 5.0, 0.7


def main() -> int:
    arguments = parse_arguments()
    if arguments.open:
        print(open_again(arguments.open))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="bench-recovery-", dir=arguments.directory))
    try:
        print(f"  filling the stores of {arguments.users:,} users", flush=True)
        fill(directory, arguments.users, CLICKS_EACH, with_lists=True)
        opened_s = [in_own_process(directory) for _ in range(arguments.turns)]
        print(f"  opened again in {statistics.median(opened_s):.2f} s", flush=True)
        restored = restore(directory, arguments.turns)
        size = bytes_on_disk(stores_dir(Settings(data_dir=directory)))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    figures: dict[str, Any] = {
        "machine": machine(),
        "users": arguments.users,
        "bytes": size,
        "opened_s": opened_s,
        **restored,
    }
    figures["checks"] = [
        at_most("seconds to open the stores again", statistics.median(opened_s), MOST_OPEN_S),
        at_least(
            "restore, of cp and sha256sum",
            statistics.median(restored["copied_s"]) / statistics.median(restored["restored_s"]),
            LEAST_OF_COPY,
        ),
    ]
    show(figures)
    return conclude(figures, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 users in one turn")
    parser.add_argument("--users", type=int, help="a million by default")
    parser.add_argument("--turns", type=int, help="how often each is done; 5 by default")
    parser.add_argument("--directory", type=Path, help="where the stores lie meanwhile; a temporary one by default")
    parser.add_argument("--json", type=Path, help="write every figure to this file")
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.users = arguments.users or (50_000 if arguments.quick else 1_000_000)
    arguments.turns = arguments.turns or (1 if arguments.quick else 5)
    return arguments


def in_own_process(directory: Path) -> float:
    command = [sys.executable, __file__, "--open", str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        sys.exit(ended.stderr[-3000:])
    return float(ended.stdout.splitlines()[-1])


def open_again(directory: Path) -> float:
    """Return the seconds from assignment to the positions of all partitions."""
    settings = Settings(data_dir=directory)
    began_s = time.perf_counter()
    recovery, held = Recovery(settings), Bounds(0, 2**40)
    stores = [recovery.open(header_of(partition), held) for partition in range(PARTITIONS)]
    for store in stores:
        recovery.next_offset(store, held)
    opened_s = time.perf_counter() - began_s
    for store in stores:
        store.close()
    return opened_s


def restore(directory: Path, turns: int) -> dict[str, Any]:
    """Return the seconds that fetching the checkpoints takes, and those of `cp` and `sha256sum`."""
    root, copies = stores_dir(Settings(data_dir=directory)), directory / "copies"
    checkpoints = Checkpoints(str(directory / "checkpoints"))
    copies.mkdir()
    made = []
    for partition in range(PARTITIONS):
        store = PartitionStore.open(root / f"clicks-{partition}", header_of(partition))
        applied = store.copy_to(copies / str(partition))
        made.append(checkpoints.write(copies / str(partition), store.header, applied_offset=applied, created_at_ms=0))
        store.close()
    restored_s, copied_s = [], []
    for turn in range(turns):
        target = directory / f"restored-{turn}"
        began_s = time.perf_counter()
        for partition, checkpoint in enumerate(made):
            checkpoints.fetch(checkpoint, target / str(partition))
        restored_s.append(time.perf_counter() - began_s)
        shutil.rmtree(target)
        began_s = time.perf_counter()
        script = 'cp -r "$0" "$1" && find "$1" -type f -print0 | xargs -0 sha256sum > /dev/null && sync "$1"'
        subprocess.run(["sh", "-c", script, str(copies), str(target)], check=True)
        copied_s.append(time.perf_counter() - began_s)
        shutil.rmtree(target)
    return {"restored_s": restored_s, "copied_s": copied_s}


def show(figures: dict[str, Any]) -> None:
    opened, of_copy = (check["value"] for check in figures["checks"])
    print(
        f"recovery ({figures['machine']}): stores of {figures['users']:,} users, {figures['bytes'] / 2**20:.0f} MiB, "
        f"opened again in {opened:.2f} s; restored at {of_copy:.2f} of cp and sha256sum"
    )


if __name__ == "__main__":
    sys.exit(main())
