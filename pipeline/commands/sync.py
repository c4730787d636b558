"""`posttrain sync`: the finished stages of a run, brought to W&B in the order of the graph, each once."""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from pathlib import Path

from posttrain.pipeline.runs.resolve import committed
from posttrain.pipeline.runs.rundir import RunDirectory, find_run, read_stages
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED
from posttrain.stage.files import may_write
from posttrain.stage.spec import StageSpec
from posttrain.stage.wandb.run import wandb_folder
from posttrain.stage.wandb.upload import UploadError, is_uploaded, log_in, upload


def print_sync(root: Path, name: str) -> int:
    """Upload what W&B lacks of a run; print a line per stage, and return 1 if one could not be uploaded.

    An unfinished stage waits for its end: until then its history may still be rewound to a checkpoint. In a store that
    we may not write to, nothing tells what was uploaded; W&B is then asked, and gets no step twice.
    """
    run = find_run(root, name)
    specs = finished_stages(run)
    missing = [spec for spec in specs if not is_uploaded(spec)]
    if missing:
        log_in()
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for spec in missing:
            work = spec.work if may_write(wandb_folder(spec)) else str(Path(scratch) / spec.stage)
            try:
                upload(dataclasses.replace(spec, work=work))
                print(f"{spec.stage}: uploaded", flush=True)
            except UploadError as error:
                failed.append(spec.stage)
                print(f"error: {spec.stage}: {error}", file=sys.stderr, flush=True)
    there = len(specs) - len(missing)
    print(f"run {run.name}: {len(missing) - len(failed)} stages uploaded, {there} were there already")
    if failed:
        print(f"error: not uploaded: {', '.join(failed)}; the same command tries again", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_DONE


def finished_stages(run: RunDirectory) -> list[StageSpec]:
    """Return the work orders of a run's committed stages, parents before children."""
    paths = [run.spec(stage) for stage in read_stages(run)]
    specs = [StageSpec.read(path) for path in paths if path.exists()]
    return [spec for spec in specs if committed(spec) is not None]
