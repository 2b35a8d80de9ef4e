from __future__ import annotations

import signal

import pytest

from trainer.interrupt import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_interrupts_at_once(number: signal.Signals):
    with Interrupts().installed(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)


def test_signal_within_a_held_block_waits_for_its_end():
    interrupts, steps = Interrupts(), list[str]()

    def work() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            steps.append("finished")

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        work()

    assert steps == ["finished"]


def test_signal_within_a_held_block_that_fails_is_heeded_too():
    interrupts = Interrupts()

    def fail() -> None:
        with interrupts.held():
            signal.raise_signal(signal.SIGTERM)
            raise OSError

    with interrupts.installed(), pytest.raises(KeyboardInterrupt):
        fail()


def test_handlers_of_before_are_put_back():
    before = signal.getsignal(signal.SIGTERM)

    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) != before

    assert signal.getsignal(signal.SIGTERM) == before
