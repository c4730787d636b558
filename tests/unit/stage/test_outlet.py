"""Printing to a reader that went away, to a full disk, and to one that reads late."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

import pytest

from posttrain.stage.outlet import Unfailing, unhindered


def test_a_reader_that_went_away_makes_no_write_fail() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        os.close(reader)
        outlet = Unfailing(stream)
        for _ in range(3):
            print("a line", file=outlet)  # type: ignore[arg-type]
    assert outlet.failed is not None
    assert outlet.failed.errno == errno.EPIPE


def test_a_full_disk_is_tried_again() -> None:
    with Path("/dev/full").open("w") as full:
        outlet = Unfailing(full)
        outlet.write("lost")
        descriptor = os.dup(full.fileno())
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.dup2(writer, full.fileno())
        outlet.write("kept")
        assert os.read(reader, 100) == b"kept"
        os.dup2(descriptor, full.fileno())
        for one in (descriptor, reader, writer):
            os.close(one)
    assert outlet.failed is not None
    assert outlet.failed.errno == errno.ENOSPC


def test_all_that_was_printed_has_arrived_at_the_end_in_its_order(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout
    with unhindered():
        for number in range(1000):
            print(number)
        print("an error", file=sys.stderr)
    assert sys.stdout is before
    captured = capsys.readouterr()
    assert captured.out == "".join(f"{number}\n" for number in range(1000))
    assert captured.err == "an error\n"


def test_the_first_failure_of_standard_output_is_told_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with unhindered("the run goes on"):
            print("one")
            print("two")
        monkeypatch.undo()
    assert capsys.readouterr().err == "standard output: No space left on device; the run goes on\n"
