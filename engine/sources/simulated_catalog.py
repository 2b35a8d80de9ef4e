"""The simulated shop's goods and themes: what there is to click, before anybody clicks.

Everything is drawn from one seeded generator, in one order, so that a seed names one catalog. An item has a category, a
brand, a shop, a price band and a popularity with a long tail. A *theme* is a taste that many users share: two
neighboring categories, some brands, a price band, and a leaning towards single items that only clicks can reveal.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.events import ItemEvent

DEPARTMENTS: dict[str, tuple[str, ...]] = {
    "living": ("cushion", "throw", "rug", "candle", "vase", "lamp"),
    "kitchen": ("saucepan", "mug", "teapot", "knife", "apron", "bowl"),
    "bedroom": ("duvet cover", "pillow", "blanket", "nightlight", "alarm clock", "robe"),
    "garden": ("planter", "watering can", "trowel", "parasol", "hammock", "bird feeder"),
    "children": ("puzzle", "doll", "train set", "building blocks", "picture book", "kite"),
    "stationery": ("notebook", "fountain pen", "diary", "greeting card", "pencil case", "sketchbook"),
    "sport": ("yoga mat", "water bottle", "dumbbell", "running belt", "tent", "bicycle light"),
    "fashion": ("scarf", "tote bag", "belt", "beanie", "sunglasses", "umbrella"),
    "beauty": ("soap", "bath oil", "hand cream", "hairbrush", "mirror", "perfume"),
    "tech": ("headphones", "phone case", "charger", "speaker", "keyboard", "desk lamp"),
}
MATERIALS = (
    "Linen",
    "Cotton",
    "Oak",
    "Steel",
    "Ceramic",
    "Glass",
    "Wool",
    "Bamboo",
    "Cork",
    "Copper",
    "Velvet",
    "Slate",
)
COLORS = ("sage", "ivory", "navy", "rust", "charcoal", "blush", "ochre", "teal", "plum", "sand", "moss", "white")
SYLLABLES = (
    "Al",
    "Bra",
    "Cor",
    "Del",
    "Er",
    "Fen",
    "Gal",
    "Hol",
    "Ine",
    "Jun",
    "Kel",
    "Lum",
    "Mar",
    "Nor",
    "Ost",
    "Pel",
)
ENDINGS = ("by", "den", "ford", "holm", "ley", "mere", "sen", "wick")
PRICE_BANDS = ("bargain", "low", "middle", "high", "premium")

THEMES = 240
THEME_ITEMS = 48
"""Items that a theme's clicks fall on; its distribution over them is part of the truth."""
TASTE_DIMENSIONS = 8

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Items by row; N items."""

    events: tuple[ItemEvent, ...]
    category: Ints
    """(N,) index of the item's category."""
    band: Ints
    """(N,) index of the item's price band."""
    taste: Floats
    """(N, TASTE_DIMENSIONS) where the item's brand lies among tastes."""
    popularity: Floats
    """(N,) share of the clicks of someone with no taste; sums to 1."""
    arrives: Floats
    """(N,) when it enters the catalog, as a share of the simulated time; negative: it was always there."""
    leaves: Floats
    """(N,) when it is removed, in the same unit; infinite: never."""


@dataclass(frozen=True, slots=True)
class Themes:
    """Tastes by row; T themes."""

    items: Ints
    """(T, THEME_ITEMS) item rows."""
    shares: Floats
    """(T, THEME_ITEMS) probability of each; a row sums to 1."""
    nearest: Ints
    """(T, 4) the themes that this one may drift towards."""


