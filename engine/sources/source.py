"""What a source of events is: a catalog and clicks in time order, and perhaps a catalog that changes meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from engine.events import ClickEvent, ItemEvent


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


@runtime_checkable
class ChangingCatalog(Protocol):
    """A source whose catalog changes while the clicks flow."""

    def opening_items(self) -> Iterable[ItemEvent]:
        """Yield the catalog as it stands before the first click."""
        ...

    def item_changes(self) -> Iterable[tuple[int, ItemEvent]]:
        """Yield arrivals and removals with their event times, in time order."""
        ...
