"""A store that was copied and moved, or is another user's: what reads it works, what writes it refuses in one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from build_artifacts import ENVIRONMENT, build_model
from fake_wandb import FakeWandb
from report_pipeline import accounting

from posttrain.pipeline.commands.run import prepare
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.local.launch import local_launcher
from posttrain.pipeline.runs.resolve import Made, Resolver, committed
from posttrain.stage.artifact import MANIFEST, Manifest, commit
from posttrain.stage.lease import Lease

RECIPE = """# @package _global_
defaults:
  - override /pipeline: null
  - _self_
name: small
stages:
  sources: { run: data.demo }
  texts:
    run: data.curate
    inputs: { sources: sources }
    with: { record_type: demonstration, sources: [{ name: text, file: text.jsonl, task: text }] }
  untrained: { run: train.base, inputs: { data: texts } }
  report: { run: evaluate.report, inputs: { texts: texts, untrained: untrained } }
train:
  base:
    architecture:
      { hidden_size: 32, num_layers: 2, num_heads: 4, num_kv_heads: 2, intermediate_size: 64, vocab_size: 400 }
evaluate: { report: { resamples: 100, samples: 2 } }
"""
OTHER = 61234
"""A user without a name."""
NO_RIGHTS = "ask its owner"
CALLER = """
import contextlib, io, json, sys
from posttrain.pipeline.cli import main
said = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    said.append((code, out.getvalue(), err.getvalue()))
print()
print(json.dumps(said))
"""


class Place:
    """A store somewhere, and the command line on it."""

    def __init__(self, base: Path, root: Path) -> None:
        self.base, self.root = base, root
        self.before: list[str] = []
        """What a command is run by: nothing, or what makes another user of us."""

    def call(self, *commands: tuple[str, ...], url: str = "http://127.0.0.1:9") -> list[tuple[int, str, str]]:
        """Return the exit code and both outputs of each command; all are called by one process."""
        where = [f"root={self.root}", f"--config-dir={self.base / 'conf'}"], [f"--root={self.root}"]
        full = [[*arguments, *where[arguments[0] != "run"]] for arguments in commands]
        home = self.base / "home" / str(len(self.before))  # of each user
        own = {"HOME": str(home), "WANDB_BASE_URL": url, "WANDB_API_KEY": "1secret1" * 5}
        process = [*self.before, sys.executable, "-c", CALLER, json.dumps(full)]
        environment = {**os.environ, **ENVIRONMENT, **own}
        done = subprocess.run(
            process, cwd=self.base / "home", env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        return [(code, out, err) for code, out, err in json.loads(done.stdout.splitlines()[-1])]

    def reads(self, *commands: tuple[str, ...], **options: str) -> list[str]:
        """Return what commands say that must work."""
        done = self.call(*commands, **options)
        assert [code for code, *_ in done] == [0] * len(commands), done
        return [out for _, out, _ in done]

    def refuses(self, *commands: tuple[str, ...]) -> None:
        """See that commands say in one line whom to ask, and leave everything as it is."""
        before = self.contents()
        for arguments, (code, _, err) in zip(commands, self.call(*commands), strict=True):
            assert (code, len(err.splitlines()), NO_RIGHTS in err) == (2, 1, True), (arguments, err)
        assert self.contents() == before

    def contents(self) -> set[tuple[str, int, int]]:
        paths = [path for path in self.root.rglob("*") if path.is_file()]
        return {(str(path), path.stat().st_size, path.stat().st_ctime_ns) for path in paths}

    def artifact(self, stage: str) -> Path:
        (found,) = (self.root / "artifacts").glob(f"{stage}-*")
        return found


@pytest.fixture
def base() -> Iterator[Path]:
    """A folder that every user may enter, unlike those that pytest makes."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    (base / "home").mkdir()
    (base / "home").chmod(0o777)
    (base / "conf" / "recipe").mkdir(parents=True)
    (base / "conf" / "recipe" / "small.yaml").write_text(RECIPE)
    yield base
    shutil.rmtree(base)


