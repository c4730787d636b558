"""Pretrained models in Hugging Face folders: where their files are, and whether they are all there and safe to read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import yaml
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open

from posttrain.stage import heartbeat
from posttrain.stage.errors import UsageError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md")


def download(
    hub_name: str,
    revision: str | None,
    with_code: bool = False,
    *,
    what: str | None = None,
    fix: str = "train.base.path to a local copy",
) -> Path:
    """Return the local folder of a model on the Hugging Face Hub, downloading what the cache lacks.

    Honours ``HF_HUB_OFFLINE``. ``what`` is asked for and what is to be set otherwise, ``fix``, are for messages. Raises
    UsageError, naming the ways out, when the model cannot be had.
    """
    files = [*_HUB_FILES, "*.py"] if with_code else list(_HUB_FILES)
    try:
        with heartbeat.waiting(f"downloading {hub_name}"):
            return Path(snapshot_download(hub_name, revision=revision, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{what or f'train.base.hub_name={hub_name}'}: not in the local cache, no folder here, and no download "
            f"({type(error).__name__}); where there is a network and access, run `hf download {hub_name}` or unset "
            f"HF_HUB_OFFLINE, or set {fix}"
        ) from None


def find_weights(folder: Path) -> list[Path]:
    """Return the weight files of a model folder: one, or an index and its shards.

    A folder that has both is read as transformers reads it: the index was left there by an earlier save.
    Raises UsageError that says what was looked for when something is missing or only pickled weights are there.
    """
    wanted = f"a Hugging Face folder with config.json, {WEIGHTS} (or {INDEX} and its shards) and tokenizer.json"
    if not folder.is_dir():
        raise UsageError(f"train.base.path={folder}: no such folder; give {wanted}, as `hf download` makes one")
    if not (folder / "config.json").is_file():
        raise UsageError(f"{folder}: no config.json; give {wanted}")
    if (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file():
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        files = [folder / INDEX, *(folder / shard for shard in sorted(shards))]
    else:
        files = [folder / WEIGHTS]
    missing = [path.name for path in files if not path.is_file()]
    if not missing:
        return files
    pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickled:
        raise UsageError(
            f"{folder}: weights only as {pickled[0]}, and pickled files are never opened, since they can run code; "
            "convert them to safetensors"
        )
    raise UsageError(f"{folder}: no {', '.join(missing)}; give {wanted}, as `hf download` makes one")


def stored_parameters(files: Iterable[Path]) -> tuple[int, str]:
    """Return the number of stored parameters and the dtype of the first, from the headers of safetensors files.

    Raises UsageError for a file that is not safetensors, such as a Git LFS pointer.
    """
    parameters, dtype = 0, ""
    for path in files:
        if path.suffix != ".safetensors":
            continue
        try:
            with safe_open(path, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    tensor = tensors.get_slice(name)
                    parameters += math.prod(tensor.get_shape())
                    dtype = dtype or _DTYPES.get(tensor.get_dtype(), tensor.get_dtype())
        except SafetensorError as error:
            raise UsageError(f"{path}: not a safetensors file ({error}); download it again") from None
    return parameters, dtype


def model_license(folder: Path) -> list[str]:
    """Return the licence that a model card declares, if any."""
    card = folder / "README.md"
    if not card.is_file():
        return []
    _, _, rest = card.read_text(encoding="utf-8").partition("---\n")
    header = yaml.safe_load(rest.partition("\n---")[0]) if rest else None
    declared = header.get("license") if isinstance(header, dict) else None
    return [str(declared)] if declared else []
