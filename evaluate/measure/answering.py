"""What evaluation items ask, and the check of what was answered."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from posttrain.data.checks.options import LIKELIEST, options_of
from posttrain.data.checks.scorers import check_reference, require_scorer
from posttrain.data.messages import Conversation, message_dicts
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.evaluate.config.policy import PartConfig, PolicyEvaluationConfig
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.sampling import sampling_params
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.errors import NonFiniteLossError, UsageError


def require_finite(item: EvaluationItem, samples: Sequence[Sample]) -> None:
    """Raise NonFiniteLossError for a token without a finite log-probability: such responses mean nothing."""
    if not all(math.isfinite(logprob) for sample in samples for logprob in sample.logprobs):
        raise NonFiniteLossError(
            f"item {item.id}: the model's logits are not finite; its weights are damaged, or overflow in this dtype"
        )


@dataclasses.dataclass(frozen=True)
class Question:
    """An item as a part of a suite has it, and how it is asked."""

    item: EvaluationItem
    conversation: Conversation
    params: SamplingParams

    @property
    def options(self) -> list[str]:
        """The texts one of which is the answer, by their likelihood; empty where responses are sampled."""
        return options_of(self.item.reference) if self.item.scorer in LIKELIEST else []


def questions_of(
    config: PolicyEvaluationConfig, items: Sequence[EvaluationItem], examples: Sequence[EvaluationItem], seed: int
) -> list[Question]:
    """Return what is asked: the items of each part of the suite, in its order, behind those that are in none.

    Raises UsageError for a part without items, one whose scorer cannot judge them, and an item that would be asked
    twice under one name.
    """
    parts = {name: [item for item in items if _is_in(item, part)] for name, part in config.suite.items()}
    for name, own in parts.items():
        if not own:
            raise UsageError(f"evaluate.policy.suite.{name}: none of the {len(items)} items is in it; mend its lists")
    taken = {item.id for own in parts.values() for item in own}
    rest = [item for item in items if item.id not in taken]
    found = _questions(config, PartConfig(), "", rest, examples, seed)
    for name, own in parts.items():
        found += _questions(config, config.suite[name], f"suite.{name}.", own, examples, seed)
    times = Counter(question.item.id for question in found)
    if twice := [name for name, count in times.items() if count > 1 and parts]:
        raise UsageError(f"evaluate.policy.suite: item {twice[0]} is in two parts; give one of them a label")
    return found


def _is_in(item: EvaluationItem, part: PartConfig) -> bool:
    wanted = ((part.tasks, item.task), (part.languages, item.language), (part.scorers, item.scorer))
    return all(own in known for known, own in wanted if known)


def _questions(
    config: PolicyEvaluationConfig,
    part: PartConfig,
    where: str,
    items: Sequence[EvaluationItem],
    examples: Sequence[EvaluationItem],
    seed: int,
) -> list[Question]:
    shots = config.few_shot if part.few_shot is None else part.few_shot
    system = config.system if part.system is None else part.system
    most = config.max_new_tokens if part.max_new_tokens is None else part.max_new_tokens
    params = SamplingParams(
        max_tokens=most,
        temperature=config.temperature,
        top_p=config.top_p,
        num_samples=config.num_samples,
        seed=seed,
    )
    if part.sampling is not None:
        params = dataclasses.replace(sampling_params(part.sampling, seed), max_tokens=most)
    return [
        Question(
            _as_asked(item, part, where),
            conversation,
            dataclasses.replace(params, seed=derived_seed(params.seed, item.id)),
        )
        for item, conversation in zip(items, asked(items, examples, system, shots, where), strict=True)
    ]


def _as_asked(item: EvaluationItem, part: PartConfig, where: str) -> EvaluationItem:
    """Return an item under the name and with the scorer that a part gives it."""
    changed: dict[str, str] = {}
    if part.scorer is not None:
        try:
            require_scorer(part.scorer)
            check_reference(part.scorer, item.reference)
        except UsageError as error:
            raise UsageError(f"evaluate.policy.{where}scorer: item {item.id}: {error}") from None
        changed["scorer"] = part.scorer
    if part.label is not None:
        changed |= {"id": f"{item.id} ({part.label})", "task": f"{item.task} ({part.label})"}
    return item.model_copy(update=changed)


def asked(
    items: Sequence[EvaluationItem],
    examples: Sequence[EvaluationItem],
    system: str | None,
    shots: int,
    where: str = "",
) -> list[Conversation]:
    """Return each item's prompt behind a system turn, unless it has one, and ``shots`` answered examples.

    Examples are the first ones of the item's task and language. Raises UsageError, which names the knob below
    ``evaluate.policy.`` and ``where``, where there are too few.
    """
    return [_asked(item, _shots(item, examples, shots, where), system) for item in items]


def _asked(item: EvaluationItem, shots: Sequence[EvaluationItem], system: str | None) -> Conversation:
    own = prompt_of(item)
    before = []
    for example in shots:
        answer = example.reference if example.ideal is None else example.ideal
        before += [*message_dicts(example.prompt), {"role": "assistant", "content": answer}]
    lead = [turn for turn in own.messages[:1] if turn["role"] in ("system", "developer")]
    first = lead or ([{"role": "system", "content": system}] if system is not None else [])
    return dataclasses.replace(own, messages=[*first, *before, *own.messages[len(lead) :]])


def _shots(item: EvaluationItem, examples: Sequence[EvaluationItem], shots: int, where: str) -> list[EvaluationItem]:
    alike = [one for one in examples if (one.task, one.language) == (item.task, item.language) and one.id != item.id]
    if len(alike) < shots:
        raise UsageError(
            f"evaluate.policy.{where}few_shot={shots}: {len(alike)} training items of {item.task} ({item.language}); "
            "keep more of them out of the evaluation (split: train), or ask for fewer"
        )
    return alike[:shots]
