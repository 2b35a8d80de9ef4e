from __future__ import annotations

import io

from rich.console import Console

from trainer.progress import Display


def display(*, terminal: bool, times_s: list[float] | None = None) -> tuple[Display, io.StringIO]:
    written = io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=100)
    return Display(console, clock=iter(times_s).__next__ if times_s else lambda: 0.0), written


def test_file_gets_a_plain_line_now_and_then():
    shown, written = display(terminal=False, times_s=[0.0, 1.0, 6.0, 6.0, 7.0])

    with shown.phase("Reading") as advance:
        for done in (10, 2_000, 3_000):
            advance(done, 4_000, "clicks")

    assert written.getvalue() == "Reading ...\nReading: 2,000 of 4,000 clicks\n"


def test_terminal_gets_a_bar():
    shown, written = display(terminal=True)

    with shown.phase("Training") as advance:
        advance(5, 10, "steps, loss 2.000")

    assert "5/10" in written.getvalue()
    assert "loss 2.000" in written.getvalue()


def test_line_is_written_as_it_is():
    shown, written = display(terminal=False)

    shown.say("Recall@50 [0.1] " + "x" * 200)

    assert written.getvalue() == "Recall@50 [0.1] " + "x" * 200 + "\n"
