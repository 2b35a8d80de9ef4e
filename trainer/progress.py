"""What a training run shows: bars at a terminal, a plain line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LINE_EVERY_S = 5.0

Advance = Callable[[int, int, str], None]
"""Called with done, total and a remark."""


class Display:
    """Shows one phase of a run at a time."""

    def __init__(self, console: Console | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console()
        self._clock = clock

    def say(self, line: str) -> None:
        """Write one line."""
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[Advance]:
        """Yield what advances the phase called *name*."""
        if self._console.is_terminal:
            with self._bar(name) as advance:
                yield advance
        else:
            yield self._lines(name)

    @contextmanager
    def _bar(self, name: str) -> Iterator[Advance]:
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[remark]}"),
        )
        with Progress(*columns, console=self._console, transient=False) as progress:
            task = progress.add_task(name, total=None, remark="")

            def advance(done: int, total: int, remark: str) -> None:
                progress.update(task, completed=done, total=total, remark=remark)

            yield advance

    def _lines(self, name: str) -> Advance:
        last_s = self._clock()
        self.say(f"{name} ...")

        def advance(done: int, total: int, remark: str) -> None:
            nonlocal last_s
            if self._clock() - last_s >= LINE_EVERY_S:
                last_s = self._clock()
                self.say(f"{name}: {done:,} of {total:,} {remark}".rstrip())

        return advance
