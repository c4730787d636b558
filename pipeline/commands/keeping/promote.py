"""`posttrain promote`: whether a model may be built upon, and letting one stand against its gate's verdict."""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.graph.graph import GATE, build_graph
from posttrain.pipeline.runs.promotion import overridden, override, refusal
from posttrain.pipeline.runs.resolve import Made, committed
from posttrain.pipeline.runs.rundir import find_run, read_config
from posttrain.stage.errors import EXIT_DONE, EXIT_GATE, UsageError, did_you_mean
from posttrain.stage.spec import StageSpec


def promote_stage(root: Path, run_name: str, name: str, is_override: bool, why: str | None) -> int:
    """Print what the gates of a stage say of its model; with ``is_override``, record that it stands all the same.

    ``name`` is the gate or the stage that made the model. Raises UsageError when there is no gate, it has not judged
    yet, or an override gives no reason.
    """
    if is_override != bool(why and why.strip()):
        raise UsageError("promote: give --override and --why TEXT together; the reason is recorded")
    run = find_run(root, run_name)
    stages = {stage.name: stage for stage in build_graph(read_config(run))}
    model_of = {
        stage.name: stages[stage.inputs["after"]].inputs["model"] for stage in stages.values() if stage.type.run == GATE
    }
    gates = [gate for gate, model in model_of.items() if name in (gate, model)]
    if not gates:
        known = [*model_of, *model_of.values()]
        raise UsageError(
            f"promote {name!r}: no gate of run {run.name}, nor a stage with one{did_you_mean(name, known)}"
        )
    code = EXIT_DONE
    for gate in gates:
        verdict = _verdict(run.spec(gate), gate)
        why_not = refusal(gate, verdict)
        if why_not is None or is_override:
            print(f"{gate}: {_said(gate, verdict, why if why_not is not None else None)}")
        else:
            print(f"{gate}: not promoted: {why_not}")
            code = EXIT_GATE
    return code


def _said(gate: str, verdict: Made, why: str | None) -> str:
    model: str = verdict.manifest.facts["model"]
    if why is not None:
        return f"{model} stands against the verdict; recorded in {override(gate, verdict, why)}"
    stands = overridden(verdict.directory.parent / model, verdict)
    return f"{verdict.manifest.facts['reason']}{' (overridden)' if stands else ''}"


def _verdict(path: Path, gate: str) -> Made:
    made = committed(StageSpec.read(path)) if path.exists() else None
    if made is None:
        raise UsageError(f"promote: gate {gate} has not judged yet; `posttrain run` does")
    return made
