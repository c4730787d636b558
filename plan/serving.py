"""What a model needs to answer: weights, cache, bounds on prefill and decoding, and what a million tokens cost."""

from __future__ import annotations

from posttrain.plan.cards import GIB, Card
from posttrain.plan.config.questions import ModelQuestion
from posttrain.plan.figure import Figure, figure
from posttrain.plan.memory import NF4_BYTES
from posttrain.plan.model import (
    ModelShape,
    count_active,
    count_parameters,
    count_read,
    forward_flops_per_token,
    kv_bytes,
    kv_bytes_per_token,
    mixing_flops_per_token,
)
from posttrain.stage.errors import UsageError

WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "fp8": 1.0, "int8": 1.0, "int4": 0.5 + 2 / 128, "nf4": NF4_BYTES}
"""Bytes of one weight; int4 has a 16-bit scale per 128 of them, nf4 bitsandbytes' doubly quantised one per 64."""
KV_BYTES = {"float32": 4, "bfloat16": 2, "fp8": 1}
FOUR_BIT = ("int4", "nf4")
_ROOFLINE = "bound by bandwidth or arithmetic, whichever is later (Williams et al. 2009)"


def weight_figure(shape: ModelShape, dtype: str) -> Figure:
    """Return the bytes of the weights; four bits are for linear maps and experts, the rest stays at sixteen."""
    parameters = count_parameters(shape)
    size = WEIGHT_BYTES[dtype]
    name = f"weights in {dtype}"
    if dtype not in FOUR_BIT:
        return figure(
            name, "B", "parameters · size", "all parameters in one precision", parameters=parameters, size=size
        )
    embeddings = shape.vocab_size * shape.hidden_size * (1 if shape.tied_embeddings else 2)
    return figure(
        name,
        "B",
        "(parameters − embeddings) · size + embeddings · 2",
        "layers in 4 bits with their scales, embedding and head in bfloat16",
        parameters=parameters,
        embeddings=embeddings,
        size=size,
    )


def serving_figures(shape: ModelShape, asked: ModelQuestion, card: Card) -> list[Figure]:
    """Return every figure about a model that answers."""
    price = card.price if asked.price is None else asked.price
    memory = _memory(shape, asked, card)
    speed = _speed(shape, asked, card)
    by_name = {item.name: item for item in (*memory, *speed)}
    costs = _costs(asked, price, by_name["decode tokens/s, expected"].value)
    return [*_sizes(shape), *memory, *speed, *_seen(shape, asked, card), *costs]


def _sizes(shape: ModelShape) -> list[Figure]:
    total, active = count_parameters(shape), count_active(shape)
    by_dtype = [weight_figure(shape, dtype) for dtype in ("float32", "bfloat16", "fp8", "int4")]
    counted = "counted over every tensor of the model; a tied embedding counts once"
    return [
        figure("parameters", "", "parameters", counted, parameters=total),
        figure(
            "active parameters", "", "active", "those that one token meets, both embeddings included", active=active
        ),
        *by_dtype,
    ]


def _memory(shape: ModelShape, asked: ModelQuestion, card: Card) -> list[Figure]:
    size = KV_BYTES[asked.kv_dtype]
    weights = weight_figure(shape, asked.dtype).value
    per_token = asked.cards * kv_bytes_per_token(shape, size, asked.cards)
    sequence = asked.cards * kv_bytes(shape, asked.context, size, asked.cards)
    room = figure(
        "memory for the cache",
        "B",
        "cards · (memory · share − overhead) − weights",
        "of all cards together; weights are split over them",
        cards=asked.cards,
        memory=card.memory,
        share=asked.memory_share,
        overhead=asked.overhead_gib * GIB,
        weights=weights,
    )
    growth = "keys and values of all layers, or what stands in their place; windows and recurrences stop growing"
    if asked.cards > 1:
        growth += "; on all cards together, copies included where there are more cards than heads of them"
    values = per_token / size
    return [
        figure("cache a token", "B", "values · size", growth, values=values, size=size),
        figure("cache a sequence", "B", "sequence", f"at a context of {asked.context:,} tokens", sequence=sequence),
        room,
        figure(
            "largest batch",
            "",
            "floor(max(0, room) / sequence)",
            f"sequences of {asked.context:,} tokens whose cache fits beside the weights",
            room=room.value,
            sequence=sequence,
        ),
        figure(
            "longest context",
            "",
            "longest",
            f"that {asked.batch} sequences may have; found by halving, since windows bend the line",
            longest=longest_context(shape, room.value / asked.batch, size, asked.cards),
        ),
    ]


def longest_context(shape: ModelShape, room: float, size: float, cards: int = 1, most: int = 1 << 30) -> int:
    """Return the longest sequence whose cache fits into so many bytes; ``most`` where it stops growing."""
    room /= cards
    if kv_bytes(shape, 1, size, cards) > room:
        return 0
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if kv_bytes(shape, middle, size, cards) <= room else (low, middle - 1)
    return low


