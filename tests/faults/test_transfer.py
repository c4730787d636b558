"""Artifacts in a store at a URL, of S3 or a folder: sent once, fetched whole, whatever is in the way."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main
from posttrain.pipeline.runs.remote import RemoteStore
from posttrain.stage.artifact import read_manifest, verify
from posttrain.stage.errors import EXIT_DONE, EXIT_USAGE

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
LARGE = 4 << 20
"""Three times as much is more than one part of an upload."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that speaks S3, with one bucket; returns its address."""
    with serving() as url:
        yield url


@pytest.fixture
def guarded_server() -> Iterator[str]:
    """Another one, which answers only those whom it knows once it has its bucket."""
    with serving(INITIAL_NO_AUTH_ACTION_COUNT="1") as url:
        yield url


@contextmanager
def serving(**environment: str) -> Iterator[str]:
    pytest.importorskip("moto")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", "from moto.server import main; import sys; main(sys.argv[1:])", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.kill()
        process.wait()


@pytest.fixture(params=["s3", "folder", "fsspec"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place for artifacts that is empty."""
    if request.param == "folder":
        return str(tmp_path / "elsewhere")
    if request.param == "fsspec":
        return f"memory://{tmp_path.name}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("server"))
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of a parent and two children that hold a file of the same bytes."""
    root = tmp_path / "outputs"
    parents: dict[str, Path] = {}
    for number, stage in enumerate(("base", "sft", "dpo")):
        directory = root / "artifacts" / f"{stage}-{number:016x}"
        (directory / "logs").mkdir(parents=True)
        (directory / "tokenizer.json").write_text("shared")
        (directory / "weights").write_bytes(stage.encode() * LARGE)
        (directory / "logs" / "metrics.jsonl").write_text(stage)
        commit_artifact(directory, "model", stage, dict(parents))
        parents = {"model": root / "artifacts" / "base-0000000000000000"}
    return root


def call(root: Path, *arguments: str) -> int:
    return main([*arguments, "--root", str(root)])


def line(capsys: pytest.CaptureFixture[str]) -> str:
    (said,) = capsys.readouterr().err.splitlines()
    return said


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in (root / "artifacts").rglob("*") if path.is_file()]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_what_was_pushed_is_pulled_as_it_was(
    root: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, "push", url) == EXIT_DONE
    said = capsys.readouterr().out.splitlines()
    assert ["sent 3 of 3 files" in said[0], "sent 2 of 3" in said[1], "sent 2 of 3" in said[2]] == [True] * 3
    assert call(root, "push", url) == EXIT_DONE
    assert capsys.readouterr().out.count("sent 0 of 3") == 3, "nothing is sent twice"
    other = tmp_path / "other"
    assert call(other, "pull", url, "sft") == EXIT_DONE
    wanted = {name: data for name, data in contents(root).items() if not name.startswith("artifacts/dpo")}
    assert contents(other) == wanted, "with what it was made from, under its own name, and nothing else"
    assert call(other, "verify") == EXIT_DONE
    capsys.readouterr()
    assert call(other, "pull", url, "sft") == EXIT_DONE
    assert capsys.readouterr().out.count("here already") == 2


def test_what_is_damaged_is_never_taken_and_can_be_mended(
    root: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(root, "push", url, "base") == EXIT_DONE
    remote = RemoteStore(url)
    entry = read_manifest(root / "artifacts" / "base-0000000000000000").files["weights"]
    place = f"{remote._path}/files/{entry['sha256']}"
    with remote._fs.open_output_stream(place) as stream:
        stream.write(b"x" * entry["bytes"])
    other = tmp_path / "other"
    capsys.readouterr()
    assert call(other, "pull", url, "base") == EXIT_USAGE
    assert line(capsys).endswith(f"files/{entry['sha256']}: damaged; `posttrain push --verify` sends it again")
    assert not list((other / "artifacts").glob("[!.]*"))
    assert call(root, "push", url, "base") == EXIT_DONE  # which trusts sizes
    assert call(root, "push", "--verify", url, "base") == EXIT_DONE
    assert capsys.readouterr().out.splitlines()[-1].startswith("base-0000000000000000: sent 1 of 3 files")
    assert call(other, "pull", url, "base") == EXIT_DONE
    remote._fs.delete_file(place)
    third = tmp_path / "third"
    capsys.readouterr()
    assert call(third, "pull", url, "base") == EXIT_USAGE
    assert line(capsys).endswith(": missing; push the artifact again")
    remote._fs.delete_file(remote._manifest("base-0000000000000000"))
    assert call(root, "push", url, "sft") == EXIT_DONE
    remote._fs.delete_file(remote._manifest("base-0000000000000000"))
    capsys.readouterr()
    assert call(third, "pull", url, "sft") == EXIT_USAGE
    assert "base-0000000000000000 is missing, but sft-0000000000000001 was made from it" in line(capsys)


def test_damage_and_gaps_here_are_not_sent(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = tmp_path / "elsewhere"
    base = root / "artifacts" / "base-0000000000000000"
    (base / "weights").write_bytes(b"y" * read_manifest(base).files["weights"]["bytes"])
    assert call(root, "push", str(away), "sft") == EXIT_USAGE
    assert f"{base / 'weights'}: SHA-256 is" in line(capsys)
    base.rename(tmp_path / "gone")
    assert call(root, "push", str(away), "sft") == EXIT_USAGE
    assert f"{base}: missing, but sft-0000000000000001 was made from it as model" in line(capsys)
    assert not list(away.rglob("*.json"))


def test_another_artifact_of_the_name_is_replaced_nowhere(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away, other = tmp_path / "elsewhere", tmp_path / "other"
    assert call(root, "push", str(away), "base") == EXIT_DONE
    directory = other / "artifacts" / "base-0000000000000000"
    directory.mkdir(parents=True)
    (directory / "weights").write_text("of another machine")
    commit_artifact(directory, "model", "base")
    capsys.readouterr()
    assert call(other, "push", str(away), "base") == EXIT_USAGE
    assert "nothing there is replaced" in line(capsys)
    assert call(other, "pull", str(away), "base") == EXIT_USAGE
    assert "none is replaced" in line(capsys)


def test_a_manifest_that_names_files_elsewhere_is_refused(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from posttrain.stage.artifact import content_digest

    away, other = tmp_path / "elsewhere", tmp_path / "other"
    assert call(root, "push", str(away), "base") == EXIT_DONE
    path = away / "artifacts" / "base-0000000000000000.json"
    raw = json.loads(path.read_text())
    raw["files"]["../../../stolen"] = raw["files"].pop("weights")
    path.write_text(json.dumps({**raw, "digest": content_digest(raw["kind"], raw["files"])}))
    capsys.readouterr()
    assert call(other, "pull", str(away), "base") == EXIT_USAGE
    assert "outside of its artifact" in line(capsys)
    assert not (tmp_path / "stolen").exists()
    path.write_text("{")
    assert call(other, "pull", str(away), "base") == EXIT_USAGE
    assert "not a manifest" in line(capsys)


def test_a_run_fetches_what_was_made_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    away = tmp_path / "elsewhere"
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "two.yaml").write_text(TWO)
    run = ["run", "recipe=two", f"--config-dir={tmp_path}"]
    assert main([*run, f"root={tmp_path / 'one'}"]) == EXIT_DONE
    assert call(tmp_path / "one", "push", str(away), "demo") == EXIT_DONE
    capsys.readouterr()
    assert main([*run, f"root={tmp_path / 'two'}", f"remote={away}"]) == EXIT_DONE
    table = capsys.readouterr().out.partition("\nstage ")[2]
    assert [row.split()[:2] for row in table.splitlines()[1:3]] == [["demo", "cached"], ["rows", "done"]]
    assert call(tmp_path / "one", "push", str(away)) == EXIT_DONE, "what was made there is what was made here"
    assert call(tmp_path / "two", "push", str(away)) == EXIT_DONE
    assert main([*run, f"root={tmp_path / 'three'}", f"remote={away}/none"]) == EXIT_DONE


TWO = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: two
stages:
  demo:
    run: data.demo
    with:
      { num_texts: 3, num_demonstrations: 15, num_comparisons: 15, num_gold_comparisons: 15, num_evaluation_items: 15 }
  rows:
    run: data.curate
    inputs: { sources: demo }
    with: { record_type: demonstration, sources: [{ name: a, file: demonstrations.jsonl }] }
"""


@pytest.mark.parametrize("command", ["push", "pull"])
def test_killed_at_any_moment_the_same_command_goes_on(root: Path, tmp_path: Path, command: str) -> None:
    away, other = tmp_path / "elsewhere", tmp_path / "other"
    at, arguments = (root, ["push", str(away)]) if command == "push" else (other, ["pull", str(away), "sft", "dpo"])
    if command == "pull":
        assert call(root, "push", str(away)) == EXIT_DONE
    code = KILLED.format(watched=str(away if command == "push" else other))
    killed = 0
    for event in range(1, 200, 2 if command == "push" else 9):
        full = [sys.executable, "-c", code, str(event), *arguments, "--root", str(at)]
        done = subprocess.run(full, env=os.environ, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
        remote = RemoteStore(str(away))
        for name in remote.names():
            files = json.loads(remote.manifest(name) or "")["files"].values()
            assert all(remote.has(entry["sha256"], entry["bytes"], read=True) for entry in files), "of a manifest there"
        for path in other.glob("artifacts/[!.]*"):
            assert verify(path) == []
    assert done.returncode == 0 and killed > 1
    third = tmp_path / "third"
    assert call(third, "pull", str(away), "sft", "dpo") == EXIT_DONE
    assert contents(third) == contents(root)
    assert command == "push" or contents(other) == contents(root)


KILLED = """
import os, signal, sys
count, at = 0, int(sys.argv[1])
def hook(event, arguments):
    global count
    if event in ("open", "os.mkdir", "os.rename", "os.remove") and str(arguments[0]).startswith({watched!r}):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
from posttrain.pipeline.cli import main
from posttrain.pipeline.runs import remote
writing, getting = remote.RemoteStore._writing, remote.RemoteStore.get
def struck(self, *a):
    hook("open", [{watched!r}])
    return writing(self, *a)
remote.RemoteStore._writing = struck  # Arrow writes past Python's events
sys.addaudithook(hook)
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://nothere/folder", "bucket"),
        ("nonsense://x", "Protocol not known: nonsense"),
    ],
)
def test_what_is_not_there_is_one_line(
    url: str, reason: str, root: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**KEYS, "AWS_ENDPOINT_URL": server}.items():
        monkeypatch.setenv(name, value)
    for arguments in (("push", url), ("pull", url, "base")):
        assert call(root, *arguments) == EXIT_USAGE
        said = line(capsys)
        assert said.startswith(f"error: {url}: ") and reason in said


@pytest.mark.parametrize("keys", [{}, KEYS])
def test_who_is_not_known_there_is_told_in_one_line(
    keys: dict[str, str],
    root: Path,
    guarded_server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    none = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none")}
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {**none, **keys, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": guarded_server}.items():
        monkeypatch.setenv(name, value)
    assert call(root, "push", "s3://bucket/x") == EXIT_USAGE
    said = line(capsys)
    assert said.startswith("error: s3://bucket/x: ")
    assert "credentials (AWS_ACCESS_KEY_ID" in said
