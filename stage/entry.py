"""The entry of every stage process: read the spec, take the lease, run the stage function, commit what it made.

python -m posttrain.data.curate --spec work/…/spec.json            as the pipeline starts it
accelerate launch -m posttrain.train.sft inputs.model=DIR inputs.data=DIR output=DIR learning_rate=1e-5   by hand
"""

from __future__ import annotations

import dataclasses
import logging
import os
import platform
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from posttrain.stage import heartbeat
from posttrain.stage.artifact import LOGS, Manifest, clear_work, commit, is_artifact, read_manifest
from posttrain.stage.by_hand import BY_HAND, require_own_places, require_same, spec_by_hand
from posttrain.stage.errors import EXIT_DONE, EXIT_FAILED, PosttrainError, UsageError, from_system
from posttrain.stage.lease import Lease
from posttrain.stage.leash import follow
from posttrain.stage.outcome import Outcome, read_outcome
from posttrain.stage.outlet import outlive_readers
from posttrain.stage.ranks import adopt_slurm_rank
from posttrain.stage.schema import build, to_dict
from posttrain.stage.spec import StageSpec
from posttrain.stage.stop import end_at_stop_signals
from posttrain.stage.trackers import open_tracker
from posttrain.stage.tracking import METRICS, Tracker
from posttrain.stage.whole import require_whole

C = TypeVar("C")
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft", "deepspeed", "datasets", "tokenizers", "pyarrow")


@dataclasses.dataclass
class Context:
    """What a stage function may use besides its configuration."""

    spec: StageSpec
    inputs: dict[str, Path]
    output: Path
    """Empty temporary directory; what it holds when the function returns becomes the artifact."""
    work: Path
    """Survives a crash: checkpoints live here."""
    tracker: Tracker
    main_process: bool


@dataclasses.dataclass
class StageResult:
    """What a stage function returns on the first rank."""

    metrics: dict[str, Any] = dataclasses.field(default_factory=dict)
    headline: str = ""
    """The one figure for the pipeline's table, such as ``eval loss 1.23``."""
    tokens: int = 0
    """Tokens processed, for tokens/s."""
    licenses: list[str] = dataclasses.field(default_factory=list)
    consulted: list[str] = dataclasses.field(default_factory=list)
    """Inputs of which nothing went into what was made, so that their licences do not hold for it."""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    """What later stages or a reader should know: template hash, parameters, row accounting."""


StageFunction = Callable[[Any, Context], StageResult]


def stage_main(function: StageFunction, config_class: type[Any], kind: str) -> None:
    """Run a stage as this process, and exit with the code that `posttrain.stage.errors` documents."""
    adopt_slurm_rank()
    outlive_readers()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    main_process = os.environ.get("RANK", "0") == "0"
    outcome: Path | None = None
    try:
        spec = _spec_from_arguments(sys.argv[1:], config_class, function)
        outcome = Path(spec.outcome)
        end_at_stop_signals(outcome, Path(spec.work))
        follow()
        heartbeat.start(int(os.environ.get("RANK", "0")))
        config = build(config_class, spec.config, spec.run)
        _run(function, config, spec, kind, main_process)
        ended = Outcome(EXIT_DONE)
    except PosttrainError as error:
        ended = Outcome(error.exit_code, str(error), type(error).__name__)
        print(f"error: {error}", file=sys.stderr)
    except Exception as error:
        ended = Outcome(EXIT_FAILED, f"{type(error).__name__}: {error}", type(error).__name__)
        if (known := from_system(error, str(outcome and outcome.parent))) is not None:
            ended = Outcome(known.exit_code, str(known), type(known).__name__)
            print(f"error: {known}", file=sys.stderr)
        ended = _first_outcome(outcome) or ended
        if ended.code == EXIT_FAILED and known is None:
            traceback.print_exc()
    if outcome is not None and (main_process or ended.code != EXIT_DONE) and _first_outcome(outcome) is None:
        ended.write(outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ended.code) if ended.code != EXIT_DONE and not main_process else sys.exit(ended.code)


