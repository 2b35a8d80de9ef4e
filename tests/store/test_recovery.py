from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from engine.errors import CheckpointsUnusable, LogError, StoreBusy, StoreFormatError
from engine.settings import Settings
from engine.store.checkpoints import Checkpoint, Checkpoints
from engine.store.recovery import Bounds, Recovery
from engine.store.windows import PartitionStore
from tests.store.test_checkpoints import HEADER, apply, filled, keep, windows

LOG = Bounds(0, 1_000)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def place(tmp_path: Path) -> str:
    return str(tmp_path / "checkpoints")


def checkpointed(tmp_path: Path, place: str, *clicks: int) -> list[Checkpoint]:
    """Write a checkpoint after each so many *clicks* of another worker's store."""
    store = PartitionStore.open(tmp_path / "other", HEADER)
    made = []
    for upto in clicks:
        apply(store, upto - store.applied_offset - 1, first=store.applied_offset + 1)
        made.append(keep(Checkpoints(place, worker="other"), store, tmp_path))
    store.close()
    return made


def local(settings: Settings, clicks: int) -> Path:
    path = Recovery(settings).path(HEADER)
    filled(path, clicks).close()
    return path


def base_of(recovery: Recovery, held: Bounds = LOG) -> tuple[str, int]:
    """Open the store, close it, and return what it was made of and what it has applied."""
    before = {base: counted("stores_opened", base=base) for base in ("local", "checkpoint", "log")}
    store = recovery.open(HEADER, held)
    applied = store.applied_offset
    expected = {f"u{user}": [f"i{at}" for at in range(applied + 1) if at % 7 == user][-3:] for user in range(7)}
    assert windows(store) == {user: items for user, items in expected.items() if items}
    store.close()
    (base,) = (name for name, count in before.items() if counted("stores_opened", base=name) > count)
    return base, applied


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"mindstream_{name}_total", labels) or 0.0


def damage(path: Path) -> None:
    for manifest in path.glob("MANIFEST*"):
        manifest.write_bytes(b"garbage" * 20)


def damage_clicks(path: Path) -> None:
    """Damage blocks of clicks in the store's only table; its header, offset and index stay whole."""
    (table,) = path.glob("*.sst")
    content = bytearray(table.read_bytes())
    middle = len(content) // 2
    for at in range(middle, middle + 5_000, 100):
        content[at] ^= 0xFF
    table.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("here", "there", "expected"),
    [
        (0, (), ("log", -1)),
        (10, (), ("local", 9)),
        (0, (10,), ("checkpoint", 9)),
        (10, (5, 20), ("checkpoint", 19)),
        (20, (5, 10), ("local", 19)),
        (10, (10,), ("local", 9)),
    ],
)
def test_the_base_is_the_greatest_offset(
    settings: Settings, tmp_path: Path, place: str, here: int, there: tuple[int, ...], expected: tuple[str, int]
) -> None:
    if here:
        local(settings, here)
    checkpointed(tmp_path, place, *there)

    assert base_of(Recovery(settings, Checkpoints(place))) == expected
    again = ("local" if expected[1] >= 0 else "log", expected[1])
    assert base_of(Recovery(settings, Checkpoints(place))) == again, "it stands on this machine now"


def test_who_waited_for_a_list_waits_in_the_fetched_store(settings: Settings, tmp_path: Path, place: str) -> None:
    checkpointed(tmp_path, place, 10)

    store = Recovery(settings, Checkpoints(place)).open(HEADER, LOG)

    assert sorted(user.user_id for user in store.take_dirty(100).users) == [f"u{number}" for number in range(7)]
    store.close()


