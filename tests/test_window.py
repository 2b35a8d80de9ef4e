from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.window import BehaviorWindow, window_order
from tests.builders import make_click, make_window

CLICKS = st.lists(
    st.builds(
        lambda at, item, event, kind: make_click(clicked_at_ms=at, item_id=item, event_id=event, event_type=kind),
        st.integers(0, 5),
        st.sampled_from(["a", "b", "ab", "é"]),
        st.none() | st.sampled_from(["1", "12", "2"]),
        st.sampled_from(["click", "click", "hide"]),
    ),
    max_size=30,
)


def test_late_click_takes_its_place_by_event_time() -> None:
    #  1 s    2 s    3 s
    #  kept   late   kept
    window = make_window(clicked_at_ms=[1_000, 3_000])

    window = window.append(make_click(clicked_at_ms=2_000), max_clicks=50)

    assert [click.clicked_at_ms for click in window.clicks] == [1_000, 2_000, 3_000]


def test_the_oldest_clicks_leave_and_the_newest_stay() -> None:
    window = make_window(clicked_at_ms=[5, 1, 4, 2, 3], max_clicks=3)

    assert [click.clicked_at_ms for click in window.clicks] == [3, 4, 5]
    assert window.newest_ms == 5


def test_a_click_older_than_a_full_window_changes_nothing() -> None:
    window = make_window(clicked_at_ms=[2, 3], max_clicks=2)

    assert window.append(make_click(clicked_at_ms=1), max_clicks=2) == window


def test_a_click_seen_before_changes_nothing() -> None:
    window = make_window(clicked_at_ms=[1, 2])

    assert window.append(window.clicks[0], max_clicks=50) == window


def test_of_equal_identities_the_later_in_the_log_wins() -> None:
    first, second = make_click(event_id="e", item_id="first"), make_click(event_id="e", item_id="second")

    assert BehaviorWindow.of([first, second], max_clicks=5).item_ids == ["second"]
    assert BehaviorWindow.of([second, first], max_clicks=5).item_ids == ["first"]


def test_clicks_of_one_millisecond_are_ordered_by_the_bytes_of_their_identity() -> None:
    clicks = [make_click(item_id=item) for item in ("é", "z", "a", "ab")]

    assert BehaviorWindow.of(clicks, max_clicks=50).item_ids == ["a", "ab", "z", "é"]


def test_a_hidden_item_stays_in_the_window_however_many_clicks_come_after() -> None:
    hidden = make_click(item_id="hidden", clicked_at_ms=0, event_type="hide")
    clicks = [make_click(item_id=f"i{at}", clicked_at_ms=at) for at in range(1, 9)]

    window = BehaviorWindow.of([hidden, *clicks], max_clicks=3)

    assert window.item_ids == ["hidden", "i6", "i7", "i8"]


def test_negative_clicks_are_bounded_and_take_no_place_of_the_others() -> None:
    clicks = [
        make_click(item_id=f"{kind}{at}", clicked_at_ms=at, event_type=kind)
        for at in range(5)
        for kind in ("dislike", "click")
    ]

    window = BehaviorWindow.of(clicks, max_clicks=2)

    # Of one millisecond and one identity the negative one would come last; these have two identities.
    assert window.item_ids == ["click3", "dislike3", "click4", "dislike4"]


def test_an_item_clicked_and_hidden_in_one_millisecond_is_both() -> None:
    clicked, hidden = make_click(clicked_at_ms=1), make_click(clicked_at_ms=1, event_type="hide")

    assert BehaviorWindow.of([hidden, clicked], max_clicks=5).clicks == (clicked, hidden)


def test_an_empty_window_has_no_newest_click() -> None:
    assert BehaviorWindow().newest_ms is None
    assert len(BehaviorWindow()) == 0


@given(CLICKS, st.randoms(use_true_random=False), st.integers(1, 6))
def test_order_of_arrival_repeats_and_replay_change_nothing(clicks: list, random: object, max_clicks: int) -> None:  # type: ignore[type-arg]
    distinct = list({window_order(click): click for click in clicks}.values())
    again = distinct + distinct[: len(distinct) // 2]
    random.shuffle(again)  # type: ignore[attr-defined]

    whole = BehaviorWindow.of(distinct, max_clicks=max_clicks)
    assert BehaviorWindow.of(again, max_clicks=max_clicks) == whole

    one_by_one = BehaviorWindow()
    for click in again:
        one_by_one = one_by_one.append(click, max_clicks=max_clicks)
    assert one_by_one == whole
