"""The auditor: recomputes every window from the log by itself and names each difference to what an engine kept.

It shares no code with the engine on purpose: its own client (kafka-python), its own JSON reading, its own rules, its
own partitioner, so that a mistake in the engine is not repeated here. `docs/audit.md` says what it proves.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engine.audit.book import Erasures, Letter, compare
from engine.audit.given import Given, choose_given
from engine.audit.lists import epoch_of
from engine.audit.messages import Entry, Rules, partition_of, read_click
from engine.audit.records import Topic, read_dump, read_erasures, read_letters
from engine.audit.report import AuditReport, Difference, Namer
from engine.settings import Settings

__all__ = [
    "AuditReport",
    "Difference",
    "Entry",
    "Erasures",
    "Given",
    "Letter",
    "Namer",
    "Rules",
    "audit",
    "compare",
    "partition_of",
    "read_click",
]


def audit(
    settings: Settings,
    *,
    windows: Iterable[Mapping[str, Any]] | Path | None = None,
    base: Iterable[Mapping[str, Any]] | Path | None = None,
    max_clicks: int | None = None,
    show_ids: bool = False,
    now_ms: int | None = None,
) -> AuditReport:
    """Compare *windows*, the dead letters and the recall lists with what the log says.

    Args:
        settings: where the log is, and the rules that the engine was run with.
        windows: lines of `mindstream windows dump --jsonl`, as values or in a file; None runs that command.
        base: lines of an earlier dump, taken as given: the audit begins behind them. Without it, checkpoints are dumped
            and taken as given of the partitions whose log no longer begins at offset 0.
        max_clicks: size of a window; None takes the setting.
        show_ids: name users in clear instead of by their hash.
        now_ms: wall time, to tell letters that have expired; None asks the clock.

    Raises:
        LogError: the log can't be read, or begins behind offset 0 and behind what is given.
        SourceError: a dump can't be read, or *base* does not fit to it.
    """
    given = choose_given(
        Topic(settings, "clicks").starts,
        None if base is None else read_dump(base),
        None if settings.checkpoint_url is None else lambda: read_dump(None, "--checkpoints"),
        source=f"{base}" if isinstance(base, Path) else "an earlier dump",
    )
    ends_before_dump = Topic(settings, "clicks").ends
    erased_before_dump = list(Topic(settings, "erasures").entries())
    claims = list(read_dump(windows))
    epoch = next((epoch_of(claim["log"]) for claim in claims if "log" in claim), None)
    lists = Topic(settings, "recall-lists")  # after the dump, so that every list it speaks of is there,
    until = read_erasures(Topic(settings, "erasures").entries(), epoch)
    clicks, letters = Topic(settings, "clicks"), Topic(settings, "clicks.dead-letters")  # and every click of a list
    given.check(claims, starts=clicks.starts, topic=settings.topic("clicks"))
    rules = Rules(
        partitions=len(clicks.ends),
        max_clicks=max_clicks or settings.window_max_clicks,
        future_tolerance_ms=settings.future_tolerance_ms,
        max_message_bytes=settings.max_message_bytes,
    )
    return compare(
        clicks.unbroken_entries(behind=given.offsets),
        claims,
        read_letters(letters.entries(), topic=settings.topic("clicks")),
        rules,
        given=given,
        lists=lists.entries(),
        erasures=Erasures(until, _unsettled(read_erasures(erased_before_dump, epoch), until)),
        namer=Namer(settings.log_salt.get_secret_value().encode(), show_ids),
        ends=clicks.ends,
        through={partition: end - 1 for partition, end in ends_before_dump.items()},
        now_ms=now_ms if now_ms is not None else int(time.time() * 1000),
    )


def _unsettled(before: Mapping[str, object], after: Mapping[str, object]) -> frozenset[str]:
    """Return the users erased between two readings: what was dumped meanwhile shows either state."""
    return frozenset(user_id for user_id, until in after.items() if before.get(user_id) != until)
