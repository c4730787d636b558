"""What a store knows to be missing or damaged: from its children, its runs, and the sizes of its files."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main
from posttrain.pipeline.config.compose import compose_config
from posttrain.pipeline.graph.graph import build_graph
from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.pipeline.runs.store import find_artifact, find_model
from posttrain.stage.artifact import MANIFEST, Manifest, read_manifest
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, EXIT_USAGE, UsageError
from posttrain.stage.lease import Lease
from posttrain.stage.outcome import Outcome
from posttrain.stage.spec import Distributed, StageSpec, Tracking


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store of a parent, its child, and a run that made both."""
    root = tmp_path / "outputs"
    run = RunDirectory(root, "mine")
    parents: dict[str, Path] = {}
    for number, stage in enumerate(("curate", "sft")):
        directory = root / "artifacts" / f"{stage}-{number:016x}"
        directory.mkdir(parents=True)
        (directory / "file").write_text(stage)
        commit_artifact(directory, "dataset", stage, dict(parents))
        spec = spec_of(run, directory, parents)
        spec.write(run.spec(stage))
        Outcome(EXIT_DONE).write(run.outcome(stage))
        run.new_log(stage).write_text("")
        parents = {"data": directory}
    (run.path / "config.yaml").write_text("name: mine\n")
    facts = {"stages": {"curate": {"inputs": {}}, "sft": {"inputs": {"data": "curate"}}}}
    (run.path / "identity.json").write_text(json.dumps(facts))
    return root


def spec_of(run: RunDirectory, directory: Path, inputs: dict[str, Path]) -> StageSpec:
    manifest: Manifest = read_manifest(directory)
    return StageSpec(
        stage=manifest.stage,
        run=manifest.run,
        pipeline=run.name,
        key=manifest.key,
        code_digest="",
        config={},
        inputs={name: str(path) for name, path in inputs.items()},
        parents=manifest.parents,
        output=str(directory),
        work=str(run.root / "work" / directory.name),
        outcome=str(run.outcome(manifest.stage)),
        seed=0,
        distributed=Distributed(),
        tracking=Tracking(),
    )


def artifact(root: Path, stage: str) -> Path:
    (found,) = (root / "artifacts").glob(f"{stage}-*")
    return found


def verify(root: Path, capsys: pytest.CaptureFixture[str], *names: str) -> tuple[int, list[str]]:
    code = main(["verify", *names, "--root", str(root)])
    return code, capsys.readouterr().err.splitlines()


def test_a_whole_store_has_no_problems(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "artifacts" / "by-hand.work").mkdir()  # as a stage by hand with its output there leaves it
    (root / "artifacts" / "by-hand.outcome.json").write_text("{}")
    assert verify(root, capsys) == (EXIT_DONE, [])


