from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer

from engine.errors import CheckpointsUnusable, ConfigError, DamagedCheckpoint
from engine.store.checkpoints import UNNAMED_FOR_S, Checkpoint, Checkpoints
from engine.store.codec import STORE_FORMAT
from engine.store.header import StoreHeader
from engine.store.scans import read_offset_of
from engine.store.windows import LoggedClick, PartitionStore
from tests.builders import make_click

HEADER = StoreHeader(cluster_id="c/1", topic="clicks", topic_id="t", partitions=4, partition=2, max_clicks=3)


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Run an S3 on loopback and return its address."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["directory", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    place = tmp_path / "checkpoints"
    if request.param != "s3":
        return str(place) if request.param == "directory" else f"memory://{place}"
    names = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**names, "AWS_ENDPOINT_URL": request.getfixturevalue("s3")}.items():
        monkeypatch.setenv(name, value)
    bucket = f"b{tmp_path.name.lower().replace('_', '-')}-{tmp_path.parent.name}"[-60:].strip("-")
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(bucket)
    return f"s3://{bucket}/checkpoints"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def filled(path: Path, clicks: int, *, header: StoreHeader = HEADER, first: int = 0) -> PartitionStore:
    store = PartitionStore.open(path, header)
    apply(store, clicks, first=first)
    return store


def apply(store: PartitionStore, clicks: int, *, first: int) -> None:
    logged = [
        LoggedClick(at, 1_000 + at, make_click(user_id=f"u{at % 7}", item_id=f"i{at}", clicked_at_ms=1_000 + at))
        for at in range(first, first + clicks)
    ]
    store.apply(logged, through_offset=first + clicks - 1)


def keep(checkpoints: Checkpoints, store: PartitionStore, folder: Path) -> Checkpoint:
    """Write a checkpoint of *store* as it is now."""
    copy = folder / f"copy-{store.applied_offset}"
    applied = store.copy_to(copy)
    return checkpoints.write(copy, store.header, applied_offset=applied, created_at_ms=5)


def windows(store: PartitionStore) -> dict[str, list[str]]:
    return {user: store.read_window(user).item_ids for user in store.users()}


def test_a_fetched_checkpoint_is_the_store_as_it_was(url: str, tmp_path: Path) -> None:
    checkpoints = Checkpoints(url, worker="w1")
    store = filled(tmp_path / "store", 30)
    expected, waiting = windows(store), store.count_dirty()
    made = keep(checkpoints, store, tmp_path)
    apply(store, 10, first=30)
    store.close()

    (found,) = checkpoints.find(HEADER)
    checkpoints.fetch(found, tmp_path / "fetched")

    assert found == made
    assert (found.applied_offset, found.worker, found.created_at_ms) == (29, "w1", 5)
    fetched = PartitionStore.open(tmp_path / "fetched", HEADER)
    assert (windows(fetched), fetched.applied_offset, fetched.count_dirty()) == (expected, 29, waiting)
    fetched.close()


def test_clicks_applied_while_a_copy_is_made_leave_it_at_some_offset_whole(tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 10)
    is_done = threading.Event()

    def go_on() -> None:
        at = 10
        while not is_done.is_set():
            apply(store, 1, first=at)
            at += 1

    writer = threading.Thread(target=go_on)
    writer.start()
    try:
        copies = [(tmp_path / f"copy{number}", store.copy_to(tmp_path / f"copy{number}")) for number in range(20)]
    finally:
        is_done.set()
        writer.join()
        store.close()

    for path, applied in copies:
        copy = PartitionStore.open(path, HEADER)
        assert copy.applied_offset == applied
        expected = {f"u{user}": [f"i{at}" for at in range(applied + 1) if at % 7 == user][-3:] for user in range(7)}
        assert windows(copy) == expected
        copy.close()


def test_only_what_is_new_is_sent_again(directory: Path, tmp_path: Path) -> None:
    checkpoints = Checkpoints(str(directory))
    store = filled(tmp_path / "store", 3_000)
    first = keep(checkpoints, store, tmp_path)
    tables = {file.sha256 for file in first.files if file.name.endswith(".sst")}
    written = {path.name: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name in tables}

    apply(store, 5, first=3_000)
    second = keep(checkpoints, store, tmp_path)
    store.close()

    assert tables
    assert tables < {file.sha256 for file in second.files if file.name.endswith(".sst")}
    assert {path.name: path.stat().st_mtime_ns for path in directory.rglob("*") if path.name in tables} == written


def test_the_greatest_offset_comes_first_whoever_wrote_last(url: str, tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 3)
    zombie = tmp_path / "zombie"
    store.copy_to(zombie)
    for clicks in (3, 6, 10):
        apply(store, clicks, first=store.applied_offset + 1)
        keep(Checkpoints(url, worker="owner"), store, tmp_path)
    store.close()
    Checkpoints(url, worker="zombie").write(zombie, HEADER, applied_offset=2, created_at_ms=9)

    assert [checkpoint.applied_offset for checkpoint in Checkpoints(url).find(HEADER)] == [21, 11, 5, 2]


