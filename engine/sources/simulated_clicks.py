"""The simulated shop's people and their clicks: who has which interests when, and what is clicked because of them.

Columns of numbers throughout, drawn from one generator in one order; `engine/simulate.py` turns them into events. Times
are shares of the simulated time until the very end, so nothing here knows a date.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engine.sources.simulated_catalog import Catalog, Floats, Ints, Themes

DAY_MS = 86_400_000
MOST_INTERESTS = 6
INTEREST_COUNT_SHARES = (0.15, 0.25, 0.25, 0.18, 0.11, 0.06)
"""Shares of users with one, two, ... six interests."""
COUNTRIES = ("DE", "DK", "ES", "FR", "GB", "IT", "NL", "PL")
AGE_BANDS = ("18-24", "25-34", "35-49", "50-64", "65+")
EVENT_TYPES = ("click", "cart", "purchase")
NOISE, BOT = -1, -2
"""What stands for the interest of a click that has none."""
BOT_SHARE = 0.03
NOISE_SHARE = 0.06
REPEAT_SHARE = 0.08
SWITCH_SHARE = 0.12
"""Chance that a click leaves the interest its session is about."""
SESSION_CLICKS = 5.0
HOURLY = np.array([2, 1, 1, 1, 1, 2, 4, 6, 7, 7, 7, 8, 9, 8, 7, 7, 8, 9, 11, 13, 14, 12, 8, 4], dtype=np.float64)
"""How busy each hour of the day is."""


@dataclass(frozen=True, slots=True)
class People:
    """Users by row, U of them; the last ones are bots. Times are shares of the simulated time."""

    country: Ints
    age: Ints
    activity: Floats
    joins: Floats
    weight: Floats  # (U, 6); 0 where the user has fewer interests
    begins: Floats  # (U, 6)
    ends: Floats  # (U, 6)
    themes: Ints  # (U, 6, 2)
    drifts: Floats  # (U, 6, 2)


@dataclass(frozen=True, slots=True)
class Clicks:
    """Clicks by index, in time order."""

    at_ms: Ints
    user: Ints
    item: Ints
    interest: Ints
    kind: Ints


def make_people(generator: np.random.Generator, themes: Themes, *, users: int) -> People:
    """Return *users* people, each with the interests that profile and chance gave them."""
    country = generator.integers(len(COUNTRIES), size=users)
    age = generator.integers(len(AGE_BANDS), size=users)
    total = len(themes.items)
    # Profiles matter: each country and each age band has a leaning of its own towards every theme.
    leanings = (
        generator.normal(size=(len(COUNTRIES), total))[country] + generator.normal(size=(len(AGE_BANDS), total))[age]
    )
    liking = leanings + generator.gumbel(size=(users, total))
    starts = np.argsort(-liking, axis=1, kind="stable")[:, :MOST_INTERESTS]
    drift_to = themes.nearest[starts, generator.integers(themes.nearest.shape[1], size=starts.shape)]
    drifts = generator.random(starts.shape) < 0.4
    counts = 1 + generator.choice(MOST_INTERESTS, size=users, p=INTEREST_COUNT_SHARES)
    slots = np.arange(MOST_INTERESTS)
    weight = np.where(slots < counts[:, None], generator.gamma(2.0, size=starts.shape) + 0.3, 0.0)
    begins = np.where(generator.random(starts.shape) < 0.45, generator.uniform(0.1, 0.85, starts.shape), 0.0)
    ends = np.where(generator.random(starts.shape) < 0.3, begins + generator.uniform(0.15, 0.6, starts.shape), 1.0)
    begins[:, 0], ends[:, 0] = 0.0, 1.0  # the first interest lasts, so that there always is one
    drift_start = generator.uniform(0.1, 0.6, starts.shape)
    return People(
        country=country,
        age=age,
        activity=generator.lognormal(0.0, 0.9, size=users),
        joins=np.where(generator.random(users) < 0.6, 0.0, generator.uniform(0.0, 0.9, users)),
        weight=weight / weight.sum(axis=1, keepdims=True),
        begins=begins,
        ends=np.minimum(ends, 1.0),
        themes=np.stack([starts, np.where(drifts, drift_to, starts)], axis=-1),
        drifts=np.stack([drift_start, drift_start + generator.uniform(0.1, 0.3, starts.shape)], axis=-1),
    )


def draw_clicks(
    generator: np.random.Generator,
    catalog: Catalog,
    themes: Themes,
    people: People,
    *,
    clicks: int,
    days: int,
    bots: int,
) -> Clicks:
    """Draw all clicks, sessions first; `at_ms` is still counted from the start of the simulated time."""
    by_bots = int(clicks * BOT_SHARE) if bots else 0
    users = len(people.country) - bots
    by_people = clicks - by_bots
    session, place = _draw_session_lengths(generator, clicks=by_people)
    sessions = int(session[-1]) + 1
    owner = _draw_owners(generator, people.activity[:users], sessions=sessions)
    starts = _draw_session_starts(generator, people.joins[owner], days=days)
    about = _pick_interest(generator, people, owner, starts)
    user, at = owner[session], starts[session]
    switches = generator.random(by_people) < SWITCH_SHARE
    interest = np.where(switches, _pick_interest(generator, people, user, at), about[session])
    item = _draw_items(generator, catalog, themes, people, user=user, interest=interest, at=at)
    noise = generator.random(by_people) < NOISE_SHARE
    item = np.where(noise, _draw_present(generator, catalog, at), item)
    interest = np.where(noise, NOISE, interest)
    # A repeat is one of the three clicks before it in its session, with that click's interest.
    back = np.minimum(generator.integers(1, 4, size=by_people), place)
    again = np.where(generator.random(by_people) < REPEAT_SHARE, np.arange(by_people) - back, np.arange(by_people))
    pauses_ms = 1_000.0 + 1_000.0 * generator.lognormal(3.0, 1.0, size=by_people)
    within_ms = _running_total(np.where(place == 0, 0.0, pauses_ms), session)
    at_ms = np.floor(at * days * DAY_MS + within_ms).astype(np.int64)
    kind = generator.choice(len(EVENT_TYPES), size=by_people, p=(0.9, 0.07, 0.03))
    people_clicks = Clicks(at_ms, user, item[again], interest[again], kind)
    return _joined(people_clicks, _draw_bot_clicks(generator, catalog, users, clicks=by_bots, days=days, bots=bots))


def _draw_session_lengths(generator: np.random.Generator, *, clicks: int) -> tuple[Ints, Ints]:
    """Return each click's session and its place in it; the last session is cut so that the count is exact."""
    lengths = np.minimum(generator.geometric(1.0 / SESSION_CLICKS, size=clicks), 40)
    session = np.repeat(np.arange(clicks), lengths)[:clicks]
    first = np.searchsorted(session, session, side="left")
    return session, np.arange(clicks) - first


