"""A name on the Hub whose revision can move stands for the commit that it is at, in the key as in the work order."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

OLD, NEW = "a" * 40, "b" * 40
SPEC = """
import json, sys
from pathlib import Path
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.runs.resolve import Resolver
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed

config = build(PipelineConfig, json.loads(sys.argv[1]), "")
stages = build_graph(config)
run, frozen = RunDirectory.of(config, stages), sys.argv[2] == "frozen"
resolver = Resolver(config, run, lambda stage: Distributed(), frozen)
specs = [resolver.spec(stage, {}) for stage in stages]
resolver.save()
print(json.dumps([[spec.key, spec.config] for spec in specs]))
"""


class Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does when it is asked for a repository's commit."""

    heads: dict[str, str]

    def do_GET(self) -> None:
        path, _, revision = self.path.partition("/revision/")
        commit = self.heads.get(f"{path}@{revision or 'main'}")
        body = json.dumps({"id": "org/words", "sha": commit} if commit else {"error": "not found"}).encode()
        self.send_response(200 if commit else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a Hub, and its repositories' commits."""
    heads = {"/api/datasets/org/words@main": OLD, "/api/models/org/words@main": OLD, "/api/models/org/words@v1": NEW}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OwnHub", (Hub,), {"heads": heads}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", heads
    server.shutdown()
    server.server_close()
    thread.join()


def orders(tmp_path: Path, address: str, *, offline: bool = False, frozen: bool = False, **knobs: Any) -> list[Any]:
    """Return key and configuration of a curation and a base model, as another process resolves them."""
    source = {"name": "mine", "dataset": "org/words"}
    stages = {
        "rows": {"run": "data.curate", "with": {"record_type": "demonstration", "sources": [source]}},
        "base": {"run": "train.base", "with": {"hub_name": "org/words", **knobs}},
    }
    own = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": str(int(offline)), "HF_HOME": str(tmp_path / "hf")}
    arguments = [json.dumps({"root": str(tmp_path / "outputs"), "stages": stages}), "frozen" if frozen else ""]
    command = [sys.executable, "-c", SPEC, *arguments]
    done = subprocess.run(command, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_commit_is_keyed_ordered_and_remembered(tmp_path: Path, hub: tuple[str, dict[str, str]]) -> None:
    address, heads = hub
    first = orders(tmp_path, address)
    assert first[0][1]["sources"][0]["revision"] == first[1][1]["revision"] == OLD
    assert orders(tmp_path, address, revision=OLD)[1][0] == first[1][0]
    heads["/api/datasets/org/words@main"] = heads["/api/models/org/words@main"] = NEW
    assert orders(tmp_path, address, offline=True) == first
    assert orders(tmp_path, address, frozen=True) == first
    moved = orders(tmp_path, address)
    assert {key for key, _ in moved}.isdisjoint(key for key, _ in first)
    assert orders(tmp_path, address, revision="v1")[1] == moved[1]


def test_without_hub_the_cache_says_which_commit_would_be_loaded(tmp_path: Path) -> None:
    refs = tmp_path / "hf" / "hub" / "models--org--words" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text(OLD)
    nowhere = "http://127.0.0.1:1"
    assert orders(tmp_path, nowhere, offline=True)[1][1]["revision"] == OLD
    assert orders(tmp_path, nowhere, offline=True)[0][1]["sources"][0]["revision"] is None