def make_catalog(generator: np.random.Generator, *, items: int) -> Catalog:
    """Return a catalog of *items* items: four in five from the start, one in ten removed before the end."""
    nouns = [(noun, department) for department, names in DEPARTMENTS.items() for noun in names]
    category = generator.choice(len(nouns), size=items, p=_long_tail(len(nouns), exponent=0.4))
    brands = [first + end for first in SYLLABLES for end in ENDINGS]
    homes = generator.integers(len(DEPARTMENTS), size=len(brands))
    brand_tastes = generator.normal(size=(len(brands), TASTE_DIMENSIONS))
    department = category // len(next(iter(DEPARTMENTS.values())))
    brand = _pick_brands(generator, department, homes)
    category_level = generator.integers(1, 4, size=len(nouns))
    band = np.clip(category_level[category] + generator.integers(-1, 2, size=items), 0, len(PRICE_BANDS) - 1)
    shop = brand % 40
    popularity = generator.permutation(_long_tail(items, exponent=0.85))
    # Everything changes before the last tenth of the time, so that whoever replays nine tenths has the whole catalog.
    arrives = np.where(generator.random(items) < 0.8, -1.0, generator.uniform(0.02, 0.9, items))
    leaves = np.where(generator.random(items) < 0.1, generator.uniform(0.15, 0.9, items), np.inf)
    leaves = np.where(leaves > arrives + 0.1, leaves, np.inf)
    materials, colors = generator.integers(len(MATERIALS), size=items), generator.integers(len(COLORS), size=items)
    events = tuple(
        ItemEvent(
            item_id=f"i{row:05d}",
            title=f"{MATERIALS[materials[row]]} {nouns[category[row]][0]}, {COLORS[colors[row]]}",
            category=nouns[category[row]][0],
            brand=brands[brand[row]],
            shop=f"shop-{shop[row]:02d}",
            features={"price_band": PRICE_BANDS[band[row]], "department": nouns[category[row]][1]},
        )
        for row in range(items)
    )
    return Catalog(events, category, band, brand_tastes[brand], popularity, arrives, leaves)


def make_themes(generator: np.random.Generator, catalog: Catalog) -> Themes:
    """Return themes over *catalog*; neighbors share a category or a taste, so interests can drift between them."""
    categories = int(catalog.category.max()) + 1
    first = generator.integers(categories, size=THEMES)
    second = (first + generator.integers(1, 6, size=THEMES)) % categories
    taste = generator.normal(size=(THEMES, TASTE_DIMENSIONS))
    band = generator.integers(len(PRICE_BANDS), size=THEMES)
    leaning = generator.gumbel(size=(THEMES, len(catalog.popularity)))
    appeal = (
        0.7 * np.log(catalog.popularity)[None, :]
        + 5.0 * (catalog.category[None, :] == first[:, None])
        + 4.0 * (catalog.category[None, :] == second[:, None])
        + 0.5 * taste @ catalog.taste.T
        - 0.5 * np.abs(catalog.band[None, :] - band[:, None])
        + 0.8 * leaning
    )
    rows = np.argsort(-appeal, axis=1, kind="stable")[:, :THEME_ITEMS]
    weight = np.exp(0.8 * (np.take_along_axis(appeal, rows, axis=1) - appeal.max(axis=1, keepdims=True)))
    shares = weight / weight.sum(axis=1, keepdims=True)
    return Themes(rows, shares, _nearest(taste, first, second))


def _nearest(taste: Floats, first: Ints, second: Ints) -> Ints:
    length = np.linalg.norm(taste, axis=1, keepdims=True)
    closeness = (taste @ taste.T) / (length * length.T)
    closeness = closeness + (first[:, None] == first[None, :]) + 0.5 * (second[:, None] == first[None, :])
    np.fill_diagonal(closeness, -np.inf)
    return np.argsort(-closeness, axis=1, kind="stable")[:, :4]


def _pick_brands(generator: np.random.Generator, department: Ints, homes: Ints) -> Ints:
    brand = generator.integers(len(homes), size=len(department))
    for number in range(len(DEPARTMENTS)):
        at_home = np.flatnonzero(homes == number)
        members = np.flatnonzero(department == number)
        if len(at_home):
            brand[members] = generator.choice(at_home, size=len(members))
    return brand


def _long_tail(length: int, *, exponent: float) -> Floats:
    """Return shares that fall with the rank, by Zipf's law."""
    weight = np.arange(1, length + 1, dtype=np.float64) ** -exponent
    shares: Floats = weight / weight.sum()
    return shares
