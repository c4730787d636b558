"""Brings a finished stage to the W&B server, whatever of it is there already."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import write_text_atomic
from posttrain.stage.spec import StageSpec
from posttrain.stage.tracking import logged_metrics
from posttrain.stage.wandb.run import RECORDED, UPLOADED, WandbRun, WandbService, wandb_folder

INIT_SECONDS = 60.0
UPLOAD_SECONDS = 600.0
"""For one stage: its history, tables and report; never weights."""


class UploadError(PosttrainError):
    """The server did not take a stage."""


def log_in() -> None:
    """Raise UsageError when no API key is configured, and UploadError when the server does not accept it."""
    import wandb
    from wandb.errors import AuthenticationError

    wandb.setup(settings=wandb.Settings(silent=True, mode="online"))  # whatever WANDB_MODE said while training
    try:
        found = wandb.login(prompt=False)
    except AuthenticationError as error:
        WandbService().kill()  # it has nothing to send, and its own end may wait for the server that does not answer
        raise UploadError(f"W&B: {error}") from None
    if not found:
        raise UsageError("W&B: no API key is configured; run `wandb login`, or set WANDB_API_KEY")


def is_uploaded(spec: StageSpec) -> bool:
    """Return whether the server has all of a finished stage."""
    return (wandb_folder(spec) / UPLOADED).exists()


def upload(spec: StageSpec) -> None:
    """Upload a committed stage; raises UploadError with W&B's reason.

    Its offline file is sent where there is one, since that holds system metrics too. A file that was sent in part is
    not sent again: W&B would append its steps under new numbers. The run is then continued from `metrics.jsonl`, after
    the last step that the server knows of.
    """
    folder = wandb_folder(spec)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = _unsent_file(folder)
        if file is None:
            _replay(spec)
        else:
            _send(file)
            write_text_atomic(folder / UPLOADED, file.parent.name + "\n")
    except Exception as error:  # W&B's own are of many kinds
        raise UploadError(f"{type(error).__name__}: {error}") from error


def _unsent_file(folder: Path) -> Path | None:
    """Return the offline file of the whole stage, unless a part of it was sent before."""
    if not (folder / RECORDED).exists():
        return None
    directory = folder / (folder / RECORDED).read_text(encoding="utf-8").strip()
    files = list(directory.glob("*.wandb"))
    begun = list(directory.glob("*.syncstate"))
    return files[0] if files and not begun else None


def _send(file: Path) -> None:
    """Run `wandb sync`, which marks the files that it has sent in full."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(file.resolve())],
        cwd=file.parent,  # its log goes below the working directory
        env={**os.environ, "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "online"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=UPLOAD_SECONDS,
        check=False,
    )
    if not file.with_name(f"{file.name}.synced").exists():
        raise UploadError(f"`wandb sync` ended with {done.returncode}: {done.stdout.strip()[-500:]}")


def _replay(spec: StageSpec) -> None:
    output = Path(spec.output)
    service = WandbService()
    try:
        run = WandbRun(spec, "online", INIT_SECONDS, UPLOAD_SECONDS)
        run.backfill(logged_metrics(output))
        run.record(read_manifest(output))
        run.finish(complete=True)
    except Exception:
        service.kill()
        raise
