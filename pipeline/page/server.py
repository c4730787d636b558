"""A read-only server of a run's page on this machine alone.

Whoever has an account on a login node can reach its ports, so every path begins with a secret that only the printed
address has.
"""

from __future__ import annotations

import hmac
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from posttrain.pipeline.page import render
from posttrain.pipeline.page.view import StageView, Watched
from posttrain.stage.errors import PosttrainError, UsageError

HOST = "127.0.0.1"
PATIENCE_SECONDS = 30.0
"""How long a connection may stand still."""
POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class PageServer(ThreadingHTTPServer):
    """Serves the page of one run below ``http://127.0.0.1:<port>/<secret>/``."""

    daemon_threads = True

    def __init__(self, watched: Watched, port: int, secret: str) -> None:
        """Bind the port, 0 for any that is free; raise UsageError when it is taken."""
        self.watched, self.secret = watched, secret
        self.drawing = threading.Lock()  # matplotlib's settings are the process's
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UsageError(f"--port {port}: {error.strerror or error}; give another, or 0 for any free one") from None

    @property
    def address(self) -> str:
        """What to open."""
        return f"http://{HOST}:{self.server_port}/{self.secret}/"


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    timeout = PATIENCE_SECONDS
    server_version, sys_version = "posttrain", ""

    def do_GET(self) -> None:
        """Answer with the page, its script, or one of the parts that change."""
        asked = urlsplit(self.path)
        _, secret, name = [*asked.path.split("/", 2), "", ""][:3]
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            self._answer(HTTPStatus.NOT_FOUND, "open the address that `posttrain watch` printed\n", "text/plain")
            return
        try:
            status, text, kind = self._part(name, parse_qs(asked.query).get("stage", [""])[0])
        except PosttrainError as error:
            status, text, kind = HTTPStatus.CONFLICT, f"{error}\n", "text/plain"
        self._answer(status, text, kind)

    def _part(self, name: str, chosen: str) -> tuple[HTTPStatus, str, str]:
        if name == "watch.js":
            return HTTPStatus.OK, (Path(__file__).parent / name).read_text(encoding="utf-8"), "text/javascript"
        if name not in ("", "state", "stage"):
            return HTTPStatus.NOT_FOUND, "no such page\n", "text/plain"
        with self.server.drawing:
            run = self.server.watched.look()
            known = {row.status.stage for row in run.rows}
            shown = chosen if chosen in known else self.server.watched.most_telling(run)
            if name == "stage":
                view = self.server.watched.stage(shown) if shown else StageView("", [], [], "", "")
                return HTTPStatus.OK, render.stage(view), "text/html"
            text = render.state(run, shown) if name == "state" else render.page(run, chosen if chosen in known else "")
        return HTTPStatus.OK, text, "text/html"

    def _answer(self, status: HTTPStatus, text: str, kind: str) -> None:
        body = text.encode("utf-8", errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: a page asks every few seconds."""
