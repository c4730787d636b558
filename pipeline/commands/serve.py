"""Turns `posttrain serve …` into the command of an existing server: vLLM, or `transformers serve`."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path

from posttrain.pipeline.runs.store import find_model
from posttrain.sample.config.asking import served_name
from posttrain.stage.artifact import MANIFEST, trusts_remote_code
from posttrain.stage.errors import UsageError
from posttrain.stage.whole import require_whole

VLLM = "VLLM_PYTHON"
"""Variable that names the interpreter of vLLM's environment, since its pins exclude ours."""
NEEDS = ("fastapi", "uvicorn", "openai")
"""What `transformers serve` needs besides transformers."""
TEMPLATE = "chat_template.jinja"


@dataclasses.dataclass(frozen=True)
class Serving:
    """How a model is served."""

    host: str = "localhost"
    port: int = 8000
    name: str | None = None
    """What requests call the model; None is the artifact's stage."""
    dtype: str | None = None
    """Precision; None is that of the stored weights."""
    vllm: str | None = None
    """Interpreter of vLLM's environment; None takes `transformers serve`."""


def serve(root: Path, text: str, serving: Serving, dry_run: bool) -> int:
    """Print the command that serves a model, and become it unless this is a dry run."""
    folder = model_folder(root, text)
    command, called = server_command(folder, serving)
    print(shlex.join(command), flush=True)
    if not dry_run:
        print(f'http://{serving.host}:{serving.port}/v1, "model": "{called}"', file=sys.stderr, flush=True)
        os.execv(command[0], command)
    return 0


def model_folder(root: Path, text: str) -> Path:
    """Return the folder of a model: of a whole artifact, or any other with a `config.json`.

    Raises UsageError where it is no language model with weights of its own.
    """
    folder = Path(text) if (Path(text) / "adapter_config.json").is_file() else find_model(root, text)
    if (folder / MANIFEST).is_file():
        kind = require_whole(folder).kind
        if kind != "model":
            raise UsageError(f"{folder.name}: a {kind} artifact; give a model")
    if (folder / "adapter_config.json").is_file():
        raise UsageError(
            f"{folder.name}: an adapter; posttrain export {text} FOLDER --merge makes a model of it, then posttrain "
            "serve FOLDER"
        )
    return folder


def server_command(folder: Path, serving: Serving) -> tuple[list[str], str]:
    """Return the command line that serves a folder, and what requests call the model."""
    dtype = serving.dtype or stored_dtype(folder)
    is_artifact = (folder / MANIFEST).is_file()
    trust = ["--trust-remote-code"] if is_artifact and trusts_remote_code(folder) else []
    place = ["--host", serving.host, "--port", str(serving.port)]
    if serving.vllm is None:
        called = served_name(folder, "transformers")
        return [*_transformers(serving), called, *place, "--dtype", dtype, *trust], called
    python = Path(serving.vllm)
    if not os.access(python, os.X_OK) or python.is_dir():
        raise UsageError(f"--vllm {serving.vllm}: no program; give the Python of an environment that has vLLM")
    name = serving.name or served_name(folder, "vllm")
    template = ["--chat-template", str(folder / TEMPLATE)] if (folder / TEMPLATE).is_file() else []
    command = [str(python), "-m", "vllm.entrypoints.cli.main", "serve", str(folder), "--served-model-name", name]
    # the tokens that end a turn stand in the folder's generation config, and nowhere else
    return [*command, *place, "--dtype", dtype, *template, "--generation-config", "auto", *trust], name


def _transformers(serving: Serving) -> list[str]:
    """Return the words that start `transformers serve`; raise UsageError where that cannot be, or do what is asked."""
    if missing := [name for name in NEEDS if importlib.util.find_spec(name) is None]:
        raise UsageError(
            f"transformers serve needs {', '.join(missing)}: pip install 'posttrain[serve]'; or give --vllm PYTHON"
        )
    if serving.name is not None:
        raise UsageError(f"--name {serving.name}: transformers serve calls a model by its folder; leave it out")
    return [str(Path(sys.executable).with_name("transformers")), "serve"]


def stored_dtype(folder: Path) -> str:
    """Return the precision that a model's `config.json` states; ``auto`` where it does not."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str(config.get("dtype") or config.get("torch_dtype") or "auto")
