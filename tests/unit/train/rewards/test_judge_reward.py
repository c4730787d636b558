"""A judge's grades as a reward: all at once, out of the cache where they were asked for before, and never made up."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from structured_data import json_tokenizer

from posttrain.data.messages import Conversation
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build
from posttrain.train.config.rollout import RewardTerm
from posttrain.train.rewards.terms import build_rewards
from posttrain.train.rewards.weighted import Answer, Rewards


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """Serve a judge who grades by the words of a response, and has no grade for one of six; the port comes first."""
    questions: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            questions.append(body["messages"][0]["content"])
            words = len(questions[-1].split("[Response]\n")[1].split("\n[End")[0].split())
            reply = {"choices": [{"message": {"content": f"[[{words}]]" if words != 6 else "Hm."}}]}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    questions.append(str(server.server_port))
    yield questions
    server.shutdown()
    thread.join()
    server.server_close()


def answer(text: str, answered: bool = True) -> Answer:
    conversation = Conversation([{"role": "user", "content": "Say something."}])
    return Answer(conversation, [1], [2], text, True, None, None, answered=answered)


def rewards_of(port: str, cache: Path) -> Rewards:
    judge = {"model": "m", "url": f"http://127.0.0.1:{port}", "cache": str(cache), "rubrics": {"default": "Be long."}}
    term = build(RewardTerm, {"kind": "judge", "judge": judge}, "t")
    return build_rewards([term], [], json_tokenizer(), torch.device("cpu"), 64, "train.ppo")


def test_grades_are_rewards_and_are_asked_for_once(
    asked: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    port = asked.pop()
    answers = [answer("one"), answer("a b c d"), answer("one"), answer("1 2 3 4 5 6"), answer("", answered=False)]

    totals, _ = rewards_of(port, tmp_path / "grades.sqlite").score(answers)
    again, _ = rewards_of(port, tmp_path / "grades.sqlite").score(answers)

    assert totals == again == pytest.approx([0, 3 / 9, 0, 0, 0])
    assert len(asked) == 3
    assert all("Be long." in question and "Say something." in question for question in asked)
    assert "1 of 4 replies hold no grade and count as 0" in caplog.text


def test_a_judge_that_rewards_remembers(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"judge.cache is null: a run that resumes must find the same grades"):
        build(RewardTerm, {"kind": "judge", "judge": {"model": "m"}}, "t")
    with pytest.raises(UsageError, match="judge is for kind=judge"):
        build(RewardTerm, {"kind": "judge"}, "t")
