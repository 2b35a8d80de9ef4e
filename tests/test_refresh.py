"""What a refreshed list is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.errors import LogError
from engine.events import ItemEvent
from engine.metrics import (
    UNKNOWN_ITEMS,
)
from tests.builders import NOON_MS, make_click
from tests.refreshing import (
    NOW_MS,
    SETTINGS,
    clicks,
    item_record,
    running,
    with_profile,
)
from tests.served import ITEM_IDS, make_snapshot


async def test_click_becomes_a_list_that_carries_its_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=3)) as engine:
        engine.click(*clicks("u1", "i001", "i002", "i003"))
        await engine.settled()

        made = engine.list_of("u1")
    assert [click.item_id for click in made.window] == ["i001", "i002", "i003"]
    assert (made.as_of_ms, made.accepted_at_ms, made.computed_at_ms) == (NOON_MS + 2, NOON_MS, NOW_MS)
    assert (made.window_offset, made.activation, made.epoch, made.model_version) == (2, 3, "epoch-1", "0003")
    assert made.source == "personal"


async def test_list_is_full_and_leaves_out_the_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", *ITEM_IDS[:20]))
        await engine.settled()

        listed = [item.item_id for item in engine.list_of("u1").items]
    assert len(set(listed)) == 50
    assert not set(listed) & set(ITEM_IDS[:20])


async def test_every_item_names_an_interest_and_every_interest_the_clicks_that_formed_it(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", *ITEM_IDS[:20]))
        await engine.settled()

        made = engine.list_of("u1")
    numbers = {interest.interest for interest in made.interests}
    assert {item.interest for item in made.items} == numbers
    assert sum(interest.weight for interest in made.interests) == pytest.approx(1.0, abs=1e-5)
    assert all(click.item_id in ITEM_IDS[:20] for interest in made.interests for click in interest.clicks)


async def test_short_window_has_one_interest_and_only_that_one_searches(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()

        made = engine.list_of("u1")
    assert [interest.interest for interest in made.interests] == [0]
    assert {item.interest for item in made.items} == {0}


async def test_list_goes_to_the_partition_of_the_clicks_with_its_order_in_the_headers(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot(activation=9), partitions=3) as engine:
        engine.click(*clicks("u1", "i001"), partition=2)
        await engine.settled()

        (message,) = engine.log.messages
    assert (message.topic, message.key, message.partition) == ("recall-lists", b"u1", 2)
    assert message.headers == {"epoch": b"epoch-1", "window_offset": b"0", "activation": b"9"}


async def test_disliked_and_hidden_items_form_no_interest_and_are_never_listed(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"exclude_seen": False})
    async with running(tmp_path, make_snapshot(), settings=settings) as engine:
        engine.click(*clicks("u1", "i001", "i002"))
        await engine.settled()
        liked = engine.list_of("u1")
        unwanted = [item.item_id for item in liked.items[:2]]
        engine.click(
            make_click(user_id="u1", item_id=unwanted[0], clicked_at_ms=NOON_MS + 10, event_type="dislike"),
            make_click(user_id="u1", item_id=unwanted[1], clicked_at_ms=NOON_MS + 11, event_type="hide"),
        )
        await engine.until(lambda: len(engine.log.messages) == 2)

        after = engine.list_of("u1")
    assert after.interests == liked.interests
    assert not {item.item_id for item in after.items} & set(unwanted)
    assert [click.event_type for click in after.window] == ["click", "click", "dislike", "hide"]


async def test_unavailable_items_leave_the_next_list_and_it_stays_full(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        gone = [item.item_id for item in engine.list_of("u1").items[:30]]
        await engine.catalog.apply([item_record(ItemEvent(item_id=item_id, available=False)) for item_id in gone])
        engine.click(*clicks("u1", "i002", first_ms=NOON_MS + 10))
        await engine.until(lambda: len(engine.log.messages) == 2)

        listed = [item.item_id for item in engine.list_of("u1").items]
    assert len(listed) == 50
    assert not set(listed) & set(gone)


async def test_list_stays_full_when_nearly_everything_near_is_unavailable(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"list_size": 20, "window_max_clicks": 1})
    async with running(tmp_path, make_snapshot(), settings=settings) as engine:
        engine.click(*clicks("u1", "i001"))
        await engine.settled()
        near = [item.item_id for item in engine.list_of("u1").items]
        # The nearest go, the rest stays: the search for a few more items than asked finds too few of them.
        everything = make_snapshot().item_ids
        await engine.catalog.apply([item_record(ItemEvent(item_id=item_id, removed=True)) for item_id in near])
        engine.click(*clicks("u1", "i001", first_ms=NOON_MS + 10))
        await engine.until(lambda: len(engine.log.messages) == 2)

        listed = {item.item_id for item in engine.list_of("u1").items}
    assert len(listed) == 20
    assert listed <= set(everything) - set(near)


async def test_click_on_a_removed_item_forms_no_interest_and_stays_in_the_window(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i002", removed=True))])
        engine.click(
            *clicks("u1", "i001", "i002", "i003", "i004", "i005"), *clicks("u2", "i001", "i003", "i004", "i005")
        )
        await engine.settled()

        made, without = engine.list_of("u1"), engine.list_of("u2")
    assert [click.item_id for click in made.window] == ["i001", "i002", "i003", "i004", "i005"]
    named = {click.item_id for interest in made.interests for click in interest.clicks}
    assert named == {"i001", "i003", "i004", "i005"}
    assert made.interests == without.interests
    assert "i002" not in {item.item_id for item in made.items}


async def test_click_on_an_item_that_is_not_available_still_forms_interests(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i002", available=False))])
        engine.click(*clicks("u1", "i001", "i002"))
        await engine.settled()

        made = engine.list_of("u1")
    assert {click.item_id for interest in made.interests for click in interest.clicks} == {"i001", "i002"}


async def test_user_of_nothing_but_removed_items_has_no_list(tmp_path: Path) -> None:
    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i001", removed=True))])
        engine.click(*clicks("u1", "i001"), *clicks("u2", "i002"))
        await engine.settled()

        assert [one.user_id for one in engine.lists()] == ["u2"]


async def test_clicks_on_unknown_and_removed_items_are_counted_in_every_refreshed_window(tmp_path: Path) -> None:
    before = UNKNOWN_ITEMS._value.get()

    def fail() -> None:
        raise LogError("recall-lists", problem="has no leader", remedy="wait")

    async with running(tmp_path, make_snapshot()) as engine:
        await engine.catalog.apply([item_record(ItemEvent(item_id="i003", removed=True))])
        engine.log.on_send.append(fail)  # a micro-batch that is given back counts nothing
        engine.click(*clicks("u1", "i001", "new-1", "new-1", "i003"), *clicks("u2", "i002"))
        await engine.settled()
        assert UNKNOWN_ITEMS._value.get() - before == 3

        engine.click(*clicks("u1", "i004", first_ms=NOON_MS + 10))
        await engine.settled()
        assert UNKNOWN_ITEMS._value.get() - before == 6


async def test_profile_attributes_that_the_model_knows_reach_it(tmp_path: Path) -> None:
    async with running(tmp_path, with_profile(make_snapshot(), "country", "FR", "DE")) as engine:
        for user, country in (("u1", "FR"), ("u2", "DE"), ("u3", "DE")):
            engine.click(make_click(user_id=user, item_id="i001", profile={"country": country, "shoe": user}))
        await engine.settled()

        scores = {user: [item.score for item in engine.list_of(user).items] for user in ("u1", "u2", "u3")}
    assert scores["u1"] != pytest.approx(scores["u2"], abs=1e-4)
    assert scores["u2"] == pytest.approx(scores["u3"], abs=1e-4)


async def test_list_does_not_depend_on_who_else_is_in_the_batch(tmp_path: Path) -> None:
    windows = {f"u{n}": ITEM_IDS[n : n + 3 + n % 15] for n in range(30)}
    snapshot = make_snapshot()
    together, alone = tmp_path / "together", tmp_path / "alone"
    async with running(together, snapshot) as engine:
        engine.click(*(click for user, items in windows.items() for click in clicks(user, *items)))
        await engine.settled()
        in_company = [item for user in windows for item in engine.list_of(user).items]
    async with running(alone, snapshot) as engine:
        for user, items in windows.items():
            engine.click(*clicks(user, *items))
            await engine.settled()
        by_itself = [item for user in windows for item in engine.list_of(user).items]

    assert [(item.item_id, item.interest) for item in in_company] == [(i.item_id, i.interest) for i in by_itself]
    # torch sums a batch of another size in another order, so the last bits may differ.
    assert [item.score for item in in_company] == pytest.approx([item.score for item in by_itself], abs=1e-4)


async def test_every_partition_of_a_backlog_gets_its_share_of_a_batch(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"refresh_batch_size": 6})
    async with running(tmp_path, None, settings=settings, partitions=3) as engine:
        for partition, users in ((0, 20), (1, 20), (2, 1)):
            engine.click(
                *(make_click(user_id=f"p{partition}-{n}", item_id="i001") for n in range(users)), partition=partition
            )
        engine.holder.swap(make_snapshot())
        engine.loop.notify()
        await engine.settled()

    assert [user[:2] for user in sorted(engine.log.batches[0])] == ["p0"] * 2 + ["p1"] * 3 + ["p2"]
