"""From a name or a path to the sequences it stands for: which reader reads what.

A path always works. A name is looked up under the data folder: `comirec-splits/beauty` is the file `beauty.txt.gz` in
its folder `comirec-splits`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from engine.errors import ConfigError, SourceError
from engine.sources import Columns, OnlineRetail, TabularClicks
from engine.sources.online_retail import FILE_NAME
from engine.sources.table import READABLE, find_table, is_table, read_table
from engine.sources.tabular import read_catalog
from trainer.offline.atomic import ENDINGS as ATOMIC_ENDINGS
from trainer.offline.atomic import find_atomic, read_atomic
from trainer.offline.attributes import attribute_items, find_attributes, read_attributes
from trainer.offline.events import read_events
from trainer.offline.sequences import Sequences
from trainer.offline.text_files import is_text, read_sessions, read_text

SUFFIXES = ("", ".txt.gz", ".txt", ".tsv.gz", ".tsv", ".csv.gz", ".csv", ".parquet", ".inter.gz", ".inter")
"""What a name may leave out."""


def find_data(name: str, folder: Path) -> Path:
    """Return the file or folder that *name* stands for: a path, or a name under *folder*.

    Raises:
        ConfigError: there is no such thing, or the name leads out of the folder.
    """
    path = Path(name)
    if path.exists():
        return path
    if not path.is_absolute() and ".." not in path.parts:
        for suffix in SUFFIXES:
            candidate = folder / (name + suffix)
            if candidate.exists():
                return candidate
    known = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    listed = f"one of {', '.join(known[:20])}" if known else "a folder given with --data-dir that holds it"
    raise ConfigError("--data", got=name, expected=f"a path, or a name under {folder}: {listed}")


def read_sequences(path: Path, columns: Columns | None = None) -> Sequences:
    """Return the data set at *path*.

    Args:
        path: a file or a folder.
        columns: which column of a table holds what.

    Raises:
        SourceError: nothing there can be read, or it holds no click.
    """
    if path.is_dir():
        return _read_folder(path, columns)
    if path.name.endswith(ATOMIC_ENDINGS):
        return read_atomic(path)
    if path.name == FILE_NAME:
        return read_events(path, OnlineRetail(path))
    if is_table(path):
        return read_events(path, TabularClicks(path, columns))
    if is_text(path):
        return _with_attributes(path, read_text(path))
    raise SourceError(
        path,
        problem="is of no known kind",
        remedy=f"give a table ({READABLE}), sequences (.txt, .txt.gz) or atomic files (.inter)",
    )


def _read_folder(folder: Path, columns: Columns | None) -> Sequences:
    train = _session_file(folder, "train_sessions")
    if train is not None:
        return _with_catalog(folder, read_sessions(folder, train=train, test=_session_file(folder, "test_sessions")))
    if (folder / FILE_NAME).is_file():
        return read_events(folder, OnlineRetail(folder))
    if find_table(folder, "interactions"):
        return read_events(folder, TabularClicks(folder, columns))
    atomic = find_atomic(folder)
    if atomic is not None:
        return read_atomic(atomic)
    texts = [path for path in sorted(folder.iterdir()) if is_text(path)]
    if len(texts) == 1:
        return read_sequences(texts[0])
    problem = f"holds {len(texts)} files of sequences" if texts else "holds no data set"
    named = ", ".join(path.name for path in texts[:8])
    raise SourceError(folder, problem=problem, remedy=f"name one of {named}" if texts else "give another folder")


def _session_file(folder: Path, stem: str) -> Path | None:
    files = (folder / f"{stem}{suffix}" for suffix in (".txt.gz", ".txt"))
    return next((file for file in files if file.is_file()), None)


def _with_catalog(folder: Path, sequences: Sequences) -> Sequences:
    """Return *sequences* with the catalog that lies in *folder*, if one does."""
    table = find_table(folder, "items")
    return sequences if table is None else replace(sequences, items=read_catalog(read_table(table)))


def _with_attributes(path: Path, sequences: Sequences) -> Sequences:
    beside = find_attributes(path)
    if beside is None:
        return sequences
    categories = read_attributes(beside)
    return replace(sequences, items=attribute_items(categories), categories=categories)
