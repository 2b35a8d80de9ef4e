"""A little shop for the page's tests: items with titles, users with lists of three interests, and their refreshes."""

from __future__ import annotations

import asyncio
import random
import threading

from engine.events import ItemEvent
from engine.log import Publisher
from engine.recall import FormingClick, InterestSummary, RankedItem, RecallList, WindowClick
from engine.serving.service import wall_ms
from engine.settings import Settings
from tests.serving.live import list_message
from tests.serving.parts import EPOCH

COLORS = ("Red", "Blue", "Green", "White", "Ivory", "Pink", "Black", "Retro")
THINGS = (
    ("lighting", "hanging lantern"),
    ("lighting", "T-light holder"),
    ("kitchen", "enamel tea mug"),
    ("kitchen", "cake stand, three tiers"),
    ("garden", "watering can"),
    ("garden", "seed pot with saucer"),
    ("party", "paper bunting"),
    ("party", "birthday candle set"),
)
ITEMS = [
    ItemEvent(item_id=f"{8500 + 10 * at + tint}{color[0]}", title=f"{color} {thing}", category=category)
    for at, (category, thing) in enumerate(THINGS)
    for tint, color in enumerate(COLORS)
]
USERS = [f"u{number}" for number in range(10_040, 10_090)]


def shop_list(
    user_id: str, *, window_offset: int, now_ms: int, latency_ms: int = 80, last: str | None = None
) -> RecallList:
    """Return a list of the user's own; *last* is the item of the newest click."""
    rng = random.Random(user_id)
    clicked = rng.sample([item.item_id for item in ITEMS], 12)
    if last is not None:
        clicked = [*(item_id for item_id in clicked if item_id != last), last]
    window = [
        WindowClick(item_id, now_ms - latency_ms - 90_000 * (len(clicked) - 1 - at) ** 2, "click")
        for at, item_id in enumerate(clicked)
    ]
    others = [item.item_id for item in ITEMS if item.item_id not in clicked]
    rng.shuffle(others)
    shares = (0.52, 0.31, 0.17)
    ranked = [
        RankedItem(item_id, round(0.94 - 0.011 * at - rng.random() / 100, 4), rng.choices((0, 1, 2), shares)[0])
        for at, item_id in enumerate(others)
    ]
    interests = [
        InterestSummary(
            each, shares[each], [FormingClick(c, round(0.95 - 0.13 * n, 2)) for n, c in enumerate(clicked[each::3])]
        )
        for each in range(3)
    ]
    return RecallList(
        user_id=user_id,
        items=ranked,
        interests=interests,
        window=window,
        as_of_ms=window[-1].clicked_at_ms,
        accepted_at_ms=now_ms - latency_ms,
        computed_at_ms=now_ms - latency_ms // 3,
        window_offset=window_offset,
        activation=0,
        epoch=EPOCH,
        model_version="0001",
    )


class Refreshes:
    """Publishes the lists of random users in the background, about *per_s* a second, until it is stopped."""

    def __init__(self, settings: Settings, *, per_s: float) -> None:
        self._settings, self._per_s = settings, per_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Refreshes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        rng = random.Random(7)
        publisher = Publisher(self._settings)
        await publisher.start()
        offset = 0
        while not self._stopping.is_set():
            offset += 1
            latency_ms = int(rng.lognormvariate(4.2, 0.45))
            made = shop_list(rng.choice(USERS[1:]), window_offset=offset, now_ms=wall_ms(), latency_ms=latency_ms)
            await publisher.send(list_message(self._settings, made))
            await asyncio.sleep(rng.expovariate(self._per_s))
        await publisher.stop()
