"""What evaluation items ask, and the check of what was answered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from posttrain.data.messages import Conversation, message_dicts
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.sample.sampling import Sample
from posttrain.stage.errors import NonFiniteLossError, UsageError


def require_finite(item: EvaluationItem, samples: Sequence[Sample]) -> None:
    """Raise NonFiniteLossError for a token without a finite log-probability: such responses mean nothing."""
    if not all(math.isfinite(logprob) for sample in samples for logprob in sample.logprobs):
        raise NonFiniteLossError(
            f"item {item.id}: the model's logits are not finite; its weights are damaged, or overflow in this dtype"
        )


def asked(
    items: Sequence[EvaluationItem], examples: Sequence[EvaluationItem], system: str | None, shots: int
) -> list[Conversation]:
    """Return each item's prompt behind a system turn, unless it has one, and ``shots`` answered examples.

    Examples are the first ones of the item's task and language. Raises UsageError where there are too few.
    """
    return [_asked(item, _shots(item, examples, shots), system) for item in items]


def _asked(item: EvaluationItem, shots: Sequence[EvaluationItem], system: str | None) -> Conversation:
    own = prompt_of(item)
    before = []
    for example in shots:
        answer = example.reference if example.ideal is None else example.ideal
        before += [*message_dicts(example.prompt), {"role": "assistant", "content": answer}]
    lead = [turn for turn in own.messages[:1] if turn["role"] in ("system", "developer")]
    first = lead or ([{"role": "system", "content": system}] if system is not None else [])
    return dataclasses.replace(own, messages=[*first, *before, *own.messages[len(lead) :]])


def _shots(item: EvaluationItem, examples: Sequence[EvaluationItem], shots: int) -> list[EvaluationItem]:
    alike = [one for one in examples if (one.task, one.language) == (item.task, item.language) and one.id != item.id]
    if len(alike) < shots:
        raise UsageError(
            f"evaluate.policy.few_shot={shots}: {len(alike)} training items of {item.task} ({item.language}); "
            "keep more of them out of the evaluation (split: train), or ask for fewer"
        )
    return alike[:shots]
