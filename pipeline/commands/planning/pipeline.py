"""`posttrain plan recipe=…`: what every stage of a pipeline needs and costs, from its configuration alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.pipeline.commands.planning.plots import plot_pipeline, require_plot_file
from posttrain.pipeline.commands.planning.rows import Given
from posttrain.pipeline.commands.planning.stages import SEQUENCES_PER_ROW, work_of
from posttrain.pipeline.commands.planning.writes import writes_of
from posttrain.pipeline.config.pipeline import PipelineConfig
from posttrain.pipeline.graph.graph import Stage, build_graph
from posttrain.pipeline.local.launch import LocalLauncher, local_launcher
from posttrain.plan.calibration import Seen, fitted
from posttrain.plan.cards import CARDS, card_named
from posttrain.plan.disk import most_at_once
from posttrain.plan.figure import Figure, figure
from posttrain.plan.graph import critical_path
from posttrain.plan.page import amount, print_explanations, wide_console
from posttrain.plan.passes import ON_CPU, ON_GPU, Range, Utilisation
from posttrain.plan.table import describe_ways, print_costs, print_memory, print_seen
from posttrain.plan.work import Machine, StagePlan, plan_work
from posttrain.stage.errors import EXIT_DONE, UsageError

if TYPE_CHECKING:
    from posttrain.pipeline.slurm.script import SlurmLauncher

__all__ = ["SEQUENCES_PER_ROW", "PlanOptions", "print_pipeline_plan"]

ASSUMED_CARD = "h100"
"""Where a pipeline is for GPUs and nobody says which."""


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What the user says beside the configuration."""

    card: str | None = None
    """``h100``, or ``h100x8`` for eight of them in this machine."""
    price: float | None = None
    mfu: float | None = None
    given: Given = dataclasses.field(default_factory=Given)
    seen: Sequence[Seen] = ()
    """What runs made of machines, in place of assumptions."""
    explain: bool = False
    as_json: bool = False
    plot: Path | None = None
    """Where a picture of it goes."""


def print_pipeline_plan(config: PipelineConfig, options: PlanOptions | None = None) -> int:
    """Print the plan of a pipeline's stages and return the exit code."""
    options = options or PlanOptions()
    if options.plot is not None:
        require_plot_file(options.plot)
    stages = {stage.name: stage for stage in build_graph(config)}
    options.given.require_stages(stages)
    if options.mfu is not None and not 0 < options.mfu <= 1:
        raise UsageError(f"--mfu {options.mfu}: a share between 0 and 1 is meant, such as 0.4")
    machines, notes = _machines(config, stages, options)
    launcher = _launcher(config, list(stages.values()), options)
    written = {name: writes for name, stage in stages.items() if (writes := writes_of(stage, stages)) is not None}
    plans = [
        plan_work(dataclasses.replace(work, writes=written.get(name)), machines[name])
        for name, stage in stages.items()
        if (work := work_of(stage, stages, launcher.distributed(stage), options.given)) is not None
    ]
    disk = most_at_once(
        [(writes.artifact, writes.checkpoints) for writes in written.values()],
        launcher.max_on_device if isinstance(launcher, LocalLauncher) else None,
    )
    totals = [
        *_totals(plans, {name: list(stage.inputs.values()) for name, stage in stages.items()}),
        figure("disk at once", "B", "disk", "all artifacts, and the checkpoints of stages that run at once", disk=disk),
    ]
    unknown = [plan.work.name for plan in plans if plan.seconds is None]
    if unknown:
        notes.append(f"{', '.join(unknown)}: nothing here tells how many rows there are; give --rows DATASET=N")
    _print(plans, totals, notes, options)
    if options.plot is not None:
        plot_pipeline(plans, machines, options.plot)
    return EXIT_DONE


def _print(plans: Sequence[StagePlan], totals: Sequence[Figure], notes: Sequence[str], options: PlanOptions) -> None:
    if options.as_json:
        print(json.dumps(_plain(plans, totals, notes), ensure_ascii=False, indent=2))
        return
    console = wide_console()
    if options.seen:
        print_seen(options.seen, console)
    if options.explain:
        for plan in plans:
            console.print(f"[bold]{plan.work.name}[/bold] {plan.work.run}")
            print_explanations(plan.figures, console)
    print_memory([plan for plan in plans if plan.memory is not None], console)
    print_costs(plans, console)
    if options.explain:
        print_explanations(totals, console)
    else:
        console.print(", ".join(f"{item.name} {amount(item)}" for item in totals), highlight=False)
    for line in (*(line for plan in plans for line in describe_ways(plan)), *notes):
        console.print(line, markup=False, highlight=False)