def _draw_owners(generator: np.random.Generator, activity: Floats, *, sessions: int) -> Ints:
    """Return whose each session is: by activity, and everybody has at least one where there are enough."""
    owners = generator.choice(len(activity), size=sessions, p=activity / activity.sum())
    each = generator.permutation(len(activity))[:sessions]
    owners[: len(each)] = each
    return generator.permutation(owners)


def _draw_session_starts(generator: np.random.Generator, joins: Floats, *, days: int) -> Floats:
    """Return when each session starts, as a share of the simulated time: after joining, at a busy hour mostly."""
    day = np.floor((joins + generator.random(len(joins)) * (1.0 - joins)) * days)
    hour = generator.choice(24, size=len(joins), p=HOURLY / HOURLY.sum()) + generator.random(len(joins))
    return np.minimum(day + hour / 24.0, days - 1e-9) / days


def _pick_interest(generator: np.random.Generator, people: People, user: Ints, at: Floats) -> Ints:
    """Return the slot of one interest that each user has at that time, by weight; at least the first is active."""
    active = (people.begins[user] <= at[:, None]) & (at[:, None] < people.ends[user])
    weight = np.where(active, people.weight[user], 0.0)
    edges = np.cumsum(weight, axis=1) / weight.sum(axis=1, keepdims=True)
    slots: Ints = (generator.random(len(user))[:, None] >= edges[:, :-1]).sum(axis=1)
    return slots


