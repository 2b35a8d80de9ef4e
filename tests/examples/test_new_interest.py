from __future__ import annotations

from examples import new_interest


def test_more_clicks_on_a_new_interest_give_it_a_vector_and_a_place_in_the_list() -> None:
    shares = new_interest.main(["--users", "120"])

    own, listed = shares["own_vector"], shares["in_the_list"]
    assert len(own) == len(listed) == new_interest.MOST_CLICKS + 1
    assert own[0] == 0.0
    assert own[-1] > 0.6 > own[1]
    assert listed[-1] > 0.6 > listed[0]
