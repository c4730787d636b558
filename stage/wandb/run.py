"""One stage's W&B run: the calls themselves, in order, raising when they fail.

The run's id follows from the artifact's key, so whoever opens it again goes on with the same run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain.stage.artifact import LOGS, MANIFEST, Manifest, artifact_name, read_manifest
from posttrain.stage.files import write_text_atomic
from posttrain.stage.spec import StageSpec
from posttrain.stage.wandb.tables import numbers, tables

UPLOADED = "uploaded"
"""File in a stage's W&B folder: the server has all of the finished stage."""
INHERITED = "WANDB_SERVICE"
"""Variable in which W&B tells child processes of a `wandb-core` that it has started."""
RECORDED = "recorded"
"""File in a stage's W&B folder: names the offline run that holds all of the finished stage."""


class WandbService:
    """The `wandb-core` process that runs of this process speak to; started, and `wandb` imported, when it is made.

    It is never one that stands in the environment: that of a notebook ends when the notebook likes, and answers to it.
    """

    def __init__(self) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.pop(INHERITED, None)
        import wandb

        connection = wandb.setup(settings=wandb.Settings(silent=True)).ensure_service()
        self._process = connection._proc and connection._proc._process

    def close(self) -> None:
        """End it; waits until it has ended."""
        from wandb.sdk import wandb_setup

        wandb_setup.teardown()

    def kill(self) -> None:
        """End it at once, and raise nothing: W&B's exit handler would wait for it, and complain of its death."""
        if self._process is not None:
            self._process.kill()
        with contextlib.suppress(Exception, SystemExit):  # whatever W&B still wanted to tell the dead process
            self.close()


class WandbRun:
    """An open run."""

    def __init__(self, spec: StageSpec, mode: str, init_seconds: float, finish_seconds: float) -> None:
        """Open the run in ``mode`` ``online`` or ``offline``, and drop what earlier attempts left on the disk.

        Each attempt's run begins with the history up to its first step, so the files of the attempts before repeat it.
        """
        import wandb

        self._wandb = wandb
        self._spec = spec
        self._mode = mode
        self._folder = wandb_folder(spec)
        self._run: Any = wandb.init(
            project=spec.tracking.project,
            group=spec.tracking.group,
            job_type=spec.run,
            name=spec.stage,
            id=artifact_name(spec.stage, spec.key),
            resume="allow",
            mode=mode,  # type: ignore[arg-type]
            dir=spec.work,
            config={"seed": spec.seed, "key": spec.key, "num_processes": spec.distributed.num_processes, **spec.config},
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_job_creation=True,
                label_disable=True,
                save_code=False,
                init_timeout=init_seconds,
                finish_timeout=finish_seconds,
                finish_timeout_raises=True,
            ),
        )
        self._directory = Path(self._run.dir).parent
        for directory in self._folder.glob("*run-*"):
            if directory.is_dir() and not directory.is_symlink() and directory.name != self._directory.name:
                shutil.rmtree(directory, ignore_errors=True)  # a killed attempt's wandb-core may still write there

    def log(self, metrics: Mapping[str, Any], step: int, seconds: float) -> None:
        """Send scalars of one step, logged at ``seconds`` since 1970, unless the server has it from another attempt."""
        if step >= self._run.starting_step:
            self._run.log({**metrics, "_timestamp": seconds}, step=step)

    def backfill(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Send lines of `metrics.jsonl`."""
        for row in rows:
            metrics = {name: value for name, value in row.items() if name not in ("step", "seconds", "time")}
            self.log(metrics, row["step"], row["time"])

    def record(self, manifest: Manifest) -> None:
        """Add what the committed artifact says: results, tables, page, where it ran, and the edges of its lineage."""
        directory = Path(self._spec.output).resolve()
        self._run.config.update(
            {"packages": manifest.packages, "hardware": manifest.hardware, "licenses": manifest.licenses}
            | {"code_digest": manifest.code_digest, "digest": manifest.digest},
            allow_val_change=True,
        )
        shown = {name: self._table(rows) for name, rows in tables(directory / "summary.json").items()}
        shown |= {page.stem: self._wandb.Html(str(page), inject=False) for page in sorted(directory.glob("*.html"))}
        if shown:
            self._run.log(shown)
        self._run.summary.update(
            {"headline": manifest.headline, "seconds": manifest.wall_seconds, "tokens": manifest.tokens}
            | numbers(manifest.metrics)
            | numbers(manifest.facts.get("accounting", {}), "accounting")
        )
        for parent in dict.fromkeys(self._spec.inputs.values()):
            # `use_artifact` refuses to work offline; this is what it does first when online.
            self._run._log_artifact(self._reference(Path(parent)), is_user_created=True, use_after_commit=True)
        self._run.log_artifact(self._reference(directory))

    def finish(self, complete: bool) -> None:
        """Close the run; ``complete`` says that the stage is committed and recorded.

        Raises TimeoutError when the server does not take everything in time.
        """
        self._run.finish(exit_code=0 if complete else 1)
        if complete:
            name = UPLOADED if self._mode == "online" else RECORDED
            write_text_atomic(self._folder / name, self._directory.name + "\n")

    def _table(self, rows: list[dict[str, Any]]) -> Any:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        return self._wandb.Table(columns=columns, data=[[row.get(name) for name in columns] for row in rows])

    def _reference(self, directory: Path) -> Any:
        """Return an artifact as W&B's: its files by reference, of which only the manifest is read."""
        manifest = read_manifest(directory)
        artifact = self._wandb.Artifact(
            directory.resolve().name,
            manifest.kind,
            metadata={"digest": manifest.digest, "key": manifest.key, "stage": manifest.stage, "run": manifest.run},
        )
        for name in sorted(manifest.files):
            if not name.startswith(f"{LOGS}/"):
                artifact.add_reference((directory.resolve() / name).as_uri(), name=name, checksum=False)
        artifact.add_reference((directory.resolve() / MANIFEST).as_uri(), name=MANIFEST, checksum=True)
        return artifact


def wandb_folder(spec: StageSpec) -> Path:
    """Return where a stage's W&B files are."""
    return Path(spec.work) / "wandb"
