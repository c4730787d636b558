"""What it takes to train one model: memory of a card by part, what an engine leaves to the host, speed, cost."""

from __future__ import annotations

from posttrain.plan.cards import Card
from posttrain.plan.config.questions import Engine, TrainQuestion
from posttrain.plan.figure import Figure, figure
from posttrain.plan.memory import MemoryEstimate, estimate_memory
from posttrain.plan.model import (
    ModelShape,
    count_active,
    count_adapter,
    forward_flops_per_token,
    training_flops_per_token,
)
from posttrain.plan.optimizers import KEEPS, optimizer_bytes
from posttrain.plan.parts import Options, part_figures
from posttrain.plan.passes import peak_flops
from posttrain.plan.ways import GATHERED, HEADROOM, OFFLOADED

STAGES: dict[Engine, int | None] = {
    "ddp": None,
    "zero1": 1,
    "zero2": 2,
    "zero3": 3,
    "fsdp2": 3,
    "zero3_cpu_offload": 3,
    "fsdp2_cpu_offload": 3,
}
"""Engine → stage of ZeRO that shards what it shards."""
SHOWN: tuple[Engine, ...] = ("ddp", "zero1", "zero2", "zero3", "zero3_cpu_offload")
"""Side by side where no engine is named; FSDP2 has the sizes of ZeRO-3."""
MOST_ROWS = 4096
"""Rows at once that are tried, at most."""


def engines_of(asked: TrainQuestion) -> list[Engine]:
    """Return the engines to show: the one that was asked for, or all that can spread what is trained."""
    if asked.engine is not None:
        return [asked.engine]
    return [engine for engine in SHOWN if asked.adapter != "qlora" or STAGES[engine] != 3]


def training_figures(shape: ModelShape, asked: TrainQuestion, engine: Engine, card: Card) -> list[Figure]:
    """Return every figure about training a model under an engine."""
    memory, told = estimated(shape, asked, engine), options_of(asked, engine)
    parts = part_figures(shape, memory, told)
    numbers = {item.name: item.value for item in parts}
    total = figure(
        "memory of a card",
        "B",
        " + ".join(numbers),
        "at the peak of a step; the context, kernels and the allocator's slack come on top",
        **numbers,
    )
    used = {"memory": total.value, "card": card.memory}
    fitting = f"that stay below {HEADROOM:.0%} of the card, {asked.length:,} tokens each"
    return [
        *_sizes(shape, asked, memory),
        *parts,
        total,
        figure("share of the card", "share", "memory / card", f"at most {HEADROOM:.0%} may be planned", **used),
        figure("most rows at once", "", "most", fitting, most=most_rows(shape, asked, engine, card)),
        *_host(shape, asked, memory, told),
        *_speed(shape, asked, card, told),
    ]


def options_of(asked: TrainQuestion, engine: Engine, rows: int | None = None) -> Options:
    """Return what the estimate of memory is told."""
    return Options(
        tokens=(asked.rows if rows is None else rows) * asked.length,
        head=asked.head,
        adapter=asked.adapter,
        rank=asked.rank,
        dtype=asked.dtype,
        gradient_checkpointing=asked.gradient_checkpointing,
        num_processes=asked.cards // asked.tensor,
        zero_stage=STAGES[engine],
        offload=engine.endswith("_offload"),
        optimizer=asked.optimizer,
        tensor=asked.tensor,
        sequence_parallel=asked.sequence_parallel and asked.tensor > 1,
    )


def estimated(shape: ModelShape, asked: TrainQuestion, engine: Engine, rows: int | None = None) -> MemoryEstimate:
    """Return the memory of one card, at so many rows."""
    return estimate_memory(shape, **vars(options_of(asked, engine, rows)))


