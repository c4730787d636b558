"""`posttrain resume`: the last launch of a run, to be said again from the folder that it was said in."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from posttrain.pipeline.runs.launched import Launch, read_launches
from posttrain.pipeline.runs.rundir import find_run
from posttrain.stage.errors import UsageError


def last_launch(root: Path, name: str) -> Launch:
    """Return how a run was last launched, print it, and go to the folder that it was launched in.

    Raises UsageError where that is not known, or the folder is gone.
    """
    run = find_run(root, name)
    launches = read_launches(run)
    if not launches:
        raise UsageError(
            f"resume {run.name}: how it was launched is not recorded; posttrain run recipe={run.path / 'config.yaml'}"
        )
    launch = launches[-1]
    print(f"{launch.directory}$ posttrain run {shlex.join(launch.overrides)}", file=sys.stderr, flush=True)
    try:
        os.chdir(launch.directory)
    except OSError as error:
        raise UsageError(
            f"resume {run.name}: {launch.directory}: {str(error.strerror).lower()}; go on by hand"
        ) from None
    return launch
