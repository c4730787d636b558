"""What follows from a gate's verdict: a record of promotion beside the model, or a reason that nothing builds upon it.

A promotion is a hashed record beside the model: by the gate that it passed, or by a person who overrides the verdict.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.runs.resolve import Made
from posttrain.stage.artifact import is_artifact, read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.record import read_record, records_of, write_record

PROMOTION = "promotion"
"""The kind of record that says a model may be built upon."""


def refusal(gate: str, verdict: Made) -> str | None:
    """Return why nothing may build upon the model that a verdict is about, or None; what passed is recorded.

    Raises UsageError when a record beside the model is not as it was written.
    """
    facts = verdict.manifest.facts
    model = _model(verdict)
    if facts["blocks"] and not overridden(model, verdict):
        return f"{facts['reason']}; `posttrain promote {gate} --override --why TEXT` lets it stand all the same"
    if facts["state"] == "passed" and not _promotions(model, verdict):
        _record(model, verdict, gate, facts["reason"], override=False)
    return None


def overridden(model: Path, verdict: Made) -> bool:
    """Return whether a person let the model stand against this very verdict."""
    return any(read_record(path)["override"] for path in _promotions(model, verdict))


def override(gate: str, verdict: Made, why: str) -> Path:
    """Record that a model stands against its verdict, and why; return the record's file."""
    return _record(_model(verdict), verdict, gate, why, override=True)


def _record(model: Path, verdict: Made, gate: str, because: str, override: bool) -> Path:
    said = {"gate": gate, "verdict": verdict.directory.name, "verdict_digest": verdict.manifest.digest}
    state = verdict.manifest.facts["state"]
    return write_record(
        model, PROMOTION, verdict.manifest.digest, {**said, "state": state, "override": override, "because": because}
    )


def _promotions(model: Path, verdict: Made) -> list[Path]:
    name = f"{PROMOTION}-{verdict.manifest.digest[:16]}.json"
    found = [path for path in records_of(model) if path.name == name]
    digest = read_manifest(model).digest
    return [path for path in found if read_record(path)["digest"] == digest]


def _model(verdict: Made) -> Path:
    model: Path = verdict.directory.parent / verdict.manifest.facts["model"]
    if not is_artifact(model):
        raise UsageError(f"{verdict.directory.name}: its model {model.name} is gone; the same `posttrain run` makes it")
    return model
