"""A file of prompts that is answered in parts: killed anywhere, the same request goes on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from posttrain.data.messages import Json
from posttrain.sample.asking.rows import Row, answer_rows, prompt_row, read_rows
from posttrain.stage.errors import LeaseHeldError, UsageError

ROWS = [prompt_row(f"question {number}") for number in range(7)]


class Answering:
    """Answers, and notes whom; is killed before it answers some row."""

    def __init__(self, killed_at: int | None = None) -> None:
        self.killed_at, self.asked = killed_at, list[int]()

    def __call__(self, places: Sequence[int]) -> list[Json]:
        if self.killed_at in places:
            raise KeyboardInterrupt
        self.asked += places
        return [{"responses": [f"in a part of {len(places)}: {place}\u2028"]} for place in places]


def answered(out: Path, answers: Answering, request: str = "a", rows: Sequence[Row] = ROWS) -> bytes:
    answer_rows(answers, rows, out, request, chunk=2)
    return out.read_bytes()


def test_a_killed_run_goes_on_and_writes_the_same_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = answered(tmp_path / "whole", Answering())
    for torn in (b"", b'{"prompt": "question 4", "resp', b'{"prompt": "question 4"}\n{"pro'):
        out = tmp_path / f"out{len(torn)}"
        first, second = Answering(killed_at=5), Answering()
        with pytest.raises(KeyboardInterrupt):
            answered(out, first)
        (left,) = tmp_path.glob(f".{out.name}.*.incomplete")
        left.write_bytes(left.read_bytes() + torn)
        assert answered(out, second) == whole
        assert (first.asked, second.asked) == ([0, 1, 2, 3], [4, 5, 6])
        assert "going on behind 4 of 7 prompts" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*"))


def test_another_request_begins_anew_and_clears_up(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        answered(tmp_path / "out", Answering(killed_at=5), "a")
    other = Answering()
    answered(tmp_path / "out", other, "b")
    assert other.asked == list(range(7)) and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_processes_do_not_answer_into_one_file(tmp_path: Path) -> None:
    def at_once(places: Sequence[int]) -> list[Json]:
        with pytest.raises(LeaseHeldError, match="another process is answering these prompts"):
            answered(tmp_path / "out", Answering())
        return [{} for _ in places]

    assert len(answer_rows(at_once, ROWS, tmp_path / "out", "a", chunk=7)) == 7


@pytest.mark.parametrize("line", [r'{"prompt": "\ud800"}', '{"prompt": "a", "score": NaN}'])
def test_what_could_not_be_written_again_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "in").write_text(json.dumps({"prompt": "a"}) + "\n" + line)
    with pytest.raises(UsageError, match=r"in:2: not JSON"):
        read_rows(tmp_path / "in")