def test_a_manifest_that_is_gone_is_a_problem(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (artifact(root, "sft") / MANIFEST).unlink()
    code, lines = verify(root, capsys)
    assert code == EXIT_FAILED
    assert any(line.startswith(f"{artifact(root, 'sft')}: ") for line in lines)


def test_a_parent_that_is_gone_is_known_from_its_child(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = artifact(root, "curate")
    shutil.rmtree(gone)
    shutil.rmtree(root / "runs")
    code, (line,) = verify(root, capsys)
    assert code == EXIT_FAILED
    assert line.startswith(f"{gone}: missing, but {artifact(root, 'sft').name} was made from it")
    assert verify(root, capsys, "sft") == (code, [line])


def test_an_artifact_that_is_gone_is_known_from_its_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = artifact(root, "sft")
    shutil.rmtree(gone)
    code, (line,) = verify(root, capsys)
    assert code == EXIT_FAILED
    assert line.startswith(f"{gone}: missing, but run mine made it as sft")


def test_a_run_that_did_not_finish_a_stage_misses_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(artifact(root, "sft"))
    Outcome(EXIT_FAILED, "no").write(RunDirectory(root, "mine").outcome("sft"))
    assert verify(root, capsys) == (EXIT_DONE, [])


def test_everything_gone_is_not_every_byte_as_recorded(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root / "artifacts")
    code, lines = verify(root, capsys)
    assert code == EXIT_FAILED
    assert len(lines) == 2


@pytest.mark.parametrize("damage", ["file", MANIFEST])
def test_what_is_damaged_is_not_taken_as_made(root: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory(root, "mine")
    spec = StageSpec.read(run.spec("sft"))
    assert committed(spec) is not None
    (artifact(root, "sft") / damage).unlink()
    with pytest.raises(UsageError, match="missing; restore it from a copy, or delete the folder"):
        committed(spec)
    assert main(["status", "mine", "--root", str(root)]) == EXIT_DONE
    said = capsys.readouterr().out
    assert said.startswith(f"error: sft: {artifact(root, 'sft')}") and "damaged" in said
    shutil.rmtree(artifact(root, "sft"))
    assert committed(dataclasses.replace(spec)) is None


def test_a_store_that_moved_is_the_same_store(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "elsewhere" / "store"
    moved.parent.mkdir()
    shutil.move(root, moved)
    assert main(["status", "mine", "--root", str(moved)]) == EXIT_DONE
    shown = capsys.readouterr().out
    assert shown.count("done") == 2 and str(tmp_path / "outputs") not in shown
    assert "on the disk: artifacts 9 B, work" in shown  # "curate" and "sft"
    assert verify(moved, capsys) == (EXIT_DONE, [])


def test_a_copy_without_links_still_knows_its_latest_run(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / "runs" / "mine", root / "runs" / "latest")  # as `cp -rL` makes of the link
    with Lease(RunDirectory(root, "mine").lease, "mine"):
        pass
    assert main(["status", "--root", str(root)]) == EXIT_DONE
    assert capsys.readouterr().out.startswith("run mine: ")


TORN = ("", "{", "[]", "null", "{}", '{"version": 99}')
STATE = ("identity.json", "config.yaml", "slurm/jobs.json", "stages/sft/spec.json", "lease")


@pytest.mark.parametrize("command", ["status", "sync", "cancel", "verify", "accept"])
def test_a_torn_file_of_a_run_is_at_most_one_line(root: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"accept": ["sft", "--run", "mine", "--because", "x"], "verify": []}.get(command, ["mine"])
    for path in (root / "runs" / "mine" / name for name in STATE):
        path.parent.mkdir(exist_ok=True)
        before = path.read_text() if path.exists() else None
        for text in TORN:
            path.write_text(text)
            assert main([command, *arguments, "--root", str(root)]) in (EXIT_DONE, EXIT_FAILED, EXIT_USAGE)
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) <= 1, (path.name, text)
        path.unlink() if before is None else path.write_text(before)


def test_a_root_that_is_a_file_is_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(root)
    root.write_text("")
    knobs = ["recipe=smoke", f"root={root}", "tracking=none"]
    assert main(["run", *knobs]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {root}") and "is in the way" in line


def test_a_folder_called_latest_stays_and_that_is_said(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "runs" / "latest").mkdir()
    (root / "runs" / "latest" / "mine").write_text("")
    config = compose_config(["recipe=smoke", f"root={root}", "run_name=other"])
    stages = build_graph(config)
    RunDirectory.of(config, stages).open(config, stages)
    assert "runs/latest is a folder and stays" in capsys.readouterr().err
    assert (root / "runs" / "latest" / "mine").exists()


def test_a_run_is_not_called_latest() -> None:
    with pytest.raises(UsageError, match="run_name=latest is what the run started last is called"):
        compose_config(["recipe=smoke", "run_name=latest"])


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_a_number_that_is_none_names_its_knob(value: str) -> None:
    with pytest.raises(UsageError, match=r"weight_decay: .*finite"):
        build_graph(compose_config(["recipe=smoke", f"train.sft.optimizer.weight_decay={value}"]))


def test_an_artifact_is_found_by_run_and_stage(root: Path) -> None:
    assert find_artifact(root, "mine/sft") == artifact(root, "sft").resolve()
    with pytest.raises(UsageError, match="mine/stf: no such stage of that run; did you mean 'sft'"):
        find_artifact(root, "mine/stf")
    shutil.rmtree(artifact(root, "sft"))
    with pytest.raises(UsageError, match="mine/sft: not made yet; posttrain status mine says why"):
        find_artifact(root, "mine/sft")


def test_a_models_folder_is_told_from_an_artifact(root: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"a model's folder, and no artifact; recipes take it as paths\.model="):
        find_artifact(root, str(tmp_path / "theirs"))
    assert find_model(root, str(tmp_path / "theirs")) == tmp_path / "theirs"
    assert find_model(root, "sft") == find_artifact(root, "sft")
