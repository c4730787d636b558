"""Build the components of a reward from their configuration; whatever is wrong with one is said before a rollout."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.checks.grounding import grounded_share
from posttrain.data.checks.scorers import (
    RATINGS,
    SCORERS,
    require_scorer,
    require_whole_reference,
    score,
    scoring_function,
)
from posttrain.data.checks.sourced import NAME
from posttrain.data.messages import Json
from posttrain.sample.backends.judge import DEFAULT, JudgeModel, grade_question, read_grade
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.repair import parse_json
from posttrain.stage.errors import UsageError, did_you_mean
from posttrain.stage.spec import Distributed
from posttrain.train.config.rollout import RewardTerm
from posttrain.train.rewards.model_score import EnsembleScore, RewardModelScore
from posttrain.train.rewards.weighted import Answer, Component, Reward, Rewards
from posttrain.train.rows.dataset import Row

log = logging.getLogger(__name__)


def build_rewards(
    terms: Sequence[RewardTerm],
    reward_models: Sequence[Path],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    scoring_tokens: int,
    where: str,
    dtype: str = "float32",
    verifier: Path | None = None,
    distributed: Distributed | None = None,
) -> Rewards:
    """Return the reward of a stage; ``where`` is its configuration path, for messages.

    ``reward_models`` are all of one term, which combines them; ``dtype`` is their precision, and the verifier's. They
    are in parts between uses where ``distributed`` spreads weights.

    Raises UsageError for a term that cannot be built, or two of the same name.
    """
    names = [term.name or term.kind for term in terms]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"{where}.rewards: two terms are called {doubled!r}; give them names")

    def scored_by(directory: Path, normalize: bool, which: str) -> RewardModelScore:
        return RewardModelScore(directory, tokenizer, device, scoring_tokens, normalize, dtype, which, distributed)

    components = []
    for number, (name, term) in enumerate(zip(names, terms, strict=True)):
        path = f"{where}.rewards.{number}"
        if term.kind == "reward_model":
            if not reward_models:
                raise UsageError(f"{path}.kind: 'reward_model', but there is no inputs.reward; give one")
            if len(reward_models) > 1 and not term.normalize:
                raise UsageError(
                    f"{path}.normalize: false, but {len(reward_models)} reward models differ in scale; leave it true"
                )
            scores = [scored_by(directory, term.normalize, "inputs.reward") for directory in reward_models]
            reward: Reward = scores[0] if len(scores) == 1 else EnsembleScore(scores, term.ensemble)
        elif term.kind == "verifier":
            if verifier is None:
                raise UsageError(f"{path}.kind: 'verifier', but there is no inputs.verifier; give one")
            reward = partial(supported_share, scored_by(verifier, True, "inputs.verifier"))
        else:
            reward = _BUILDERS[term.kind](term, path)
        components.append(Component(name, term.weight, term.clip, reward, is_penalty=term.kind == "length"))
    return Rewards(components)


def supported_share(verifier: Reward, answers: Sequence[Answer]) -> list[float]:
    """Return how likely a verifier holds each answer to be borne out, in (0, 1): a half for one as good as its mean."""
    return torch.tensor(verifier(answers), dtype=torch.float64).sigmoid().tolist()


def require_references(terms: Sequence[RewardTerm], prompts: Iterable[Row], where: str) -> None:
    """Check that prompts have what the terms judge by; raise UsageError that names the first that has not."""
    judging = [(n, term) for n, term in enumerate(terms) if term.kind in ("scorer", "constraints")]
    for prompt in prompts if judging else ():
        for number, term in judging:
            path = f"{where}.rewards.{number}"
            scorer = _scorer_of(term, prompt["scorer"])
            if scorer is None or (prompt["reference"] is None and scorer not in RATINGS):
                raise UsageError(
                    f"{path}: prompt {prompt['id']} has no {'scorer' if scorer is None else 'reference'}; use "
                    "evaluation records as prompts, or name a scorer and give references"
                )
            try:
                require_scorer(scorer)
                require_whole_reference(scorer, prompt["reference"] or "")
            except UsageError as error:
                raise UsageError(f"{path}: prompt {prompt['id']}: {error}") from None


def _scorer_of(term: RewardTerm, own: str | None) -> str | None:
    return "constraints" if term.kind == "constraints" else term.scorer or own


def _scorer(term: RewardTerm, path: str) -> Reward:
    if term.scorer is not None and term.scorer not in SCORERS:
        raise UsageError(f"{path}.scorer: {term.scorer!r}: unknown{did_you_mean(term.scorer, SCORERS)}")

    def one(answer: Answer) -> float:
        scorer = _scorer_of(term, answer.scorer)
        assert scorer is not None  # see require_references
        return score(scorer, answer.text, answer.reference or "")

    return _each_answer(one)


def _regex(term: RewardTerm, path: str) -> Reward:
    assert term.pattern is not None
    try:
        pattern = re.compile(term.pattern)
    except re.error as error:
        raise UsageError(f"{path}.pattern: {term.pattern!r}: {error}; mend the expression") from None
    return _each_answer(lambda answer: float(pattern.search(answer.text) is not None))


def _json_schema(term: RewardTerm, path: str) -> Reward:
    """Return 1 for a response that is one JSON document, of that schema, and nothing else.

    White space around it does not matter; a code fence, a word before it or ``NaN`` does, since a program that reads
    the response would stumble over them.
    """
    assert term.schema_file is not None
    try:
        schema = json.loads(Path(term.schema_file).read_text(encoding="utf-8"))
        validator = Validator(schema if isinstance(schema, dict) else _no_schema())
    except (OSError, ValueError, UsageError) as error:
        raise UsageError(f"{path}.schema_file: {term.schema_file}: {error}; give a JSON Schema") from None

    def one(answer: Answer) -> float:
        try:
            document = parse_json(answer.text)
        except ValueError:
            return 0.0
        return float(validator.is_valid(document))

    return _each_answer(one)


def _no_schema() -> dict[str, Any]:
    raise ValueError("not an object")


def _python(term: RewardTerm, path: str) -> Reward:
    assert term.function is not None
    function = scoring_function(term.function, f"{path}.function")
    return _each(lambda answer: function(answer.conversation.messages, answer.text, answer.reference, answer.reasoning))


def _grounding(term: RewardTerm, path: str) -> Reward:
    """Return the share of a response's quotes, numbers and names that stand in its prompt or its reference.

    A reference that lists answers, right ones and others, is no ground: its passages are in the prompt.
    """

    def one(answer: Answer) -> float:
        given = [message["content"] for message in answer.conversation.messages if message["role"] != "assistant"]
        return grounded_share(answer.text, given if answer.scorer == NAME else [*given, answer.reference or ""])

    return _each_answer(one)


def _judge(term: RewardTerm, path: str) -> Reward:
    """Return a judge's grades of responses, all asked at once; a reply without one is worth 0, and counted."""
    assert term.judge is not None and term.judge.cache is not None
    judge = JudgeModel(term.judge, Path(term.judge.cache).parent, f"{path}.judge")
    rubric = judge.rubric(DEFAULT)

    def reward(answers: Sequence[Answer]) -> list[float]:
        asked = {
            place: grade_question(_as_text(answer.conversation.messages), answer.text, rubric)
            for place, answer in enumerate(answers)
            if answer.answered
        }
        grades = dict(zip(asked, map(read_grade, judge.ask(list(asked.values())).texts), strict=True))
        if unread := sum(grade is None for grade in grades.values()):
            log.warning("reward %s: %d of %d replies hold no grade and count as 0", path, unread, len(grades))
        return [grades.get(place) or 0.0 for place in range(len(answers))]

    return reward


def _as_text(messages: Sequence[Json]) -> str:
    if len(messages) == 1:
        return str(messages[0]["content"])
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _length(term: RewardTerm, path: str) -> Reward:
    """Return minus the share by which a response, its reasoning included, is too long."""
    assert term.max_tokens is not None
    free = term.max_tokens
    return _each(lambda answer: -min(max(len(answer.response_ids) - free, 0) / free, 1.0))


def _each_answer(one: Callable[[Answer], float]) -> Reward:
    """Judge what stands behind the reasoning; where that did not end there is nothing to judge, which is worth 0."""
    return _each(lambda answer: one(answer) if answer.answered else 0.0)


def _each(one: Callable[[Answer], float]) -> Reward:
    return lambda answers: [one(answer) for answer in answers]


_BUILDERS: dict[str, Callable[[RewardTerm, str], Reward]] = {
    "scorer": _scorer,
    "constraints": _scorer,
    "regex": _regex,
    "json_schema": _json_schema,
    "python": _python,
    "grounding": _grounding,
    "judge": _judge,
    "length": _length,
}