def _first_outcome(path: Path | None) -> Outcome | None:
    """Return the outcome that another rank left: what ended it is why this one lost its connection to it."""
    return read_outcome(path) if path is not None else None


def _run(function: StageFunction, config: Any, spec: StageSpec, kind: str, main_process: bool) -> None:
    output, work = Path(spec.output), Path(spec.work)
    temporary = output.with_name(f".{output.name}.incomplete")
    if not main_process:
        threading.Thread(target=_end_once_committed, args=(output,), name="committed", daemon=True).start()
        function(config, _context(spec, temporary, work, main_process))
        return
    with Lease(work / "lease", spec.pipeline, spec.lease_wait_seconds):
        if is_artifact(output):
            _leave_as_made(spec, read_manifest(output), type(config))
            clear_work(work)
            return
        _require_inputs(spec)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        started = time.monotonic()
        context = _context(spec, temporary, work, main_process)
        try:
            result = function(config, context)
            history = work / METRICS
            if history.exists():
                (temporary / LOGS).mkdir(exist_ok=True)
                shutil.copy2(history, temporary / LOGS / history.name)
            manifest = _manifest(result, config, spec, kind, time.monotonic() - started)
            context.tracker.record(commit(temporary, output, manifest))
        finally:
            context.tracker.finish()
        clear_work(work)


def _leave_as_made(spec: StageSpec, made: Manifest, config_class: type[Any]) -> None:
    """Say to whom started the stage by hand that nothing was made; raise UsageError when he wanted something else."""
    if spec.pipeline == BY_HAND:
        require_same(spec, made, config_class)
        print(f"{spec.output}: made already with these knobs; nothing to do", file=sys.stderr)


def _require_inputs(spec: StageSpec) -> None:
    """Raise UsageError when an input is not, byte for byte, the artifact that the stage's key was made from."""
    for name, path in spec.inputs.items():
        digest = require_whole(Path(path)).digest
        if name in spec.parents and digest != spec.parents[name].digest:
            raise UsageError(
                f"inputs.{name}: {path} has digest {digest[:12]} by now, but was {spec.parents[name].digest[:12]} when "
                "the stage got its work order; run the same command again"
            )


def _end_once_committed(output: Path) -> None:
    """End this rank when the artifact stands: the first rank may find it there and return, and never join."""
    while not is_artifact(output):
        time.sleep(1.0)
    os._exit(EXIT_DONE)


def _context(spec: StageSpec, temporary: Path, work: Path, main_process: bool) -> Context:
    inputs = {name: Path(path) for name, path in spec.inputs.items()}
    work.mkdir(parents=True, exist_ok=True)
    return Context(spec, inputs, temporary, work, open_tracker(spec, main_process), main_process)


def _manifest(result: StageResult, config: Any, spec: StageSpec, kind: str, seconds: float) -> Manifest:
    licenses = set(result.licenses)
    for path in (path for name, path in spec.inputs.items() if name not in result.consulted):
        licenses.update(read_manifest(Path(path)).licenses)
    return Manifest(
        kind=kind,
        stage=spec.stage,
        run=spec.run,
        key=spec.key,
        digest="",
        files={},
        parents=spec.parents,
        config=to_dict(config),
        code_digest=spec.code_digest,
        seed=spec.seed,
        metrics=result.metrics,
        headline=result.headline,
        tokens=result.tokens,
        wall_seconds=round(seconds, 2),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        packages=_packages(),
        hardware=_hardware(spec),
        licenses=sorted(licenses),
        facts=result.facts,
    )


def _packages() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _hardware(spec: StageSpec) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "processes": spec.distributed.num_processes,
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        facts["torch_threads"] = torch.get_num_threads()
        facts["accelerators"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts


def _spec_from_arguments(arguments: list[str], config_class: type[Any], function: StageFunction) -> StageSpec:
    if len(arguments) == 2 and arguments[0] == "--spec":
        return StageSpec.read(Path(arguments[1]))
    spec = spec_by_hand(arguments, config_class, function.__module__)
    if os.environ.get("RANK", "0") == "0":
        require_own_places(spec, config_class)
    Path(spec.outcome).unlink(missing_ok=True)  # a launcher does so before it starts the ranks
    return spec