def _draw_items(
    generator: np.random.Generator,
    catalog: Catalog,
    themes: Themes,
    people: People,
    *,
    user: Ints,
    interest: Ints,
    at: Floats,
) -> Ints:
    """Return an item of each click's theme that is in the catalog at that time."""
    start, end = people.drifts[user, interest, 0], people.drifts[user, interest, 1]
    drifted = np.clip((at - start) / (end - start), 0.0, 1.0)
    theme = people.themes[user, interest, (generator.random(len(user)) < drifted).astype(np.int64)]
    edges = np.cumsum(themes.shares, axis=1)
    edges[:, -1] = 1.0
    item = np.full(len(user), -1, dtype=np.int64)
    missing = np.arange(len(user))
    for _ in range(30):
        if not len(missing):
            break
        slot = (generator.random(len(missing))[:, None] >= edges[theme[missing], :-1]).sum(axis=1)
        drawn = themes.items[theme[missing], slot]
        present = (catalog.arrives[drawn] <= at[missing]) & (at[missing] < catalog.leaves[drawn])
        item[missing[present]] = drawn[present]
        missing = missing[~present]
    # A theme with hardly an item left: anything in the catalog will do.
    item[missing] = _draw_present(generator, catalog, at[missing])
    return item


def _draw_present(generator: np.random.Generator, catalog: Catalog, at: Floats, shares: Floats | None = None) -> Ints:
    """Return an item that is in the catalog at each time, by popularity, or by *shares* where given."""
    edges = np.cumsum(catalog.popularity if shares is None else shares)
    item = np.zeros(len(at), dtype=np.int64)
    missing = np.arange(len(at))
    while len(missing):
        drawn = np.minimum(np.searchsorted(edges, generator.random(len(missing)), side="right"), len(edges) - 1)
        present = (catalog.arrives[drawn] <= at[missing]) & (at[missing] < catalog.leaves[drawn])
        item[missing[present]] = drawn[present]
        missing = missing[~present]
    return item


def _draw_bot_clicks(
    generator: np.random.Generator, catalog: Catalog, first_bot: int, *, clicks: int, days: int, bots: int
) -> Clicks:
    """Draw the bots' clicks: each bot runs for an hour or so a few times and takes anything, every item alike."""
    user = first_bot + np.arange(clicks) % max(bots, 1)
    run = generator.uniform(0.05, 0.95, size=(max(bots, 1), 4))[user - first_bot, generator.integers(4, size=clicks)]
    at = run + generator.random(clicks) / 24.0 / days
    alike = np.full(len(catalog.popularity), 1.0 / len(catalog.popularity))
    return Clicks(
        at_ms=np.floor(at * days * DAY_MS).astype(np.int64),
        user=user,
        item=_draw_present(generator, catalog, at, alike),
        interest=np.full(clicks, BOT, dtype=np.int64),
        kind=np.zeros(clicks, dtype=np.int64),
    )


def _running_total(steps: Floats, session: Ints) -> Floats:
    """Return the sum of *steps* within each session up to each click; sessions lie one after another."""
    total = np.cumsum(steps)
    first = np.searchsorted(session, session, side="left")
    within: Floats = total - total[first]
    return within


def _joined(people: Clicks, bots: Clicks) -> Clicks:
    pairs = ((getattr(people, name), getattr(bots, name)) for name in ("at_ms", "user", "item", "interest", "kind"))
    return Clicks(*(np.concatenate(pair) for pair in pairs))


def in_time_order(clicks: Clicks, *, start_ms: int, span_ms: int) -> Clicks:
    """Return *clicks* sorted by time, ties as drawn, held within the simulated time."""
    at_ms = np.minimum(clicks.at_ms, span_ms - 1)
    order = np.argsort(at_ms, kind="stable")
    return Clicks(
        start_ms + at_ms[order], clicks.user[order], clicks.item[order], clicks.interest[order], clicks.kind[order]
    )
