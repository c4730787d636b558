"""What stop signals ask a launcher for."""

from __future__ import annotations

import signal

import pytest

from posttrain.pipeline.watch.stopping import Request, StopRequests, Wanted, wanted

INT, TERM, HUP, USR1 = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1


@pytest.mark.parametrize(
    ("came", "asked"),
    [
        ([], Wanted.NOTHING),
        ([(HUP, 0.0)], Wanted.SAVE),
        ([(INT, 0.0), (INT, 0.4)], Wanted.SAVE),  # a wrapper hands on what the terminal sent to all
        ([(INT, 0.0), (INT, 0.4), (INT, 1.1)], Wanted.KILL),
        ([(HUP, 0.0), (HUP, 60.0)], Wanted.SAVE),  # the shell, then the kernel
        ([(USR1, 0.0), (USR1, 60.0)], Wanted.SAVE),
        ([(USR1, 0.0), (TERM, 60.0)], Wanted.KILL),
    ],
)
def test_only_who_insists_kills(came: list[tuple[signal.Signals, float]], asked: Wanted) -> None:
    assert wanted([Request(*one) for one in came]) is asked


def test_a_signal_is_noted_where_there_is_something_to_save_and_ends_the_command_elsewhere() -> None:
    stops = StopRequests()
    before = signal.getsignal(TERM)
    with stops.heeded():
        with stops.noted():
            signal.raise_signal(TERM)
        assert stops.wanted is Wanted.SAVE
        with pytest.raises(KeyboardInterrupt, match="SIGHUP"):
            signal.raise_signal(HUP)
    assert signal.getsignal(TERM) is before


def test_what_the_parent_ignores_stays_ignored() -> None:
    stops = StopRequests()
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        with stops.heeded(), stops.noted():
            signal.raise_signal(HUP)
    finally:
        signal.signal(HUP, before)
    assert stops.came == []