def most_rows(shape: ModelShape, asked: TrainQuestion, engine: Engine, card: Card) -> int:
    """Return the most rows at once whose memory stays below what a plan may fill; 0 where not even one does."""
    low, high = 0, MOST_ROWS
    while low < high:
        middle = (low + high + 1) // 2
        fits = estimated(shape, asked, engine, middle).total <= HEADROOM * card.memory
        low, high = (middle, high) if fits else (low, middle - 1)
    return low


def _sizes(shape: ModelShape, asked: TrainQuestion, memory: MemoryEstimate) -> list[Figure]:
    counted = "counted over every tensor; a tied embedding counts once, an adapter is in it"
    active = count_active(shape, asked.head)
    return [
        figure("parameters", "", "total", counted, total=memory.parameters),
        figure("active parameters", "", "active", "those that one token meets", active=active),
        figure("trainable parameters", "", "trainable", counted, trainable=memory.trainable),
    ]


def _host(shape: ModelShape, asked: TrainQuestion, memory: MemoryEstimate, told: Options) -> list[Figure]:
    """Return what an engine that offloads leaves to the memory of the host."""
    if not told.offload:
        return []
    kept = optimizer_bytes(shape, asked.head, asked.optimizer, adapter=asked.adapter != "full", rank=asked.rank)
    size = 2 if told.low else 4
    return [
        figure(
            "memory of the host",
            "B",
            "parameters · size + trainable · (size + copy) + kept",
            f"of all processes: weights, gradients, a float32 copy of bfloat16 weights; {KEEPS[asked.optimizer]}",
            parameters=memory.parameters,
            trainable=memory.trainable,
            size=size,
            copy=4 if told.low else 0,
            kept=kept,
        )
    ]


def _speed(shape: ModelShape, asked: TrainQuestion, card: Card, told: Options) -> list[Figure]:
    """Return FLOPs, rate and, where tokens are given, time and money."""
    adapter = None if asked.adapter == "full" else count_adapter(shape, asked.rank)
    options = {"head": asked.head, "adapter_parameters": adapter}
    causal, square = (
        training_flops_per_token(shape, asked.length, causal=each, **options)  # type: ignore[arg-type]
        for each in (True, False)
    )
    again = forward_flops_per_token(shape, asked.length, head=asked.head) if asked.gradient_checkpointing else 0.0
    six = "six FLOPs per multiplied parameter (four where it is frozen)"
    peak = peak_flops(card, asked.dtype, tf32=False)
    rate = figure(
        "tokens/s",
        "/s",
        "cards · peak · mfu / ((token_flops + again) · slower)",
        "of all cards, at the MFU that was assumed; what is computed again takes time and is no model FLOP; weights in "
        f"parts are taken to be {GATHERED} times as slow, states on the host {OFFLOADED} times",
        cards=asked.cards,
        peak=peak,
        mfu=asked.mfu,
        token_flops=causal,
        again=again,
        slower=(GATHERED if told.zero_stage == 3 else 1.0) * (OFFLOADED if told.offload else 1.0),
    )
    made = [
        figure("FLOPs a token", "FLOP", "flops", f"{six}, causal attention: half the square", flops=causal),
        figure("FLOPs a token, whole square", "FLOP", "flops", f"{six}, as if attention were not causal", flops=square),
        rate,
    ]
    return [*made, *_costs(asked, card, rate.value)] if asked.tokens is not None else made


def _costs(asked: TrainQuestion, card: Card, rate: float) -> list[Figure]:
    assert asked.tokens is not None
    price = card.price if asked.price is None else asked.price
    time = figure(
        "time", "s", "tokens / rate", "loading, saving and evaluation not counted", tokens=asked.tokens, rate=rate
    )
    hours = figure(
        "card-hours", "h", "cards · seconds / 3600", "all cards all the time", cards=asked.cards, seconds=time.value
    )
    of_cards = {"hours": hours.value}
    return [
        time,
        hours,
        figure("cost", "$", "hours · price", "of the cards alone", price=price, **of_cards),
        figure("energy", "kWh", "hours · watts / 1000", "of the cards under load", watts=card.watts, **of_cards),
    ]
