"""One stage's cost: its passes over models turned into FLOPs, seconds, money and disk, its memory into what fits."""

from __future__ import annotations

import dataclasses

from posttrain.plan.cards import Card
from posttrain.plan.disk import Writes, disk_figure
from posttrain.plan.figure import Figure, figure
from posttrain.plan.footprint import Setting, Training
from posttrain.plan.memory import MemoryEstimate
from posttrain.plan.model import ModelShape, count_active, count_parameters
from posttrain.plan.optimizers import KEEPS
from posttrain.plan.passes import Pass, Range, Utilisation, peak_flops
from posttrain.plan.ways import HEADROOM, Way, largest_micro_batch, ways
from posttrain.stage.spec import Distributed


@dataclasses.dataclass(frozen=True)
class Work:
    """What a stage will do."""

    name: str
    run: str
    shape: ModelShape
    distributed: Distributed
    passes: tuple[Pass, ...]
    """None of them where nothing tells how many rows there are."""
    steps: int | None = None
    training: Training | None = None
    setting: Setting | None = None
    share: int = 1
    """Rows of a global batch that one process has."""
    tf32: bool = False
    writes: Writes | None = None


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a stage runs on."""

    card: Card
    price: float
    """US dollars an hour of a card."""
    utilisation: Utilisation


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What a stage costs."""

    work: Work
    memory: MemoryEstimate | None
    limit: float
    """Bytes that a process may fill."""
    largest: int
    """Most rows at once that fit; 0 where none do."""
    ways: tuple[Way, ...]
    """Settings that fit, best first."""
    seconds: Range | None
    figures: tuple[Figure, ...]

    @property
    def fits(self) -> bool:
        """Whether it fits as it is configured."""
        return self.memory is None or self.memory.total <= self.limit

    def figure(self, name: str) -> Figure | None:
        """Return the figure of a name."""
        return next((item for item in self.figures if item.name == name), None)


def plan_work(work: Work, machine: Machine) -> StagePlan:
    """Return what a stage costs on a machine."""
    limit = machine.card.memory * HEADROOM
    memory, largest, found, parts = None, 0, [], list[Figure]()
    if work.training is not None and work.setting is not None:
        training = dataclasses.replace(work.training, share=work.share, on_cpu=machine.card.name == "cpu")
        memory, parts = training.memory(work.setting), training.figures(work.setting)
        largest = largest_micro_batch(training, work.setting, limit, work.share)
        found = ways(training, work.setting, limit, work.share, work.run)
    seconds = _seconds(work, machine) if work.passes else None
    figures = [
        *_sizes(work, memory),
        *parts,
        *_arithmetic(work, machine),
        *_costs(work, machine, seconds),
        *([disk_figure(work.writes)] if work.writes is not None else []),
    ]
    return StagePlan(work, memory, limit, largest, tuple(found), seconds, tuple(figures))


def _seconds(work: Work, machine: Machine) -> Range:
    mfu, mbu = machine.utilisation.mfu, machine.utilisation.mbu
    processes = work.distributed.num_processes

    def at(of_mfu: float, of_mbu: float) -> float:
        return sum(part.seconds(machine.card, processes, of_mfu, of_mbu, work.tf32) for part in work.passes)

    return Range(at(mfu.high, mbu.high), at(mfu.expected, mbu.expected), at(mfu.low, mbu.low))


def _sizes(work: Work, memory: MemoryEstimate | None) -> list[Figure]:
    shape, head = work.shape, work.training.head if work.training else "lm"
    counted = "counted over every tensor; models beside the one that learns are not in it, a critic is"
    total = memory.parameters if memory else count_parameters(shape, head)
    made = [
        figure("parameters", "", "total", counted, total=total),
        figure("active parameters", "", "active", "those that one token meets", active=count_active(shape, head)),
    ]
    if memory is None:
        return made
    parts = {
        name: getattr(memory, name)
        for name in ("weights", "gradients", "optimizer", "frozen", "activations", "head", "cache")
    }
    rest = "gradients + max(activations + head, cache)"
    if memory.fresh:
        rest = "max(activations + head, gradients, cache)"
    learner = KEEPS[work.training.optimizer if work.training is not None else "adamw"]
    peak = figure(
        "memory of a process",
        "B",
        f"weights + optimizer + frozen + {rest}",
        f"at the peak of a step, rows as long as they may be; {learner}; activations by precision, adapter and block",
        **parts,
    )
    return [*made, figure("trainable parameters", "", "trainable", counted, trainable=memory.trainable), peak]


def _arithmetic(work: Work, machine: Machine) -> list[Figure]:
    if not work.passes:
        return []
    made = []
    for part in work.passes:
        parts = {"tokens": part.tokens, "token_flops": part.flops_per_token()}
        kinds = {
            "train": "six FLOPs per multiplied parameter (four where it is frozen), causal attention",
            "forward": "two FLOPs per multiplied parameter, causal attention",
            "decode": "two FLOPs per multiplied parameter, causal attention; bandwidth decides how long it takes",
        }
        source = f"{kinds[part.kind]}, mean length {part.length:,}"
        made.append(figure(f"FLOPs, {part.what}", "FLOP", "tokens · token_flops", source, **parts))
    model, square = (sum(part.flops(causal) for part in work.passes) for causal in (True, False))
    done = sum(part.hardware_flops() for part in work.passes)
    tokens = sum(part.tokens for part in work.passes if part.kind == "train") or sum(
        part.tokens for part in work.passes
    )
    return [
        figure("tokens", "", "tokens", "trained on, every pass counted; else read and written", tokens=tokens),
        *made,
        figure("FLOPs", "FLOP", "flops", "of the model, causal attention: half the square", flops=model),
        figure("FLOPs, whole square", "FLOP", "flops", "of the model, as if attention were not causal", flops=square),
        figure("FLOPs done", "FLOP", "flops", "of the model and of recomputation", flops=done),
        figure(
            "peak",
            "FLOP/s",
            "processes · flops",
            f"dense, of {machine.card.name}, in the precision of the stage",
            processes=work.distributed.num_processes,
            flops=peak_flops(machine.card, work.passes[0].dtype, work.tf32),
        ),
    ]


def _costs(work: Work, machine: Machine, seconds: Range | None) -> list[Figure]:
    if seconds is None:
        return []
    mfu, mbu = machine.utilisation.mfu, machine.utilisation.mbu
    source = (
        f"passes by FLOPs at an MFU of {mfu.expected:.2f} ({mfu.low:.2f} to {mfu.high:.2f}), decoding by bandwidth at "
        f"an MBU of {mbu.expected:.2f} ({mbu.low:.2f} to {mbu.high:.2f}), {machine.utilisation.source}"
    )
    hours = figure(
        "card-hours",
        "h",
        "processes · seconds / 3600",
        "all cards all the time",
        processes=work.distributed.num_processes,
        seconds=seconds.expected,
    )
    return [
        figure("time", "s", "seconds", source, seconds=seconds.expected),
        figure("time, at least", "s", "seconds", source, seconds=seconds.low),
        figure("time, at most", "s", "seconds", source, seconds=seconds.high),
        hours,
        figure("cost", "$", "hours · price", "of the cards alone", hours=hours.value, price=machine.price),
        figure(
            "energy",
            "kWh",
            "hours · watts / 1000",
            "of the cards under load",
            hours=hours.value,
            watts=machine.card.watts,
        ),
    ]
