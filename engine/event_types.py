"""Event types that the engine knows by name; every other type is a click like any other."""

from __future__ import annotations

NEGATIVE_EVENT_TYPES = frozenset({"dislike", "hide"})
"""Event types that say what a user does not want; such clicks never enter routing."""