def test_a_damaged_store_is_set_aside_and_a_checkpoint_takes_its_place(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    damage(local(settings, 20))
    checkpointed(tmp_path, place, 10)
    aside = counted("stores_set_aside")

    assert base_of(Recovery(settings, Checkpoints(place), now_ms=lambda: 1)) == ("checkpoint", 9)

    assert counted("stores_set_aside") == aside + 1
    kept = settings.data_dir / "engine" / "aside" / "clicks-2-1"
    assert any(path.read_bytes().startswith(b"garbage") for path in kept.glob("MANIFEST*"))


def test_only_the_last_damaged_store_of_a_partition_is_kept(settings: Settings) -> None:
    for now_ms in (1, 2, 3):
        damage(local(settings, 5))
        assert base_of(Recovery(settings, now_ms=lambda at=now_ms: at)) == ("log", -1)  # type: ignore[misc]
        shutil.rmtree(Recovery(settings).path(HEADER))

    assert [path.name for path in (settings.data_dir / "engine" / "aside").iterdir()] == ["clicks-2-3"]


def test_without_a_checkpoint_a_damaged_store_is_made_anew_from_a_whole_log_only(settings: Settings) -> None:
    damage(local(settings, 20))
    recovery = Recovery(settings)
    store = recovery.open(HEADER, Bounds(5, 100))

    with pytest.raises(
        LogError, match=r"begins at offset 5, .* needs offset 0 next; name the place of its checkpoints"
    ):
        recovery.next_offset(store, Bounds(5, 100))
    assert recovery.next_offset(store, Bounds(0, 100)) == 0
    store.close()


def test_a_block_that_a_run_could_not_read_is_looked_for_at_the_next_start(settings: Settings) -> None:
    path = local(settings, 5_000)
    reopened = PartitionStore.open(path, HEADER)  # its log becomes a table
    reopened.close()
    damage_clicks(path)
    Recovery(settings).open(HEADER, LOG).close()  # RocksDB has seen nothing of it

    Recovery(settings).suspect()
    recovery = Recovery(settings)

    assert base_of(recovery) == ("log", -1)
    assert base_of(Recovery(settings)) == ("log", -1)
    assert len(list((settings.data_dir / "engine" / "aside").iterdir())) == 1


def test_a_checkpoint_that_copied_the_damage_is_passed_over(settings: Settings, tmp_path: Path, place: str) -> None:
    checkpointed(tmp_path, place, 5_000)
    PartitionStore.open(tmp_path / "other", HEADER).close()
    damage_clicks(tmp_path / "other")
    store = PartitionStore.open(tmp_path / "other", HEADER)
    apply(store, 5, first=5_000)
    keep(Checkpoints(place, worker="other"), store, tmp_path)
    store.close()
    assert [one.applied_offset for one in Checkpoints(place).find(HEADER)] == [5_004, 4_999]

    Recovery(settings).suspect()

    assert base_of(Recovery(settings, Checkpoints(place)), Bounds(0, 6_000)) == ("checkpoint", 4_999)


def test_a_suspicion_that_was_wrong_costs_nothing_but_time(settings: Settings) -> None:
    local(settings, 20)
    Recovery(settings).suspect()

    assert base_of(Recovery(settings)) == ("local", 19)
    assert not (settings.data_dir / "engine" / "aside").exists()


def test_of_damaged_checkpoints_the_next_one_is_taken(settings: Settings, tmp_path: Path, place: str) -> None:
    local(settings, 5)
    older, newer = checkpointed(tmp_path, place, 10, 20)
    only_newer = {file.sha256 for file in newer.files} - {file.sha256 for file in older.files}
    for sha256 in only_newer:
        next(Path(place).rglob(sha256)).write_bytes(b"nonsense")

    assert base_of(Recovery(settings, Checkpoints(place))) == ("checkpoint", 9)
    assert not list((settings.data_dir / "engine" / "fetching").glob("*"))


def test_where_all_checkpoints_are_damaged_the_store_here_is_the_base(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    local(settings, 5)
    checkpointed(tmp_path, place, 10, 20)
    for path in Path(place).rglob("files/*"):
        path.write_bytes(b"nonsense")

    assert base_of(Recovery(settings, Checkpoints(place))) == ("local", 4)


def test_a_manifest_that_says_another_offset_than_its_store_is_refused(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    (made,) = checkpointed(tmp_path, place, 10)
    manifest = Path(made.path)
    told = manifest.read_text().replace('"applied_offset": 9', '"applied_offset": 90')
    manifest.with_name(f"{90:020d}-0123456789ab.json").write_text(told)

    assert base_of(Recovery(settings, Checkpoints(place))) == ("checkpoint", 9)


def test_a_checkpoint_beyond_the_end_of_the_log_stops_the_engine(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    local(settings, 5)
    checkpointed(tmp_path, place, 20)
    recovery = Recovery(settings, Checkpoints(place))

    with pytest.raises(LogError, match=r"ends at offset 19, but checkpoint .* has applied 19: the log lost records"):
        recovery.open(HEADER, Bounds(0, 19))
    assert base_of(recovery, Bounds(0, 20)) == ("checkpoint", 19), "nobody holds the store"


def test_checkpoints_out_of_reach_matter_only_where_the_log_is_not_enough(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    recovery = Recovery(settings, Checkpoints(str(tmp_path / "file" / "below")))
    fails = Recovery(settings, Unreachable(str(tmp_path)))

    assert base_of(recovery, Bounds(0, 10)) == ("log", -1)
    shutil.rmtree(Recovery(settings).path(HEADER))
    with pytest.raises(CheckpointsUnusable, match="MINDSTREAM_CHECKPOINT_URL"):
        fails.open(HEADER, Bounds(5, 10))
    assert base_of(fails, Bounds(0, 10)) == ("log", -1)
    shutil.rmtree(Recovery(settings).path(HEADER))
    local(settings, 5)
    assert base_of(fails, Bounds(5, 10)) == ("local", 4)


class Unreachable(Checkpoints):
    """An object store that nobody answers for."""

    def find(self, header: object) -> list[Checkpoint]:
        raise CheckpointsUnusable(self.url, cause="no answer")


def test_a_store_made_for_something_else_is_refused_not_replaced(
    settings: Settings, tmp_path: Path, place: str
) -> None:
    from dataclasses import replace

    path = local(settings, 5)
    checkpointed(tmp_path, place, 20)
    recovery = Recovery(settings, Checkpoints(place))

    with pytest.raises(StoreFormatError, match="topic_id"):
        recovery.open(replace(HEADER, topic_id="made anew"), LOG)
    held = PartitionStore.open(path, HEADER)
    with pytest.raises(StoreBusy):
        recovery.open(HEADER, LOG)
    held.close()


@pytest.mark.parametrize("crash", ["while fetching", "before the old store left", "before the new one came"])
def test_a_crash_while_a_checkpoint_takes_its_place_leaves_it_to_the_next_start(
    settings: Settings, tmp_path: Path, place: str, crash: str
) -> None:
    path = local(settings, 5)
    (made,) = checkpointed(tmp_path, place, 20)
    fetching = settings.data_dir / "engine" / "fetching" / "clicks-2-19"
    Checkpoints(place).fetch(made, fetching)
    if crash == "while fetching":
        next(fetching.glob("*.log")).unlink()
    if crash == "before the new one came":
        path.rename(fetching.with_name("clicks-2-19-outdated"))

    assert base_of(Recovery(settings, Checkpoints(place))) == ("checkpoint", 19)
    assert not list(fetching.parent.glob("*"))
