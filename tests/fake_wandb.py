"""A W&B server of the size that tests need, over real HTTP: runs with their history, artifacts and who used them.

It answers what the real client and `wandb-core` 0.31 ask for, and keeps all in memory.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

NAME = re.compile(r"(?:query|mutation)\s+(\w+)")


@dataclasses.dataclass
class FakeRun:
    """What the server has of one run."""

    group: str = ""
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    system: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    summary: dict[str, Any] = dataclasses.field(default_factory=dict)
    exit_code: int | None = None

    @property
    def steps(self) -> list[int]:
        return [row["_step"] for row in self.history]


class FakeWandb:
    """``with FakeWandb() as server`` starts it; `url` is its address."""

    def __init__(self) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.artifacts: list[dict[str, Any]] = []
        """The inputs of `createArtifact`, in order."""
        self.uses: list[tuple[str, str]] = []
        """Run and the artifact that it used."""
        self.uploads: dict[str, bytes] = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"fake": self}))
        self._server.handle_error = lambda request, address: None  # type: ignore[method-assign]  # clients hang up
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeWandb:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def made(self) -> list[tuple[str, str, str]]:
        """Run, name and type of each artifact that a run made; W&B's own for tables left out."""
        rows = [(a["runName"], a["artifactCollectionName"], a["artifactTypeName"]) for a in self.artifacts]
        return [row for row in rows if row[0] and row[2] != "run_table"]

    def answer(self, query: str, given: dict[str, Any]) -> dict[str, Any]:
        """Answer one GraphQL request; what nobody needs is answered with null."""
        found = NAME.search(query)
        method = getattr(self, re.sub(r"([A-Z])", r"_\1", found[1]).lower(), None) if found else None
        return method(given) if method else {"project": None, "entity": None, "serverInfo": {"features": []}}

    def _viewer(self, given: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": "team"}}]}
        return {"viewer": {"id": "u", "entity": "team", "username": "u", "email": "", "flags": "{}", "teams": teams}}

    def _run_resume_status(self, given: dict[str, Any]) -> dict[str, Any]:
        run, name = self.runs.get(given["name"]), given["name"]
        bucket = run and {
            "id": name,
            "name": name,
            "displayName": name,
            "summaryMetrics": json.dumps(run.summary),
            "logLineCount": 0,
            "historyLineCount": len(run.history),
            "eventsLineCount": len(run.system),
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
            "config": "{}",
            "tags": [],
            "notes": "",
            "wandbConfig": '{"t": 1}',
        }
        return {"model": {"id": "p", "name": given["project"], "entity": {"id": "e", "name": "team"}, "bucket": bucket}}

    def _upsert_bucket(self, given: dict[str, Any]) -> dict[str, Any]:
        name, new = given["name"], given["name"] not in self.runs
        run = self.runs.setdefault(name, FakeRun())
        run.group = given.get("groupName") or run.group
        run.config |= {key: entry["value"] for key, entry in json.loads(given.get("config") or "{}").items()}
        project = {"id": "p", "name": given.get("project") or "p", "entity": {"id": "e", "name": "team"}}
        bucket = {"id": name, "name": name, "displayName": name, "description": "", "config": "{}", "sweepName": None}
        bucket |= {"project": project, "historyLineCount": len(run.history)}
        return {"upsertBucket": {"bucket": bucket, "inserted": new}}

    def _create_run_files(self, given: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": n, "uploadUrl": f"{self.url}/upload/{given['run']}/{n}"} for n in given["files"]]
        return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}

    def _create_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        self.artifacts.append(given["input"])
        sequence = {"latestArtifact": None}
        artifact = {"id": str(len(self.artifacts)), "state": "PENDING", "artifactSequence": sequence}
        return {"createArtifact": {"artifact": artifact}}

    def _create_artifact_manifest(self, given: dict[str, Any]) -> dict[str, Any]:
        url = f"{self.url}/upload/manifests/{given['artifactID']}"
        manifest = {"id": given["artifactID"], "file": {"id": "f", "uploadUrl": url, "uploadHeaders": []}}
        return {"createArtifactManifest": {"artifactManifest": manifest}}

    def _create_artifact_files(self, given: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for spec in given["input"]["artifactFiles"]:
            node = {"storagePath": spec["name"], "uploadUrl": f"{self.url}/upload/files/{spec['name']}"}
            node |= {"uploadHeaders": [], "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}
            nodes.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _commit_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        return {"commitArtifact": {"artifact": {"id": given["artifactID"], "digest": "d"}}}

    def _use_artifact(self, given: dict[str, Any]) -> dict[str, Any]:
        use = given["input"]
        self.uses.append((use["runName"], self.artifacts[int(use["artifactID"]) - 1]["artifactCollectionName"]))
        return {"useArtifact": {"artifact": {"id": use["artifactID"]}}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Take a part of a run's files; a line's place is given by its offset."""
        run = self.runs.setdefault(name, FakeRun())
        for file, part in (body.get("files") or {}).items():
            rows = [json.loads(line) for line in part["content"]] if file.endswith((".jsonl", ".json")) else []
            if file == "wandb-history.jsonl":
                run.history[part["offset"] :] = rows
            elif file == "wandb-events.jsonl":
                run.system[part["offset"] :] = rows
            elif file == "wandb-summary.json":
                run.summary = rows[-1]
        if body.get("complete"):
            run.exit_code = body.get("exitcode")


class _Handler(BaseHTTPRequestHandler):
    fake: FakeWandb
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def _reply(self, payload: dict[str, Any]) -> None:
        data = json.dumps(payload).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            request = json.loads(body)
            self._reply({"data": self.fake.answer(request["query"], request.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            self.fake.stream(self.path.split("/")[-2], json.loads(body))
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({})

    def do_PUT(self) -> None:
        self.fake.uploads[self.path.removeprefix("/upload/")] = self._body()
        self._reply({})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Keep the test's output clean."""
