"""The page of a run: what it says of stages that run, failed and are made, and that nobody else reads it."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from html import unescape
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from build_artifacts import commit_artifact

from posttrain.pipeline.cli import main
from posttrain.pipeline.page.server import PageServer
from posttrain.pipeline.page.view import MOST_POINTS, Watched
from posttrain.pipeline.runs.rundir import RunDirectory, signs_of_life
from posttrain.stage.errors import EXIT_USAGE
from posttrain.stage.lease import Lease
from posttrain.stage.outcome import Outcome
from posttrain.stage.spec import Distributed, StageSpec, Tracking

SECRET = "only-in-the-address"
STEPS = 1000


def order(run: RunDirectory, stage: str, output: Path) -> StageSpec:
    spec = StageSpec(
        stage=stage,
        run="train.ppo",
        pipeline=run.name,
        key=output.name.rpartition("-")[2].ljust(64, "0"),
        code_digest="",
        config={},
        inputs={},
        parents={},
        output=str(output),
        work=str(run.root / "work" / stage),
        outcome=str(run.outcome(stage)),
        seed=0,
        distributed=Distributed(),
        tracking=Tracking(),
    )
    run.write_spec(spec)
    Path(spec.work).mkdir(parents=True)
    return spec


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """PPO is at step 1,000 of 4,000, an evaluation is made, another failed."""
    run = RunDirectory(tmp_path / "outputs", "mine & yours")
    run.path.mkdir(parents=True)
    (run.path / "config.yaml").write_text("name: mine\n")
    stages = {name: {"inputs": {}} for name in ("evaluate", "ppo", "judge")}
    run.identity.write_text(json.dumps({"version": 1, "stages": stages}))
    artifacts = run.root / "artifacts"
    made = order(run, "evaluate", artifacts / "evaluate-0001")
    Path(made.output).mkdir(parents=True)
    answer = {"prompt": "2 + 2?", "response": "<script>4</script>", "correct": 1.0, "task": "sums", "language": "en"}
    pq.write_table(pa.Table.from_pylist([answer]), Path(made.output) / "items.parquet")
    commit_artifact(Path(made.output), "evaluation", "evaluate")
    order(run, "judge", artifacts / "judge-0003")
    run.leave_outcome("judge", Outcome(1, "judge.url: nobody answers", "PosttrainError"))
    ppo = order(run, "ppo", artifacts / "ppo-0002")
    log = run.new_log("ppo")
    log.write_text("\n".join(f"line {number}" for number in range(100)))
    signs_of_life(log).mkdir()
    beat = {"rank": 0, "pid": 1, "host": "here", "step": STEPS, "last_step": 4 * STEPS}
    (signs_of_life(log) / "rank_0.json").write_text(json.dumps(beat))
    with (Path(ppo.work) / "metrics.jsonl").open("w") as file:
        for step in range(1, STEPS + 1):
            file.write(json.dumps({"step": step, "seconds": step / 2, "loss": 1 / step, "objective/kl": 0.1}) + "\n")
    with (Path(ppo.work) / "samples.jsonl").open("w") as file:
        for step in range(20):
            turns = [{"role": "user", "content": "Who?"}]
            file.write(json.dumps({"step": step, "prompt": turns, "response": f"Me{step}.", "score": 0.5}) + "\n")
        file.write('{"step": 20, "prom')  # it is being written
    with Lease(Path(ppo.work) / "lease", "mine"):
        yield run


@pytest.fixture
def server(run: RunDirectory) -> Iterator[PageServer]:
    with PageServer(Watched(run), 0, SECRET) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: PageServer, path: str = "") -> str:
    with urllib.request.urlopen(server.address + path, timeout=30) as answer:
        return str(answer.read().decode())


def test_the_stages_say_how_far_they_are(server: PageServer) -> None:
    said = unescape(get(server, "state"))
    assert "1 of 3 stages are made." in said
    assert "<b>judge failed</b>: judge.url: nobody answers" in said
    assert f'max="{4 * STEPS}" value="{STEPS}"' in said
    assert "step 1000 of 4000 · loss 0.001 · 2 steps/s · 25 min 00 s left" in said


def test_the_stage_that_runs_is_shown_with_its_curves_answers_and_log(server: PageServer) -> None:
    assert 'aria-current="true">\n<a href="?stage=ppo">' in get(server, "state")
    said = get(server, "stage")
    assert "<h2>ppo</h2>" in said
    assert [f"{name}: " in said for name in ("Loss", "KL to the reference", "Rewards")] == [True, True, False]
    places = [said.index(f"Me{step}.") for step in range(19, 11, -1)]  # the latest first
    assert places == sorted(places)
    assert "Me11." not in said
    assert "line 99" in said and "line 69" not in said


def test_a_curve_has_no_more_points_than_a_screen(run: RunDirectory) -> None:
    (_, [(_, steps, values)]) = next(one for one in Watched(run).stage("ppo").panels if one[0].title == "Loss")
    assert len(steps) == len(values) == 334 <= MOST_POINTS
    assert (steps[0], steps[-1], values[-1]) == (1, STEPS, 1 / STEPS)


def test_another_stage_can_be_asked_for_and_what_models_say_is_no_markup(server: PageServer) -> None:
    assert 'data-stage="evaluate"' in get(server, "?stage=evaluate")
    said = get(server, "stage?stage=evaluate")
    assert "<h2>evaluate</h2>" in said and "sums · en · score 1" in said
    assert "<script>" not in said and "&lt;script&gt;4" in said
    assert "<title>mine &amp; yours: posttrain watch</title>" in get(server)


@pytest.mark.parametrize("path", ["", "state", "guess/state", f"{SECRET}x/state", "../outputs"])
def test_who_does_not_know_the_address_gets_nothing(server: PageServer, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{path}", timeout=30)


def test_only_its_own_script_runs_and_only_this_machine_reads(server: PageServer) -> None:
    with urllib.request.urlopen(server.address, timeout=30) as answer:
        policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self'; connect-src 'self'" in policy
    assert server.server_address[0] == "127.0.0.1"
    assert "getElementById(part)" in get(server, "watch.js")


def test_watching_writes_nothing(server: PageServer, run: RunDirectory) -> None:
    before = {path: path.lstat().st_mtime_ns for path in run.root.rglob("*")}
    for part in ("", "state", "stage", "stage?stage=evaluate", "stage?stage=judge"):
        get(server, part)
    assert {path: path.lstat().st_mtime_ns for path in run.root.rglob("*")} == before


def test_a_run_that_breaks_meanwhile_is_said(server: PageServer, run: RunDirectory) -> None:
    run.identity.write_text("{")
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(server, "state")
    with caught.value as answer:
        assert answer.code == 409 and "identity.json: not readable" in answer.read().decode()


def test_a_taken_port_and_a_missing_run_are_one_line(
    server: PageServer, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--root", str(run.root), "--port", str(server.server_port)]
    assert main(["watch", run.name, *words]) == EXIT_USAGE
    assert "give another, or 0 for any free one" in capsys.readouterr().err
    assert main(["watch", "theirs", *words]) == EXIT_USAGE
    assert "run 'theirs': not in" in capsys.readouterr().err
