"""A local server that says what a test has it say, over real connections."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler
from typing import Any

from listening import Listening
from structured_data import json_tokenizer

from posttrain.sample.backends.server import ServerSampler

GOOD: dict[str, Any] = {"text": "ab", "finish_reason": "stop", "token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}}
Answer = tuple[int, str]


def whole(**changes: Any) -> Answer:
    return 200, json.dumps({"choices": [GOOD | changes]})


class Scripted(Listening):
    """A server that gives its answers one after the other, the last one again and again; 0 breaks the connection."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.version: str | None = None
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                outer.headers.append(dict(self.headers.items()))
                status, body = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if status:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(body.encode())

            def do_GET(self) -> None:
                self.send_response(200 if outer.version else 404)
                self.end_headers()
                self.wfile.write(json.dumps({"version": outer.version}).encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(Handler)

    def sampler(self, **knobs: Any) -> ServerSampler:
        return ServerSampler(self.url, "m", json_tokenizer(), backoff_seconds=0.001, **knobs)
