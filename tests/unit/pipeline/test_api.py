"""What notebooks call: the example runs as it stands, and what goes wrong is raised in the command line's words."""

from __future__ import annotations

import contextlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from posttrain.pipeline import api
from posttrain.pipeline.runs import notice
from posttrain.pipeline.runs.rundir import RunDirectory
from posttrain.stage.errors import EXIT_USAGE, UsageError

NOTEBOOK = Path(__file__).parents[3] / "docs" / "examples" / "notebook.ipynb"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    """The names that the notebook leaves, after all its cells ran in order, with the values of its last lines."""
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {"shown": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in cells:
            lines = "".join(cell["source"])
            head, _, last = lines.rpartition("\n")
            try:
                shown = compile(last, "cell", "eval")
            except SyntaxError:
                exec(lines, names)  # the notebook is ours
                continue
            exec(head, names)
            names["shown"].append(eval(shown, names))
    return names


def test_the_notebook_runs(said: dict[str, Any]) -> None:
    state, row, same, found = said["shown"]
    assert state == "done"
    assert row["source"] == "rows" and row["license"] == "CC0-1.0"
    assert (same, found) == (True, [True, True])
    assert said["config"].seed == 7


def test_a_dataset_says_its_counts_and_its_tables(said: dict[str, Any]) -> None:
    dataset: api.Artifact = said["dataset"]
    assert dataset.headline.startswith("40 rows kept of 41 (")
    assert sum(dataset.table(name).num_rows for name in ("train", "eval")) == 40
    assert dataset.summary and dataset.parents == {} and dataset.metrics == []
    with pytest.raises(UsageError, match="no table 'trian'; did you mean 'train'"):
        dataset.table("trian")


def test_a_stage_that_fails_is_raised_with_its_line(
    said: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("bad.jsonl").write_text('{"prompt": 1}\n')
    with pytest.raises(api.RunFailedError, match=r"rows failed: .*bad.jsonl:1: ") as caught:
        api.run("recipe=mine.yaml", "run_name=bad", "stages.rows.with.sources=[{name: bad, path: bad.jsonl}]")
    assert caught.value.exit_code == EXIT_USAGE
    assert caught.value.run.stages["rows"].state == "failed"
    with pytest.raises(UsageError, match="artifact bad/rows: not made yet"):
        caught.value.run.artifact("rows")


def test_a_sweep_is_a_loop(said: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(UsageError, match=r"2 points .*: run them in a loop, one call each"):
        api.compose("recipe=mine.yaml", "seed=1,2")


def test_another_thread_is_told_that_it_cannot_heed_an_interrupt() -> None:
    raised: list[str] = []

    def call() -> None:
        try:
            api.run("recipe=smoke")
        except UsageError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "the main thread alone" in raised[0]


@pytest.mark.parametrize(
    ("rows", "state", "message"),
    [
        ("rows.jsonl", "done 0", "told: 1 of 1 stages are made; rows: 40 rows kept"),
        ("bad.jsonl", "failed 2", "told: rows: "),
    ],
)
def test_the_end_of_a_run_is_told(
    said: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch, rows: str, state: str, message: str
) -> None:
    monkeypatch.chdir(folder)
    Path("bad.jsonl").write_text('{"prompt": 1}\n')
    source = f"stages.rows.with.sources=[{{name: {state.split()[0]}, path: {rows}}}]"
    told = (
        f'launcher.notify=\'printf "%s %s\\n%s" $POSTTRAIN_STATE $POSTTRAIN_CODE "$POSTTRAIN_MESSAGE" > {rows}.told\''
    )
    with contextlib.suppress(api.RunFailedError):
        api.run("recipe=mine.yaml", "run_name=told", f"root=outputs_{rows}", source, told)
    first, second = Path(f"{rows}.told").read_text().splitlines()
    assert first == state and second.startswith(message)


def test_a_notice_that_fails_or_hangs_is_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notice, "PATIENCE_SECONDS", 0.2)
    run = RunDirectory(tmp_path, "mine")
    for command in ("echo no such topic >&2; exit 22", "sleep 60", None):
        notice.give_notice(command, run, 0, "mine: done")
    assert capsys.readouterr().err.splitlines() == [
        "warning: launcher.notify: exit code 22: no such topic",
        "warning: launcher.notify: no end within 0 s",
    ]
