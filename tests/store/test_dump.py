"""The dump of all windows, which other folds of the log are compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.settings import Settings
from engine.store.dump import dump_windows
from engine.store.header import StoreHeader, stores_dir
from engine.store.windows import PartitionStore
from tests.builders import make_click
from tests.store.stores import HEADER, apply


def test_a_dump_reads_every_store_while_its_owner_writes(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    stores = []
    for partition in (0, 1):
        header = StoreHeader(**{name: getattr(HEADER, name) for name in HEADER.__slots__} | {"partition": partition})  # type: ignore[arg-type]
        stores.append(PartitionStore.open(stores_dir(settings) / f"clicks-{partition}", header))
        apply(stores[-1], make_click(user_id=f"u{partition}", event_id="e", profile={"country": "FR"}))

    dumped = list(dump_windows(settings))

    for store in stores:
        store.close()
    click = {"item_id": "i1", "clicked_at_ms": 1_291_204_800_000, "event_id": "e", "event_type": "click", "weight": 1.0}
    assert dumped == [
        {
            "user_id": f"u{partition}",
            "clicks": [click],
            "profile": {"country": "FR"},
            "profile_set_at": {"country": (1_291_204_800_000, "e")},
            "partition": partition,
            "applied_offset": 0,
            "waiting": True,
            "refreshed": None,
            "log": {name: getattr(HEADER, name) for name in ("cluster_id", "topic_id", "partitions")},
        }
        for partition in (0, 1)
    ]


def test_a_dump_leaves_out_the_stores_of_another_prefix(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    for prefix in ("", "old-"):
        header = replace(HEADER, topic=f"{prefix}clicks")
        store = PartitionStore.open(stores_dir(settings) / f"{prefix}clicks-0", header)
        apply(store, make_click(user_id=f"{prefix}u1"))
        store.close()

    assert [window["user_id"] for window in dump_windows(settings)] == ["u1"]
    old = settings.model_copy(update={"topic_prefix": "old-"})
    assert [window["user_id"] for window in dump_windows(old)] == ["old-u1"]
