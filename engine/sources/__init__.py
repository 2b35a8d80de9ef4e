"""Data sets read as events: whatever holds clicks becomes an `EventSource`, and one way leads on from there.

`open_source` finds the reader by the path alone. pyarrow is imported in this package only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from engine.errors import SourceError
from engine.events import ClickEvent, ItemEvent
from engine.sources.online_retail import OnlineRetail

__all__ = ["EventSource", "OnlineRetail", "open_source"]


class EventSource(Protocol):
    """A catalog and clicks in time order; asking twice gives the same events twice."""

    @property
    def name(self) -> str:
        """What the source is called in summaries and resume files."""
        ...

    @property
    def simulated(self) -> bool:
        """True where no real person clicked."""
        ...

    @property
    def click_count(self) -> int:
        """How many clicks `clicks` yields."""
        ...

    @property
    def dropped(self) -> Mapping[str, int]:
        """Rows of the data that became no click, by reason."""
        ...

    def items(self) -> Iterable[ItemEvent]:
        """Yield the catalog; the last event of an item is its state."""
        ...

    def clicks(self) -> Iterable[ClickEvent]:
        """Yield the clicks in time order."""
        ...


def open_source(path: Path) -> EventSource:
    """Return the reader for *path*."""
    if path.exists():
        return OnlineRetail(path)
    raise SourceError(path, problem="no such file or folder", remedy="give the path of a data set")
