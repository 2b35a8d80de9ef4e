"""Stores that are refused, full, cut or closed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import DamagedStore, StoreBusy, StoreFormatError, StoreNotWritten
from engine.store.header import StoreHeader
from engine.store.windows import PartitionStore
from engine.window import BehaviorWindow
from tests.builders import make_click
from tests.store.stores import HEADER, apply, full_disk, logged, published, reopen


@pytest.mark.parametrize(
    ("field", "value"),
    [("topic_id", "other"), ("partitions", 8), ("max_clicks", 4)],
)
def test_a_store_made_for_something_else_is_refused_by_name(
    store: PartitionStore, tmp_path: Path, field: str, value: object
) -> None:
    store.close()
    wanted = StoreHeader(**{name: getattr(HEADER, name) for name in HEADER.__slots__} | {field: value})  # type: ignore[arg-type]

    with pytest.raises(StoreFormatError, match=rf"has {field} .* this process expects {value!r}"):
        PartitionStore.open(tmp_path / "store", wanted)

    PartitionStore.open(tmp_path / "store", HEADER).close()


def test_a_store_in_use_by_another_process_is_named(store: PartitionStore, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from engine.errors import StoreBusy;"
        "from engine.store.rocksdb import open_for_writing\n"
        "try: open_for_writing(Path(sys.argv[1]))\n"
        "except StoreBusy: sys.exit(7)"
    )

    other = subprocess.run([sys.executable, "-c", script, str(tmp_path / "store")], check=False)

    assert other.returncode == 7
    with pytest.raises(StoreBusy, match="MINDSTREAM_DATA_DIR"):
        PartitionStore.open(tmp_path / "store", HEADER)


def test_a_damaged_store_is_refused_with_what_to_do(store: PartitionStore, tmp_path: Path) -> None:
    store.close()
    for manifest in (tmp_path / "store").glob("MANIFEST*"):
        manifest.write_bytes(b"garbage" * 20)

    with pytest.raises(DamagedStore, match="sets a damaged store aside at its start"):
        PartitionStore.open(tmp_path / "store", HEADER)


def test_a_store_that_can_not_be_written_says_where_and_what_to_do(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click(item_id="i1"))
    batch = store.take_dirty(1)

    with full_disk():
        with pytest.raises(StoreNotWritten, match=rf"store {tmp_path / 'store'} can't be written: .*; make room"):
            apply(store, make_click(item_id="i2"))
        with pytest.raises(StoreNotWritten, match="comes from the log"):
            store.settle(batch, [published("u1", 1, 1)])

    store.release(batch)
    assert (store.applied_offset, store.count_dirty(), store.count_lists(1)) == (0, 1, (0, 0))
    with pytest.raises(StoreNotWritten):
        store.close()
    again = PartitionStore.open(tmp_path / "store", HEADER)
    assert (again.applied_offset, again.read_window("u1").item_ids, again.count_dirty()) == (0, ["i1"], 1)
    again.close()


def test_closing_drops_batches_that_are_still_out(store: PartitionStore, tmp_path: Path) -> None:
    apply(store, make_click())
    store.take_dirty(1)

    again = reopen(store, tmp_path)

    assert again.count_dirty() == 1
    again.close()


def test_a_write_ahead_log_cut_anywhere_leaves_a_prefix_of_the_batches(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "store", HEADER)
    clicks = [make_click(user_id=f"u{at % 7}", item_id=f"i{at}", clicked_at_ms=at) for at in range(300)]
    for start in range(0, 300, 10):
        store.apply(logged(clicks[start : start + 10], first_offset=start), through_offset=start + 9)
    for wal in (tmp_path / "store").glob("*.log"):
        whole = wal.read_bytes()
    copied = [path for path in (tmp_path / "store").iterdir() if path.name != "LOCK"]

    for cut in (0, 100, len(whole) // 3, len(whole) // 2, len(whole) - 1):
        target = tmp_path / f"cut{cut}"
        target.mkdir()
        for path in copied:
            data = path.read_bytes()
            (target / path.name).write_bytes(data[:cut] if path.suffix == ".log" else data)
        survivor = PartitionStore.open(target, HEADER)
        through = survivor.applied_offset
        for user in {click.user_id for click in clicks}:
            expected = BehaviorWindow.of([c for c in clicks[: through + 1] if c.user_id == user], max_clicks=3)
            assert survivor.read_window(user) == expected
        assert survivor.count_dirty() == len({click.user_id for click in clicks[: through + 1]})
        survivor.close()
    store.close()
