"""A local stand-in of the Hugging Face Hub: repositories of models with files, over real connections."""

from __future__ import annotations

import base64
import hashlib
import json
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from listening import Listening

TOKEN = "hf_stand_in"
LARGE = ".safetensors"


class Hub(Listening):
    """What was put into repositories, by name; a request without the token is refused."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.messages: list[str] = []
        self.large: dict[str, bytes] = {}
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        super().__init__(Handler)

    def commit(self, name: str) -> str:
        """Return what names the present state of a repository."""
        files = self.repositories[name]
        return hashlib.sha1(repr(sorted((path, _sha256(data)) for path, data in files.items())).encode()).hexdigest()

    def take(self, name: str, lines: list[dict[str, Any]]) -> None:
        """Apply a commit."""
        files = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                self.messages.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            else:
                assert line["key"] == "deletedFile", line
                del files[value["path"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def answer(self, status: int, body: Any = None, data: bytes = b"", **headers: str) -> None:
        data = json.dumps(body).encode() if body is not None else data
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        path, body = urlsplit(self.path).path, self.body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "no"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            known = name in self.hub.repositories
            self.hub.repositories.setdefault(name, {})
            self.hub.private.setdefault(name, asked["visibility"] == "private")
            return self.answer(409 if known else 200, {"url": f"{self.hub.url}/{name}"})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/large/{entry['oid']}"}}
            return self.answer(200, {"transfer": "basic", "objects": objects})
        name, _, verb = path.removeprefix("/api/models/").partition("/preupload/")
        if verb:
            files = json.loads(body)["files"]
            for file in files:
                file |= {"shouldIgnore": False, "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular"}
            return self.answer(200, {"files": files})
        name = path.removeprefix("/api/models/").partition("/commit/")[0]
        self.hub.take(name, [json.loads(line) for line in body.splitlines()])
        oid = self.hub.commit(name)
        return self.answer(200, {"commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def do_PUT(self) -> None:
        body = self.body()
        oid = self.path.rpartition("/")[2]
        assert _sha256(body) == oid
        self.hub.large[oid] = body
        self.answer(200, {})

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            return self.answer(200 if known else 401, {"name": "me"} if known else {"error": "no"})
        if "/resolve/" in path:
            name, _, rest = path[1:].partition("/resolve/")
            data = self.hub.repositories[name].get(rest.partition("/")[2])
            if data is None:
                return self.answer(404, {"error": "no file"}, X_Error_Code="EntryNotFound")
            return self.answer(200, data=data, ETag=f'"{_sha256(data)}"', X_Repo_Commit=self.hub.commit(name))
        name = path.removeprefix("/api/models/").partition("/revision/")[0].partition("/tree/")[0]
        if name not in self.hub.repositories:
            return self.answer(404, {"error": "no"}, X_Error_Code="RepoNotFound")
        files = self.hub.repositories[name]
        if "/tree/" in path:
            tree = [{"type": "file", "path": p, "size": len(d), "oid": _sha256(d)[:40]} for p, d in files.items()]
            return self.answer(200, tree)
        siblings = [{"rfilename": file} for file in files]
        return self.answer(200, {"id": name, "modelId": name, "sha": self.hub.commit(name), "siblings": siblings})

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