@pytest.fixture
def store(base: Path) -> Path:
    """A store in which everything is made, though only the model is what it says."""
    root = base / "outputs"
    files = {"texts": {"accounting.json": json.dumps(accounting({"text": 60}))}}
    model = build_model(base / "model")
    point = prepare(compose_config(["recipe=small", f"root={root}"], base / "conf"))
    resolver = Resolver(point.config, point.run, local_launcher(point.config, point.stages).distributed)
    point.run.open(point.config, point.stages)
    made: dict[str, Made] = {}
    with Lease(point.run.lease, point.run.name):
        pass
    for stage in point.stages:
        spec = resolver.spec(stage, made)
        temporary = root / "artifacts" / f".{stage.name}"
        temporary.mkdir(parents=True)
        if stage.type.kind == "model":
            shutil.copytree(model, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
        for name, text in files.get(stage.name, {"file": stage.name}).items():
            (temporary / name).write_text(text)
        commit(temporary, Path(spec.output), Manifest(
            kind=stage.type.kind, stage=stage.name, run=stage.type.run, key=spec.key, digest="", files={},
            parents=spec.parents, config=spec.config, code_digest=spec.code_digest, seed=spec.seed,
            metrics={}, headline="", tokens=0, wall_seconds=0.0, created="2026-01-01T00:00:00Z", packages={},
            hardware={}, licenses=[], facts={},
        ))  # fmt: skip
        point.run.write_spec(spec)
        found = committed(spec)
        assert found is not None
        made[stage.name] = found
    return root


def test_a_store_that_was_copied_and_moved_works_as_before(base: Path, store: Path) -> None:
    copied = base / "copied"
    subprocess.run(["cp", "-rL", store, copied], check=True)
    assert not (copied / "runs" / "latest").is_symlink()
    shutil.rmtree(store)
    (base / "else where").mkdir()
    place = Place(base, base / "else where" / "moved")
    shutil.move(copied, place.root)
    shutil.rmtree(place.artifact("report"))
    exported = base / "home" / "exported"
    _, status, verified, shown, _ = place.reads(
        ("run", "recipe=small"), ("status",), ("verify",), ("show", "report"), ("export", "untrained", str(exported))
    )
    assert [line.split()[1] for line in status.splitlines()[-5:-1]] == ["cached"] * 3 + ["done"]
    assert verified == "4 artifacts: every byte as recorded\n"
    assert place.artifact("sources").name in shown and "missing" not in shown
    assert (exported / "model.safetensors").is_file()
    with FakeWandb() as server:
        (synced,) = place.reads(("sync",), url=server.url)
        assert "4 stages uploaded" in synced
        assert {name for _, name, _ in server.made()} >= {place.artifact("untrained").name}
    assert str(store) not in (place.artifact("report") / "report.html").read_text()


def as_another_user() -> list[str]:
    """Return what a command is run by as a user who may read what all may, in a mount namespace of its own.

    There, the folders above the interpreter are open to all: a copy of root's home, as it were.
    """
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    needed = [Path(text).resolve() for text in (sys.executable, sys.prefix, sys.base_prefix, __file__)]
    closed = sorted({folder for path in needed for folder in path.parents if not folder.stat().st_mode & 0o001})
    mounts = [f'mount -t overlay -o "ro,lowerdir=$0:{folder}" over "{folder}"' for folder in closed]
    become = f'exec setpriv --reuid {OTHER} --regid {OTHER} --clear-groups -- "$@"'
    open_folder = Path(tempfile.gettempdir()) / "posttrain-open"
    open_folder.mkdir(exist_ok=True)
    open_folder.chmod(0o755)
    before = ["unshare", "--mount", "sh", "-c", " && ".join([*mounts, become]), str(open_folder)]
    tried = subprocess.run(
        [*before, sys.executable, "-c", "import posttrain.pipeline.cli"], capture_output=True, text=True
    )
    if tried.returncode:
        pytest.skip(f"no other user can run the interpreter: {tried.stderr.strip()[-200:]}")
    return before


def test_what_another_user_may_do_with_a_store(base: Path, store: Path) -> None:
    owner, reader = Place(base, store), Place(base, store)
    reader.before = as_another_user()
    before = owner.contents()
    exported = base / "home" / "exported"
    ran, status, verified, shown, _ = reader.reads(
        ("run", "recipe=small"), ("status",), ("verify",), ("show", "untrained"), ("export", "untrained", str(exported))
    )
    assert ran.count("cached") == status.count("cached") == 4  # nothing was left to do
    assert verified == "4 artifacts: every byte as recorded\n"
    assert reader.artifact("sources").name in shown
    assert (exported / "model.safetensors").is_file()
    with FakeWandb() as server:
        (synced,) = reader.reads(("sync",), url=server.url)
        assert "4 stages uploaded" in synced
        assert len(server.runs) == 4
    assert owner.contents() == before
    (store / "work" / "abandoned").mkdir(parents=True)
    (store / "work" / "abandoned" / "file").write_text("x")
    name = run_of(store)
    reader.reads(("gc", "--days", "0"), ("rm", name))
    reader.refuses(("run", "recipe=small", "seed=1"), ("gc", "--days", "0", "--yes"), ("rm", name, "--yes"))


def run_of(store: Path) -> str:
    return next(path.name for path in (store / "runs").iterdir() if not path.is_symlink())


def test_a_store_that_another_user_may_not_read_is_not_an_empty_one(base: Path, store: Path) -> None:
    reader = Place(base, store)
    reader.before = as_another_user()
    store.chmod(0o700)
    reader.refuses(("status",), ("verify",), ("show", "untrained"), ("gc",), ("run", "recipe=small"))


def test_nothing_is_deleted_where_not_all_may_be(base: Path, store: Path) -> None:
    reader = Place(base, store)
    reader.before = as_another_user()
    for folder in ("runs", "cache", "cache/whole", "records"):
        (store / folder).mkdir(exist_ok=True)
        (store / folder).chmod(0o777)
    reader.refuses(("rm", run_of(store), "--yes"))
