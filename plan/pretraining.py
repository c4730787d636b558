"""What pretraining costs and what a budget buys: Chinchilla's rule, the fitted law, a life of inference, repetition."""

from __future__ import annotations

import dataclasses

from posttrain.plan.cards import Card
from posttrain.plan.config.questions import PretrainQuestion
from posttrain.plan.figure import Figure, figure
from posttrain.plan.model import ModelShape, count_active, mixing_flops_per_token

DAY = 86400
PETAFLOPS_DAY = 8.64e19
TOKENS_PER_PARAMETER = 20
REPEATS_HALVED = 15.39
"""R* of Muennighoff et al. 2023, eq. 5: how many repetitions it takes until data are worth little more."""
_HOFFMANN = "Hoffmann et al. 2022"


@dataclasses.dataclass(frozen=True)
class Law:
    """``loss = irreducible + a / parameters^alpha + b / tokens^beta``."""

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float
    source: str

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the loss in nats per token."""
        return float(self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimum(self, budget: float) -> tuple[float, float]:
        """Return parameters and tokens of the least loss for so many FLOPs, of six per parameter and token."""
        total = self.alpha + self.beta
        scale = (self.alpha * self.a / (self.beta * self.b)) ** (1 / total)
        parameters = scale * (budget / 6) ** (self.beta / total)
        return parameters, budget / 6 / parameters

    def tokens_for(self, loss: float, parameters: float) -> float | None:
        """Return how many tokens bring a model of this size to a loss; None where none do."""
        left = loss - self.irreducible - self.a / parameters**self.alpha
        return (self.b / left) ** (1 / self.beta) if left > 0 else None


LAWS = {
    "hoffmann": Law(1.6934, 406.4, 410.7, 0.3392, 0.2849, f"{_HOFFMANN}, approach 3, digits of the TeX source"),
    "hoffmann_rounded": Law(1.69, 406.4, 410.7, 0.34, 0.28, f"{_HOFFMANN}, approach 3, as printed"),
    "epoch": Law(1.8172, 482.01, 2085.43, 0.3478, 0.3658, "Besiroglu et al. 2024, table 1"),
}


def pretraining_figures(asked: PretrainQuestion, shape: ModelShape | None, card: Card) -> list[Figure]:
    """Return every figure about a pretraining run; ``shape`` is that of ``asked.model``."""
    law = LAWS[asked.law]
    if asked.budget is not None:
        sizes = _sizes_for(asked.budget, law)
        parameters, tokens = sizes[0].value, sizes[1].value
    else:
        parameters = float(count_active(shape)) if shape is not None else asked.parameters or 0.0
        sizes = _sizes_of(parameters, asked.tokens, shape is not None)
        tokens = sizes[-1].value
    attention = 3 * mixing_flops_per_token(shape, asked.context) if shape is not None else 0.0
    run = _run(asked, card, parameters, tokens, attention, law)
    return [*sizes, *run, *_life(asked, law, parameters, tokens), *_repetition(asked, law, tokens)]


def _sizes_for(budget: float, law: Law) -> list[Figure]:
    parameters = figure(
        "parameters, 20 tokens each", "", "(budget / (6 · 20))^0.5", f"C = 6ND, D = 20N; {_HOFFMANN}", budget=budget
    )
    best, tokens = law.optimum(budget)
    numbers = {"A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta, "budget": budget}
    return [
        parameters,
        figure("tokens, 20 a parameter", "", "20 · parameters", _HOFFMANN, parameters=parameters.value),
        figure(
            "parameters, fitted law",
            "",
            "(alpha · A / (beta · B))^(1 / (alpha + beta)) · (budget / 6)^(beta / (alpha + beta))",
            law.source,
            **numbers,
        ),
        figure("tokens, fitted law", "", "budget / (6 · parameters)", law.source, budget=budget, parameters=best),
        figure("tokens a parameter, fitted law", "", "tokens / parameters", law.source, tokens=tokens, parameters=best),
    ]


def _sizes_of(parameters: float, tokens: float | None, counted: bool) -> list[Figure]:
    source = "active ones, both embeddings included" if counted else "as given"
    size = figure("parameters", "", "parameters", source, parameters=parameters)
    if tokens is not None:
        return [size, figure("tokens", "", "tokens", "as given", tokens=tokens)]
    return [size, figure("tokens", "", "20 · parameters", _HOFFMANN, parameters=parameters)]


def _run(
    asked: PretrainQuestion, card: Card, parameters: float, tokens: float, attention: float, law: Law
) -> list[Figure]:
    flops = figure(
        "FLOPs",
        "FLOP",
        "(6 · parameters + attention) · tokens",
        f"forward and backward; causal attention at a context of {asked.context:,}, where the model is known",
        parameters=parameters,
        attention=attention,
        tokens=tokens,
    )
    hours = figure(
        "card-hours",
        "h",
        "flops / (peak · mfu) / 3600",
        "at the MFU that was assumed; dense bfloat16 peak",
        flops=flops.value,
        peak=card.flops,
        mfu=asked.mfu,
    )
    price = card.price if asked.price is None else asked.price
    return [
        flops,
        figure("PF/s-days", "", "flops / 86400 / 10^15", "Kaplan et al. 2020", flops=flops.value),
        hours,
        figure("time", "s", "hours · 3600 / cards", "all cards all the time", hours=hours.value, cards=asked.cards),
        figure("cost", "$", "hours · price", "of the cards alone", hours=hours.value, price=price),
        figure(
            "energy",
            "kWh",
            "hours · watts / 1000",
            "of the cards under load; a hall takes 10 to 50 % more",
            hours=hours.value,
            watts=card.watts,
        ),
        figure(
            "loss by the law",
            "nats",
            "E + A / parameters^alpha + B / tokens^beta",
            law.source,
            E=law.irreducible,
            A=law.a,
            B=law.b,
            alpha=law.alpha,
            beta=law.beta,
            parameters=parameters,
            tokens=tokens,
        ),
        figure(
            "tokens a parameter", "", "tokens / parameters", "20 is Chinchilla's", tokens=tokens, parameters=parameters
        ),
    ]


def cheapest_in_life(law: Law, loss: float, inference_tokens: float, start: float) -> tuple[float, float]:
    """Return parameters and tokens of the model of this loss whose training and inference cost least together.

    Training takes six FLOPs per parameter and token, inference two (Sardana et al. 2024). The best size is at most
    ``start``, that of the least training, and is found by thirds.
    """

    def cost(size: float) -> float:
        tokens = law.tokens_for(loss, size)
        return float("inf") if tokens is None else 6 * size * tokens + 2 * size * inference_tokens

    low, high = start / 1000, start
    for _ in range(200):
        left, right = low + (high - low) / 3, high - (high - low) / 3
        low, high = (left, high) if cost(left) >= cost(right) else (low, right)
    tokens = law.tokens_for(loss, high)
    assert tokens is not None
    return high, tokens


def _life(asked: PretrainQuestion, law: Law, parameters: float, tokens: float) -> list[Figure]:
    if not asked.inference_tokens:
        return []
    best, _ = law.optimum(6 * parameters * tokens)
    smaller, more = cheapest_in_life(law, law.loss(parameters, tokens), asked.inference_tokens, max(best, parameters))
    source = f"least training and inference for the same loss (Sardana et al. 2024), {law.source}"
    lived = {"inference": asked.inference_tokens}
    formula = "6 · parameters · tokens + 2 · parameters · inference"
    return [
        figure("parameters, over a life", "", "smaller", source, smaller=smaller),
        figure("tokens, over a life", "", "more", source, more=more),
        figure("FLOPs of a life, as planned", "FLOP", formula, source, parameters=parameters, tokens=tokens, **lived),
        figure("FLOPs of a life, at least", "FLOP", formula, source, parameters=smaller, tokens=more, **lived),
    ]


def _repetition(asked: PretrainQuestion, law: Law, tokens: float) -> list[Figure]:
    unique = asked.unique_tokens
    if unique is None or unique >= tokens:
        return []
    source = "repeated tokens are worth ever less (Muennighoff et al. 2023, eq. 5; R* = 15.39)"
    worth = figure(
        "tokens that repetition is worth",
        "",
        "unique + unique · 15.39 · (1 − exp(−(tokens / unique − 1) / 15.39))",
        source,
        unique=unique,
        tokens=tokens,
    )
    return [
        figure("epochs", "", "tokens / unique", "passes over what there is", tokens=tokens, unique=unique),
        worth,
        figure(
            "loss that repetition costs",
            "nats",
            "B / worth^beta − B / tokens^beta",
            f"{law.source}, at the tokens' worth",
            B=law.b,
            beta=law.beta,
            worth=worth.value,
            tokens=tokens,
        ),
    ]
