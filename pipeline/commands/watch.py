"""`posttrain watch`: a page of a run that renews itself, served on this machine alone."""

from __future__ import annotations

import secrets
import socket
import sys
from pathlib import Path

from posttrain.pipeline.page.server import PageServer
from posttrain.pipeline.page.view import Watched
from posttrain.pipeline.runs.rundir import find_run
from posttrain.stage.errors import EXIT_DONE


def serve_run(root: Path, run_name: str, port: int) -> int:
    """Serve the page of a run, while it goes on or afterwards, until Ctrl-C. Nothing of the run is touched."""
    with PageServer(Watched(find_run(root, run_name)), port, secrets.token_urlsafe(12)) as server:
        print(server.address, flush=True)
        print(
            f"read-only, for this machine; from another: ssh -L {server.server_port}:127.0.0.1:{server.server_port} "
            f"{socket.gethostname()}, then the same address. Ctrl-C ends the page, not the run.",
            file=sys.stderr,
        )
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(file=sys.stderr)
    return EXIT_DONE
