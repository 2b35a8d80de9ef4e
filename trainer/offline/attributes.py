"""Item attributes without names, as in `<name>_item2attributes.json`: `{"item": [attribute, ...]}`.

The model takes one value a field, so attributes are dealt to `FIELDS` fields by how common they are, each attribute
always to the same one: it has one vector, whatever item carries it. Of two attributes of an item in one field the
commoner stays. For coverage and diversity every attribute counts as a category.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import SourceError
from engine.events import ItemEvent

ENDINGS = ("_item2attributes.json.gz", "_item2attributes.json")
FIELDS = 24


def find_attributes(path: Path) -> Path | None:
    """Return the file of attributes beside the sequences at *path*."""
    stem = path.name.split(".")[0]
    return next((beside for ending in ENDINGS if (beside := path.parent / (stem + ending)).is_file()), None)


def read_attributes(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the distinct attributes of each item, the commonest first.

    Raises:
        SourceError: it is no JSON object of lists of whole numbers or texts.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        listed = json.loads(content)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise SourceError(path, problem=f"can't be read: {error}", remedy="give a JSON object") from error
    if not isinstance(listed, dict):
        raise SourceError(path, problem=f"holds a {type(listed).__name__}", remedy="give a JSON object of lists")
    for item, attributes in listed.items():
        if not isinstance(attributes, list) or not all(type(a) in (int, str) for a in attributes):
            problem = f"item {item!r} has {attributes!r:.60}, expected a list of whole numbers or texts"
            raise SourceError(path, problem=problem, remedy="mend that item")
    return _by_commonness({item: [str(a) for a in attributes] for item, attributes in listed.items()})


def attribute_items(attributes: Mapping[str, Sequence[str]]) -> dict[str, ItemEvent]:
    """Return each item with its attributes dealt to fields `attribute_0`, `attribute_1`, ..."""
    field_of = {name: f"attribute_{rank % FIELDS}" for rank, name in enumerate(_ranked(attributes))}
    items = {}
    for item, names in attributes.items():
        features: dict[str, str | float] = {}
        for name in names:
            features.setdefault(field_of[name], name)
        items[item] = ItemEvent(item_id=item, features=features)
    return items


def _by_commonness(attributes: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    place = {name: rank for rank, name in enumerate(_ranked(attributes))}
    return {item: tuple(sorted(set(names), key=place.__getitem__)) for item, names in attributes.items()}


def _ranked(attributes: Mapping[str, Sequence[str]]) -> list[str]:
    counts = Counter(name for names in attributes.values() for name in set(names))
    return sorted(counts, key=lambda name: (-counts[name], name))