def _plain(plans: Sequence[StagePlan], totals: Sequence[Figure], notes: Sequence[str]) -> dict[str, Any]:
    return {
        "stages": {
            plan.work.name: {
                "run": plan.work.run,
                "processes": plan.work.distributed.num_processes,
                "steps": plan.work.steps,
                "memory": dataclasses.asdict(plan.memory) | {"total": plan.memory.total} if plan.memory else None,
                "limit": plan.limit,
                "fits": plan.fits,
                "largest_micro_batch": plan.largest if plan.memory else None,
                "ways": [dataclasses.asdict(way) for way in plan.ways],
                "figures": [item.as_json() for item in plan.figures],
            }
            for plan in plans
        },
        "totals": [item.as_json() for item in totals],
        "notes": list(notes),
    }


def _totals(plans: Sequence[StagePlan], needs: Mapping[str, Sequence[str]]) -> list[Figure]:
    made: list[Figure] = []
    known = [plan for plan in plans if plan.seconds is not None]
    ways = {"longest way": "expected", "longest way, at least": "low", "longest way, at most": "high"}
    for name, which in ways.items() if known else ():
        seconds = {plan.work.name: getattr(plan.seconds, which) for plan in known}
        path, total = critical_path(seconds, needs)
        made.append(figure(name, "s", "seconds", f"stages that wait for each other: {' → '.join(path)}", seconds=total))
    every = sum(plan.seconds.expected for plan in known if plan.seconds is not None)
    if known:
        made.append(figure("one after the other", "s", "seconds", "stages that move a model", seconds=every))
    for name, unit in (("cost", "$"), ("energy", "kWh")):
        found = [item.value for plan in plans if (item := plan.figure(name)) is not None]
        if found:
            scope = "all stages" if len(known) == len(plans) else f"the {len(found)} stages that are known"
            made.append(figure(f"{name} of {scope}", unit, "total", "sum over the stages", total=sum(found)))
    return made


def _launcher(config: PipelineConfig, stages: list[Stage], options: PlanOptions) -> LocalLauncher | SlurmLauncher:
    """Return who starts the stages; a card with a number stands for a machine with so many, wherever it is."""
    if config.launcher.kind == "slurm":
        from posttrain.pipeline.slurm.script import SlurmLauncher

        return SlurmLauncher(config)
    _, count = _card_and_count(options.card)
    if count is None:
        return local_launcher(config, stages)
    limits = config.launcher
    on_device = limits.max_parallel_on_device or 1
    gpus = tuple(str(number) for number in range(count))
    return LocalLauncher(gpus, limits.max_parallel, min(limits.max_parallel, on_device), limits.threads_per_process)


def _card_and_count(text: str | None) -> tuple[str | None, int | None]:
    name, times, count = (text or "").rpartition("x")
    if times and count.isdigit() and int(count) and name in CARDS:
        return name, int(count)
    return text, None


def _machines(
    config: PipelineConfig, stages: Mapping[str, Stage], options: PlanOptions
) -> tuple[dict[str, Machine], list[str]]:
    """Return what each stage runs on, and what of it was assumed."""
    name = _card_and_count(options.card)[0] or (config.hardware.card if config.hardware is not None else None)
    machines, notes = {}, list[str]()
    for stage in stages.values():
        on_gpu = name not in (None, "cpu") or _uses_gpus(config, stage)
        card = card_named(name or (ASSUMED_CARD if on_gpu else "cpu"), "--card")
        if on_gpu and name is None and not notes:
            notes.append(f"nobody says which card: {ASSUMED_CARD} is assumed; give --card NAME, or --card NAMExCOUNT")
        machines[stage.name] = Machine(
            card, card.price if options.price is None else options.price, _utilisation(card.name, options)
        )
    return machines, notes


def _uses_gpus(config: PipelineConfig, stage: Stage) -> bool:
    """Return whether a stage computes on GPUs as the configuration has it: none on this machine is no sign of none."""
    if config.distributed.device == "cpu":
        return False
    if config.launcher.kind == "slurm":
        from posttrain.pipeline.slurm.script import resources_of

        return resources_of(stage).gpus > 0
    return config.hardware is not None or config.distributed.kind in ("deepspeed", "fsdp")


def _utilisation(card: str, options: PlanOptions) -> Utilisation:
    usual = fitted(options.seen, card, ON_CPU if card == "cpu" else ON_GPU)
    if options.mfu is None:
        return usual
    return dataclasses.replace(usual, mfu=Range(options.mfu, options.mfu, options.mfu), source="MFU as given")


def number_of(text: str | None, option: str) -> float | None:
    """Return the number of an option, None where it is not given; raise UsageError for text, or less than 0."""
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{option} {text}: not a number") from None
    if not number >= 0:
        raise UsageError(f"{option} {text}: must be 0 or more")
    return number


def numbers_of(words: Sequence[str], option: str) -> dict[str, float]:
    """Return the values of ``NAME=NUMBER`` words of an option; raise UsageError for one that is not."""
    numbers = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            numbers[name] = float(text)
        except ValueError:
            raise UsageError(f"{option} {word}: not NAME=NUMBER, such as demonstrations=20000") from None
        if numbers[name] <= 0:
            raise UsageError(f"{option} {word}: must be more than 0")
    return numbers