@pytest.mark.parametrize(
    "change",
    [{"cluster_id": "c"}, {"topic_id": "made anew"}, {"partitions": 5}, {"partition": 1}, {"max_clicks": 4}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_made_for_something_else_is_not_found(url: str, tmp_path: Path, change: dict[str, object]) -> None:
    store = filled(tmp_path / "store", 3)
    keep(Checkpoints(url), store, tmp_path)
    store.close()

    assert Checkpoints(url).find(replace(HEADER, **change)) == []  # type: ignore[arg-type]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "a flipped bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "half of it": lambda content: content[: len(content) // 2],
    "one byte more": lambda content: content + b"x",
    "nothing": lambda _content: b"",
    "no file": lambda _content: None,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_each_file_that_differs_is_named_and_sent_again(
    directory: Path, tmp_path: Path, damage: Callable[[bytes], bytes | None]
) -> None:
    checkpoints = Checkpoints(str(directory))
    store = filled(tmp_path / "store", 300)
    made = keep(checkpoints, store, tmp_path)
    for number, file in enumerate(file for file in made.files if file.size):
        (path,) = directory.rglob(file.sha256)
        content = path.read_bytes()
        damaged = damage(content)
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)

        with pytest.raises(DamagedCheckpoint, match=file.name):
            checkpoints.verify(made)
        with pytest.raises(DamagedCheckpoint, match=file.name):
            checkpoints.fetch(made, tmp_path / f"fetched{number}")

        assert not path.exists(), "a file that is there would never be sent again"
        path.write_bytes(content)
    store.close()


def manifest_with(**changes: object) -> bytes:
    file = {"name": "CURRENT", "size": 1, "sha256": "0" * 64}
    header = {
        "cluster_id": "c/1",
        "topic": "clicks",
        "topic_id": "t",
        "partitions": 4,
        "partition": 2,
        "max_clicks": 3,
        "format": STORE_FORMAT,
    }
    fields = {"format": 1, "header": header, "applied_offset": 9, "created_at_ms": 1, "worker": "w", "files": [file]}
    return json.dumps(fields | changes).encode()


BAD_MANIFESTS = {
    "no JSON": b"}{",
    "not an object": b"[]",
    "bytes": b"\xff\xfe",
    "nothing": b"",
    "deep": b"[" * 100_000,
    "another format": manifest_with(format=2),
    "a path out of the folder": manifest_with(files=[{"name": "../../x", "size": 1, "sha256": "0" * 64}]),
    "an absolute path": manifest_with(files=[{"name": "/etc/x", "size": 1, "sha256": "0" * 64}]),
    "a hidden name": manifest_with(files=[{"name": ".x", "size": 1, "sha256": "0" * 64}]),
    "a hash that is a path": manifest_with(files=[{"name": "x", "size": 1, "sha256": "../" * 20 + "abcd"}]),
    "a name that is none": manifest_with(files=[{"name": 7, "size": 1, "sha256": "0" * 64}]),
    "a negative size": manifest_with(files=[{"name": "x", "size": -1, "sha256": "0" * 64}]),
    "a file twice": manifest_with(files=[{"name": "x", "size": 1, "sha256": "0" * 64}] * 2),
    "an offset that is text": manifest_with(applied_offset="9"),
    "no finite offset": manifest_with(applied_offset=float("nan")),
    "a negative offset": manifest_with(applied_offset=-1),
    "files that are none": manifest_with(files=7),
    "huge": b" " * 16_000_001,
}


@pytest.mark.parametrize("raw", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
def test_a_bad_manifest_is_passed_over_and_the_good_one_beside_it_found(
    directory: Path, tmp_path: Path, raw: bytes
) -> None:
    store = filled(tmp_path / "store", 3)
    made = keep(Checkpoints(str(directory)), store, tmp_path)
    store.close()
    Path(made.path).with_name(f"{9:020d}-0123456789ab.json").write_bytes(raw)

    assert Checkpoints(str(directory)).find(HEADER) == [made]


def test_the_manifest_of_the_bad_ones_is_a_good_one_but_for_what_they_change(directory: Path, tmp_path: Path) -> None:
    store = filled(tmp_path / "store", 3)
    made = keep(Checkpoints(str(directory)), store, tmp_path)
    store.close()
    Path(made.path).with_name(f"{9:020d}-0123456789ab.json").write_bytes(manifest_with())

    assert len(Checkpoints(str(directory)).find(HEADER)) == 2


def test_pruning_keeps_the_newest_and_what_they_name(url: str, tmp_path: Path) -> None:
    now_s = [0.0]
    checkpoints = Checkpoints(url, keep=2, clock_s=lambda: now_s[0])
    store = filled(tmp_path / "store", 50)
    for _ in range(4):
        apply(store, 50, first=store.applied_offset + 1)
        keep(checkpoints, store, tmp_path)
    store.close()

    assert checkpoints.prune(HEADER) == 0
    assert [kept.applied_offset for kept in checkpoints.find(HEADER)] == [249, 199]
    checkpoints.prune(HEADER)  # now it sees which files are named by none
    now_s[0] = UNNAMED_FOR_S - 1
    assert checkpoints.prune(HEADER) == 0, "another worker may be about to name them"
    now_s[0] = UNNAMED_FOR_S
    assert checkpoints.prune(HEADER) > 0
    assert checkpoints.prune(HEADER) == 0
    for kept in checkpoints.find(HEADER):
        checkpoints.verify(kept)


def test_a_file_that_is_named_again_in_time_stays(directory: Path, tmp_path: Path) -> None:
    now_s = [0.0]
    checkpoints = Checkpoints(str(directory), clock_s=lambda: now_s[0])
    store = filled(tmp_path / "store", 50)
    made = keep(checkpoints, store, tmp_path)
    store.close()
    manifest = Path(made.path)
    content = manifest.read_bytes()
    manifest.unlink()
    checkpoints.prune(HEADER)
    manifest.write_bytes(content)
    now_s[0] = UNNAMED_FOR_S + 1
    checkpoints.prune(HEADER)
    manifest.unlink()
    now_s[0] += 2

    assert checkpoints.prune(HEADER) == 0, "it was named a moment ago"
    manifest.write_bytes(content)
    checkpoints.verify(made)


def test_two_workers_write_and_prune_side_by_side_and_every_manifest_holds(directory: Path, tmp_path: Path) -> None:
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            checkpoints = Checkpoints(str(directory), worker=str(number), keep=2)
            store = filled(tmp_path / f"store{number}", 20)
            (tmp_path / f"copies{number}").mkdir()
            for _ in range(12):
                apply(store, 20, first=store.applied_offset + 1)
                keep(checkpoints, store, tmp_path / f"copies{number}")
                checkpoints.prune(HEADER)
            store.close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    checkpoints = Checkpoints(str(directory), keep=2)
    checkpoints.prune(HEADER)
    found = checkpoints.find(HEADER)
    assert len(found) == 2
    for checkpoint in found:
        checkpoints.verify(checkpoint)


KILLED = """
import sys
from pathlib import Path
from engine.store.checkpoints import Checkpoints
from tests.store.test_checkpoints import apply, filled, keep

place, folder = Path(sys.argv[1]), Path(sys.argv[2])
checkpoints, store = Checkpoints(str(place), keep=2), filled(folder / "store", 2_000)
while True:
    apply(store, 500, first=store.applied_offset + 1)
    keep(checkpoints, store, folder)
    checkpoints.prune(store.header)
    print(store.applied_offset, flush=True)
"""


def test_a_writer_killed_anywhere_leaves_only_whole_checkpoints(directory: Path, tmp_path: Path) -> None:
    rng = random.Random(11)
    for round_number in range(6):
        folder = tmp_path / f"round{round_number}"
        folder.mkdir()
        writer = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(directory), str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(rng.uniform(0.0, 0.3))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()

        checkpoints = Checkpoints(str(directory))
        found = checkpoints.find(HEADER)
        assert found
        for checkpoint in found:
            checkpoints.verify(checkpoint)
        checkpoints.fetch(found[0], folder / "fetched")
        assert read_offset_of(folder / "fetched") == found[0].applied_offset


def test_a_place_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = filled(tmp_path / "store", 3)

    with pytest.raises(CheckpointsUnusable, match=r"file.*MINDSTREAM_CHECKPOINT_URL"):
        keep(Checkpoints(str(tmp_path / "file")), store, tmp_path)
    store.close()
    with pytest.raises(ConfigError, match="MINDSTREAM_CHECKPOINT_URL must be a directory, or an address that fsspec"):
        Checkpoints("nosuch://place")


def test_a_store_without_clicks_or_closed_makes_no_copy(tmp_path: Path) -> None:
    store = PartitionStore.open(tmp_path / "store", HEADER)
    assert store.copy_to(tmp_path / "copy") == -1
    apply(store, 1, first=0)
    store.close()

    assert store.copy_to(tmp_path / "copy") == -1
    assert not (tmp_path / "copy").exists()


def test_a_folder_name_never_leaves_the_place(tmp_path: Path) -> None:
    header = replace(HEADER, cluster_id="../../..", topic="..", topic_id="/etc")
    store = filled(tmp_path / "store", 3, header=header)
    place = tmp_path / "a" / "b" / "checkpoints"

    made = keep(Checkpoints(str(place)), store, tmp_path)
    store.close()

    assert os.path.realpath(made.path).startswith(f"{place}{os.sep}")
    assert Checkpoints(str(place)).find(header) == [made]
