"""Export a model artifact as a plain Hugging Face folder.

python -m posttrain.train.export --artifact outputs/artifacts/dpo-… --out my-model [--merge]
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.models.load import BASE_FILE, backbone_directory, is_adapter, load_policy, load_reward_model
from posttrain.models.pretrained import find_weights, stored_parameters
from posttrain.stage.artifact import LOGS, MANIFEST
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import files_under, follow_umask
from posttrain.stage.whole import require_whole

EXPORTABLE = ("model", "reward_model")


def export(artifact: Path, out: Path, merge: bool) -> None:
    """Write ``artifact`` to ``out``: full weights as they are, an adapter alone, or merged into its backbone.

    Raises UsageError when the artifact is damaged or not a model, or ``out`` already exists.
    """
    manifest = require_whole(artifact)
    if manifest.kind not in EXPORTABLE:
        kinds = " and ".join(EXPORTABLE)
        raise UsageError(f"{artifact.name}: a {manifest.kind} artifact; only {kinds} can be exported")
    if out.exists():
        raise UsageError(f"{out}: exists already; give a new directory")
    temporary = out.with_name(f".{out.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if merge and is_adapter(artifact):
        load = load_policy if manifest.kind == "model" else load_reward_model
        model = load(artifact).merge_and_unload().to(stored_dtype(backbone_directory(artifact)))
        model.save_pretrained(str(temporary))
        load_tokenizer(artifact).save_pretrained(str(temporary))
    else:
        _copy(artifact, temporary)
    follow_umask(temporary)
    temporary.rename(out)


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the precision that a model folder's weights are stored in; merging is done in float32."""
    _, name = stored_parameters(find_weights(folder))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _copy(artifact: Path, target: Path) -> None:
    backbone = backbone_directory(artifact)  # checks that an adapter's backbone is there and is the right one
    for path in files_under(artifact):
        name = path.relative_to(artifact)
        if name.parts[0] not in {LOGS, MANIFEST, BASE_FILE}:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)
    if is_adapter(artifact):
        config = target / "adapter_config.json"
        config.write_text(_with_base(config.read_text(encoding="utf-8"), backbone), encoding="utf-8")


def _with_base(adapter_config: str, backbone: Path) -> str:
    """Return the adapter's configuration with its backbone as an absolute path, so that peft finds it."""
    config = json.loads(adapter_config)
    config["base_model_name_or_path"] = str(backbone.resolve())
    return json.dumps(config, indent=2) + "\n"


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--artifact", type=Path, required=True, help="directory of a committed model artifact")
    parser.add_argument("--out", type=Path, required=True, help="directory to create")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its backbone")
    arguments = parser.parse_args()
    try:
        export(arguments.artifact, arguments.out, arguments.merge)
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"exported to {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
