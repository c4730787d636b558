"""What no run needs is listed, deleted on request alone, and never what a run needs or a process is at."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.artifact import artifact_name
from posttrain.stage.errors import EXIT_DONE, EXIT_USAGE
from posttrain.stage.lease import Lease
from posttrain.stage.spec import Distributed, StageSpec, Tracking


class Store:
    """A store whose artifacts are made one by one."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self, stage: str, number: int, *parents: str) -> str:
        """Commit an artifact as a run would have made it, and return its name."""
        name = artifact_name(stage, f"{number:016x}")
        directory = self.root / "artifacts" / name
        directory.mkdir(parents=True)
        (directory / "file").write_text(name)
        commit_artifact(directory, "dataset", stage, {each: self.root / "artifacts" / each for each in parents})
        return name

    def run(self, name: str, *artifacts: str) -> RunDirectory:
        """Leave the folder of a run whose stages make some artifacts, committed or not."""
        run = RunDirectory(self.root, name)
        for artifact in artifacts:
            stage = artifact.rpartition("-")[0]
            places = [str(self.root / folder / artifact) for folder in ("artifacts", "work")]
            outcome = str(run.outcome(stage))
            spec = StageSpec(
                stage, "x", name, "k", "", {}, {}, {}, *places, outcome, 0, Distributed(), Tracking(), None
            )
            spec.write(run.spec(stage))
        (run.path / "config.yaml").write_text(f"name: {name}\n")
        return run

    def checkpoint(self, name: str) -> Path:
        """Leave a checkpoint of a stage's work."""
        path = self.root / "work" / name / "checkpoints" / "checkpoint-1"
        path.mkdir(parents=True)
        (path / "weights").write_text("w")
        return path

    def names(self) -> set[str]:
        return {path.name for path in (self.root / "artifacts").iterdir()}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "outputs")


def call(store: Store, *arguments: str) -> int:
    return main([*arguments, "--root", str(store.root)])


def test_what_runs_need_stays_and_the_rest_goes_on_request(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    data, old_data = store.make("data", 1), store.make("data", 2)
    model, old_model = store.make("sft", 3, data), store.make("sft", 4, old_data)
    shared = store.make("sft", 5, data)
    store.run("mine", data, model)
    assert call(store, "gc", "--days", "0") == EXIT_DONE
    said = capsys.readouterr().out
    assert all(name in said for name in (old_data, old_model, shared)) and model not in said
    assert "nothing was deleted" in said and len(store.names()) == 5
    assert call(store, "gc", "--days", "0", "--yes") == EXIT_DONE
    assert store.names() == {data, model}
    assert call(store, "verify") == EXIT_DONE


def test_what_is_needed_only_as_a_parent_stays(store: Store) -> None:
    base, data = store.make("base", 1), store.make("data", 2)
    model = store.make("sft", 3, base, data)
    store.run("mine", model)
    call(store, "gc", "--days", "0", "--yes")
    assert store.names() == {base, data, model}


def test_what_was_put_there_by_hand_stays(store: Store) -> None:
    made = store.make("sft", 3)
    (store.root / "artifacts" / made).rename(store.root / "artifacts" / "my-own-model")
    call(store, "gc", "--days", "0", "--yes")
    assert store.names() == {"my-own-model"}


def test_work_stays_where_a_run_goes_on_with_it(store: Store) -> None:
    done = store.make("base", 1)
    store.run("mine", done, "sft-0000000000000002")
    going_on = store.checkpoint("sft-0000000000000002")
    left, abandoned = store.checkpoint(done), store.checkpoint("sft-0000000000000003")
    torn = store.root / "artifacts" / ".sft-0000000000000003.incomplete"
    torn.mkdir()
    assert call(store, "gc", "--days", "0", "--yes") == EXIT_DONE
    assert [path.exists() for path in (going_on, left, abandoned, torn)] == [True, False, False, False]
    assert store.names() == {done}


def test_what_a_process_is_at_stays(store: Store) -> None:
    name = store.make("sft", 3)
    kept = [store.checkpoint(name), store.root / "artifacts" / f".{name}.incomplete", store.root / "artifacts" / name]
    kept[1].mkdir()
    with Lease(store.root / "work" / name / "lease", "by-hand"):
        call(store, "gc", "--days", "0", "--yes")
    assert all(path.exists() for path in kept)
    call(store, "gc", "--days", "0", "--yes")
    assert not any(path.exists() for path in kept)


def test_what_is_young_stays_with_what_it_was_made_from(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    data, other = store.make("data", 1), store.make("data", 2)
    model = store.make("sft", 3, data)
    for name in (data, other):
        for path in (store.root / "artifacts" / name).iterdir():
            os.utime(path, (0, 0))
    call(store, "gc", "--yes")
    assert store.names() == {data, model}
    assert "2 more were written to in the last 7 days" in capsys.readouterr().out


def test_a_work_order_that_cannot_be_read_ends_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    name = store.make("sft", 3)
    run = store.run("mine", name)
    run.spec("sft").write_text("")
    assert call(store, "gc", "--days", "0", "--yes") == EXIT_USAGE
    assert store.names() == {name}


def test_a_run_goes_with_what_it_alone_needs(store: Store) -> None:
    data = store.make("data", 1)
    mine, other = store.make("sft", 2, data), store.make("sft", 3, data)
    superseded = store.make("sft", 4)
    run = store.run("mine", data, mine)
    store.run("other", data, other)
    (run.path.parent / "latest").symlink_to("mine")
    assert call(store, "rm", "mine") == EXIT_DONE
    assert run.path.exists() and mine in store.names()
    assert call(store, "rm", "mine", "--yes") == EXIT_DONE
    assert store.names() == {data, other, superseded}
    assert sorted(path.name for path in run.path.parent.iterdir()) == ["other"]


def test_a_run_that_runs_or_serves_another_is_not_removed(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    data = store.make("data", 1)
    run, other = store.run("mine", data), store.run("other", data)
    with Lease(run.lease, "mine"):
        assert call(store, "rm", "mine", "--yes") == EXIT_USAGE
    assert "posttrain cancel mine" in capsys.readouterr().err
    shutil.rmtree(other.path / "stages" / "data")
    (other.path / "stages" / "data").symlink_to(os.path.relpath(run.path / "stages" / "data", other.path / "stages"))
    assert call(store, "rm", "mine", "--yes") == EXIT_USAGE
    assert "posttrain rm mine other" in capsys.readouterr().err
    assert run.path.exists() and data in store.names()
    assert call(store, "rm", "mine", "other", "--yes") == EXIT_DONE
    assert store.names() == set()


def test_an_artifact_goes_after_its_children(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    data = store.make("data", 1)
    model = store.make("sft", 2, data)
    assert call(store, "rm", data, "--yes") == EXIT_USAGE
    assert f"{model} were made from it" in capsys.readouterr().err
    assert call(store, "rm", data, model, "--yes") == EXIT_DONE
    assert store.names() == set()
    assert not (store.root / "cache" / "whole" / f"{model}.json").exists()
