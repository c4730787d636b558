"""Reads what finished training stages logged, for `posttrain plan --calibrate DIR`."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.pipeline.runs.store import artifact_directories
from posttrain.plan.calibration import Seen, card_of, usual_rate
from posttrain.plan.cards import CPU_CORE_FLOPS, card_named
from posttrain.plan.families import read_shape
from posttrain.plan.model import Head, ModelShape, count_adapter, training_flops_per_token
from posttrain.plan.passes import peak_flops
from posttrain.stage.artifact import Manifest, read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.tracking import METRICS, read_metrics

TRAINED = {"train.sft": "lm", "train.dpo": "lm", "train.kto": "lm", "train.reward": "score"}
"""Stage types whose rate is of one model alone, and that model's head."""


def seen_below(root: Path) -> list[Seen]:
    """Return what each finished training stage below a folder of artifacts made of its machine.

    Raises UsageError when there is none.
    """
    found = []
    for directory in artifact_directories(root):
        manifest = read_manifest(directory)
        if manifest.run in TRAINED and (seen := _seen(directory, manifest)) is not None:
            found.append(seen)
    if not found:
        raise UsageError(
            f"--calibrate {root}: no finished training stage there; give a folder that a run wrote, such as outputs"
        )
    return found


def _seen(directory: Path, manifest: Manifest) -> Seen | None:
    lines = read_metrics(directory / "logs" / METRICS)
    rate = usual_rate([line["tokens_per_second"] for line in lines if "tokens_per_second" in line])
    shape = _shape(directory)
    machine, peak = _peak(manifest)
    if rate is None or shape is None or machine is None:
        return None
    config = manifest.config
    head: Head = "score" if TRAINED[manifest.run] == "score" else "lm"
    adapter = config["adapter"]
    low_rank = None if adapter["kind"] == "full" else count_adapter(shape, adapter["rank"], adapter["target_modules"])
    rows = manifest.metrics["steps"] * config["global_batch_size"]
    length = round(manifest.tokens / max(rows, 1) / (2 if manifest.run in ("train.dpo", "train.reward") else 1))
    flops = training_flops_per_token(shape, length, head=head, adapter_parameters=low_rank)
    peaks = [line["peak_memory_gb"] * 1e9 for line in lines if "peak_memory_gb" in line]
    return Seen(manifest.stage, manifest.run, machine, rate, rate * flops / peak, max(peaks, default=None))


def _shape(directory: Path) -> ModelShape | None:
    """Return the shape of a model artifact, or of the backbone that its adapter sits on; None where it is not known."""
    base = directory / "base.json"
    try:
        if base.is_file():
            directory = directory.parent / json.loads(base.read_text(encoding="utf-8"))["base"]
        return read_shape(directory)
    except (UsageError, OSError, ValueError, KeyError):
        return None


def _peak(manifest: Manifest) -> tuple[str | None, float]:
    """Return the card of a stage, or ``cpu``, and the peak FLOP/s of its processes; None for a card without a sheet."""
    hardware, processes = manifest.hardware, manifest.hardware.get("processes", 1)
    if not hardware.get("accelerators"):
        return "cpu", processes * hardware.get("torch_threads", 1) * CPU_CORE_FLOPS
    name = card_of(hardware["accelerators"][0])
    if name is None:
        return None, 0.0
    config = manifest.config
    return name, processes * peak_flops(card_named(name, "card"), config["dtype"], config.get("tf32", False))