def _cache(shape: ModelShape, asked: ModelQuestion) -> float:
    """Return the bytes of the whole batch's cache on all cards together."""
    return asked.cards * asked.batch * kv_bytes(shape, asked.context, KV_BYTES[asked.kv_dtype], asked.cards)


def require_split(shape: ModelShape, cards: int, knob: str, name: str) -> None:
    """Raise UsageError where the heads of a model cannot be divided among so many cards."""
    if shape.num_heads % cards:
        fitting = ", ".join(str(count) for count in range(1, shape.num_heads + 1) if shape.num_heads % count == 0)
        raise UsageError(
            f"{knob}={cards}: the {shape.num_heads} heads of {name} do not divide by it; take one of {fitting}"
        )


def _speed(shape: ModelShape, asked: ModelQuestion, card: Card) -> list[Figure]:
    prompt = asked.prompt or max(1, asked.context // 2)
    flops = asked.cards * card.flops
    bandwidth = asked.cards * card.bandwidth
    size = WEIGHT_BYTES[asked.dtype]
    read = count_read(shape, asked.batch)
    cache = _cache(shape, asked)
    step_flops = asked.batch * (
        forward_flops_per_token(shape, 0) + 2 * mixing_flops_per_token(shape, asked.context)
    )  # the last token sees all before it: twice the mean of a sequence
    prefill = figure(
        "prefill of a prompt",
        "s",
        "prompt · token_flops / (flops · mfu)",
        "two FLOPs per multiplied parameter, causal attention; at the MFU that was assumed",
        prompt=prompt,
        token_flops=forward_flops_per_token(shape, prompt),
        flops=flops,
        mfu=asked.mfu,
    )
    step = figure(
        "decode step, at least",
        "s",
        "max((read · size + cache) / bandwidth, step_flops / flops)",
        f"every weight that the batch meets and the whole cache are read once; {_ROOFLINE}",
        read=read,
        size=size,
        cache=cache,
        bandwidth=bandwidth,
        step_flops=step_flops,
        flops=flops,
    )
    ceiling = figure(
        "decode tokens/s, ceiling", "/s", "batch / step", "all sequences together", batch=asked.batch, step=step.value
    )
    expected = figure(
        "decode tokens/s, expected",
        "/s",
        "ceiling · mbu",
        "at the share of the ceiling that was assumed",
        ceiling=ceiling.value,
        mbu=asked.mbu,
    )
    ridge = figure(
        "batch where arithmetic binds",
        "",
        "flops / bandwidth · size / 2",
        "two FLOPs per weight and token against its bytes; the cache moves it up",
        flops=card.flops,
        bandwidth=card.bandwidth,
        size=size,
    )
    return [prefill, step, ceiling, expected, ridge]


def _seen(shape: ModelShape, asked: ModelQuestion, card: Card) -> list[Figure]:
    """Return the shares of the peaks that an observed throughput is."""
    if asked.throughput is None:
        return []
    cache = _cache(shape, asked)
    mbu = figure(
        "MBU of the throughput",
        "share",
        "(read · size + cache) · throughput / batch / (cards · bandwidth)",
        "bytes of weights and cache by the time of a step, over the peak (Databricks 2023)",
        read=count_read(shape, asked.batch),
        size=WEIGHT_BYTES[asked.dtype],
        cache=cache,
        throughput=asked.throughput,
        batch=asked.batch,
        cards=asked.cards,
        bandwidth=card.bandwidth,
    )
    token_flops = forward_flops_per_token(shape, 0) + 2 * mixing_flops_per_token(shape, asked.context)
    mfu = figure(
        "MFU of the throughput",
        "share",
        "throughput · token_flops / (cards · flops)",
        "forward FLOPs of a token at the end of the context, over the peak (Chowdhery et al. 2022)",
        throughput=asked.throughput,
        token_flops=token_flops,
        cards=asked.cards,
        flops=card.flops,
    )
    return [mbu, mfu]


def _costs(asked: ModelQuestion, price: float, expected: float) -> list[Figure]:
    rate = asked.throughput or expected
    seen = "the throughput given" if asked.throughput else "the throughput expected"
    million = figure(
        "cost of a million tokens",
        "$",
        "cards · price / 3600 / rate · 1000000",
        f"of output, at {seen}, cards always busy",
        cards=asked.cards,
        price=price,
        rate=rate,
    )
    languages = [
        figure(
            f"the same text in {language}",
            "$",
            "million · premium",
            "tokens for a text over those for it in English (Petrov et al. 2023)",
            million=million.value,
            premium=premium,
        )
        for language, premium in asked.premium.items()
    ]
    if asked.best_of == 1:
        return [million, *languages]
    best = figure(
        "the same, best of N",
        "$",
        "million · samples",
        "N responses are paid for one; the prompt's cache is shared and the judge not counted",
        million=million.value,
        samples=asked.best_of,
    )
    return [million, *languages, best]
