"""The resume file: how far a replay came, of which source, into which log."""

from __future__ import annotations

import hashlib
from pathlib import Path

import msgspec
import structlog

from engine.errors import SourceError
from engine.events import encode_click
from engine.sources.source import EventSource

log = structlog.get_logger()


class Place(msgspec.Struct, frozen=True):
    """What the resume file holds."""

    source: str
    log: str
    next_click: int
    items_sent: bool


def identity_of(source: EventSource) -> str:
    """Return what tells one source from another: its name, its length and its first click."""
    opening = next(iter(source.clicks()), None)
    text = f"{source.name}|{source.click_count}|".encode() + (encode_click(opening) if opening else b"")
    return hashlib.sha256(text).hexdigest()[:32]


def read_place(path: Path | None, *, source: str, log_epoch: str) -> Place | None:
    """Return the place kept at *path*, or None where there is none or the log it led into is gone.

    Raises:
        SourceError: it belongs to another source, or is no resume file.
    """
    if path is None or not path.exists():
        return None
    try:
        place = msgspec.json.decode(path.read_bytes(), type=Place)
    except (msgspec.MsgspecError, OSError) as error:
        raise SourceError(path, problem=f"not a resume file ({error})", remedy="delete it to start over") from error
    if place.source != source:
        raise SourceError(path, problem="it belongs to another source", remedy="delete it, or name another resume file")
    if place.log != log_epoch:
        log.info("replay_starts_over", reason="the clicks topic is not the one of the resume file")
        return None
    return place


def write_place(path: Path, place: Place) -> None:
    """Keep *place* at *path*."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(path.name + ".new")
    written.write_bytes(msgspec.json.encode(place))
    written.replace(path)  # atomic: a reader sees the old place or the new one
