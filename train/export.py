"""Export a model artifact as a plain Hugging Face folder.

python -m posttrain.train.export --artifact outputs/artifacts/dpo-… --out my-model [--merge]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.models.load import (
    BASE_FILE,
    backbone_directory,
    is_adapter,
    load_policy,
    load_reward_model,
)
from posttrain.models.pretrained import find_weights, stored_parameters
from posttrain.stage.artifact import LOGS, MANIFEST, read_manifest, trusts_remote_code
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import files_under, follow_umask, write_json_atomic
from posttrain.stage.whole import require_whole

EXPORTABLE = ("model", "reward_model")
GENERATION = "generation_config.json"
CARD = "README.md"


def export(artifact: Path, out: Path, merge: bool, card: Path | None = None) -> str:
    """Write ``artifact`` to ``out``: full weights as they are, an adapter alone, or merged into its backbone.

    ``card`` is a file with its model card, which becomes the folder's README.md.
    Returns what the user should know of the folder, if anything. Raises UsageError when the artifact is damaged or not
    a model, or ``out`` already exists.
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
        backbone = backbone_directory(artifact)
        model = load(artifact).merge_and_unload().to(stored_dtype(backbone))
        model.save_pretrained(str(temporary))
        load_tokenizer(artifact).save_pretrained(str(temporary))
        code = backbone.glob("*.py") if trusts_remote_code(artifact) else ()
        _copy_files([*code, *([backbone / GENERATION] if manifest.kind == "model" else [])], temporary)
    else:
        _copy(artifact, temporary)
    note = _name_base(artifact, temporary, out) if is_adapter(artifact) and not merge else ""
    if card is not None:
        shutil.copyfile(card, temporary / CARD)
    follow_umask(temporary)
    temporary.rename(out)
    return note


def stored_dtype(folder: Path) -> torch.dtype:
    """Return the precision that a model folder's weights are stored in; merging is done in float32."""
    _, name = stored_parameters(find_weights(folder))
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _copy(artifact: Path, target: Path) -> None:
    for path in files_under(artifact):
        name = path.relative_to(artifact)
        if name.parts[0] not in {LOGS, MANIFEST, BASE_FILE}:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / name)


def _copy_files(paths: Iterable[Path], target: Path) -> None:
    for path in paths:
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _name_base(artifact: Path, target: Path, out: Path) -> str:
    """Write what an exported adapter's base is into its configuration; return what the user should know of it.

    It is the Hub's model where the base stage took that as it is; otherwise the base artifact, by its path from
    ``out``.
    """
    backbone = backbone_directory(artifact)
    if read_manifest(artifact).kind == "model":
        _copy_files([backbone / GENERATION], target)
    facts = read_manifest(backbone).facts
    if facts.get("as_published"):
        _set_base(target, str(facts["hub_name"]), str(facts["commit"]))
        return ""
    name, note = path_to_base(backbone.resolve(), out.resolve())
    _set_base(target, name, None)
    return f"its base is {name}, {note}; --merge makes a folder that needs none"


def path_to_base(base: Path, out: Path) -> tuple[str, str]:
    """Return the path by which an exported adapter names its base, and what is to be known of it.

    It is a relative one unless the two have no folder in common.
    """
    if os.path.commonpath([base, out]) == base.anchor:
        return str(base), "an absolute path, which holds on this machine alone"
    return os.path.relpath(base, out), "as seen from there: move the two together, and load it from that folder"


def _set_base(target: Path, name: str, revision: str | None) -> None:
    file = target / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    write_json_atomic(file, config | {"base_model_name_or_path": name, "revision": revision})


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--artifact", type=Path, required=True, help="directory of a committed model artifact")
    parser.add_argument("--out", type=Path, required=True, help="directory to create")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its backbone")
    parser.add_argument("--card", type=Path, help="file with its model card, as `posttrain export` writes it")
    arguments = parser.parse_args()
    try:
        note = export(arguments.artifact, arguments.out, arguments.merge, arguments.card)
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"exported to {arguments.out}" + (f"; {note}" if note else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
