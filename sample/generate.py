"""Make demonstrations of a model's responses: sample prompts, choose among the samples, count why others are left out.

    python -m posttrain.sample.generate inputs.model=DIR inputs.prompts=DIR output=DIR sampling.num_samples=8

`demonstrations.jsonl` is a source for `data.curate`: synthetic data, a teacher's responses for a student, or the best
of N of a model's own. Where the dataset of prompts is an input of that curation too, each row falls on the side of its
prompt.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.messages import message_dicts
from posttrain.data.records import prompt_of
from posttrain.models.load import load_policy, load_reward_model
from posttrain.models.processes import device, join_to_share
from posttrain.sample.choose.answers import extractor
from posttrain.sample.choose.chosen import (
    Chosen,
    choose_all,
    choose_best,
    choose_first,
    choose_majority,
    fault_of,
)
from posttrain.sample.choose.confidence import mean_logprob
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.generate import GenerateConfig, StructureConfig
from posttrain.sample.config.sampling import sampling_params
from posttrain.sample.engine.requests import check_length
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.judges import (
    Judge,
    build_judge,
    own_scorer,
    read_prompts,
    reference_of,
    reply_of,
    require_finite,
)
from posttrain.sample.sampling import Sample, SamplingParams, Score
from posttrain.sample.score import by_reward
from posttrain.sample.shares import sampling_chunks, shared_out
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.grammar import Grammar
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.ladder import read_document
from posttrain.sample.structured.named import constraint_of, read_constraint
from posttrain.stage.artifact import read_manifest
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import write_json_atomic

STAGE = "sample.generate"
log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Means:
    """What samples are drawn and chosen with."""

    config: GenerateConfig
    tokenizer: PreTrainedTokenizerBase
    sampler: Sampler
    grammar: Grammar | None
    validator: Validator | None
    judge: Judge | None
    reward: Score | None
    generator: str
    """The model's stage and digest."""


def run(config: GenerateConfig, context: Context) -> StageResult:
    """Write demonstrations.jsonl, and accounting.json: what was drawn, kept and dropped."""
    rank = join_to_share(context)
    records = read_prompts(context.inputs["prompts"])
    means = _means(config, context, records)
    prompts = encode_prompts(means.tokenizer, [prompt_of(record) for record in records])
    plain = sampling_params(config.sampling, context.spec.seed)
    params = [dataclasses.replace(plain, seed=derived_seed(plain.seed, record.id)) for record in records]
    rows = [row for row, ids in enumerate(prompts) if _has_room(means.sampler, ids, plain)]

    def make(places: list[int]) -> list[Any]:
        own = [rows[place] for place in places]
        return answered(means, [records[r] for r in own], [prompts[r] for r in own], [params[r] for r in own])

    chunks = sampling_chunks([prompts[row] for row in rows], [params[row] for row in rows], config.batch_size)
    made = shared_out(rank, context.work, "responses", chunks, make)
    if made is None:
        return StageResult()
    accounting = account(len(records), made)
    with (context.output / "demonstrations.jsonl").open("w", encoding="utf-8") as file:
        for found in made:
            for row in found["rows"]:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
    write_json_atomic(context.output / "accounting.json", accounting)
    return _result(accounting, made, means.generator)


def _means(config: GenerateConfig, context: Context, records: Sequence[Any]) -> Means:
    """Read and check everything, the models last."""
    judge = build_judge(STAGE, config.function, config.scorer, records) if config.verifies else None
    if (config.choose == "reward") != ("reward_model" in context.inputs):
        raise UsageError(
            f"{STAGE}: choose={config.choose}; choose=reward and inputs.reward_model go together: give both"
        )
    constraint = read_structure(config.structure)
    tokenizer = load_tokenizer(context.inputs["model"])
    if config.choose == "reward" and tokenizer_digest(tokenizer) != tokenizer_digest(
        load_tokenizer(context.inputs["reward_model"])
    ):
        raise UsageError(f"{STAGE}: model and reward_model differ in tokenizer; train both from one base")
    model = load_policy(context.inputs["model"], config.dtype).eval().to(device())
    sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size, max_batch_tokens=config.batch_tokens)
    grammar = constraint_of(Vocabulary.of(tokenizer, sampler.ends), *constraint) if constraint is not None else None
    validator = Validator(constraint[1]) if constraint is not None and not isinstance(constraint[1], str) else None
    reward = None
    if config.choose == "reward":
        judge_model = load_reward_model(context.inputs["reward_model"], config.dtype).eval().to(device())
        reward = by_reward(judge_model, tokenizer.pad_token_id, config.batch_size)
    made = read_manifest(context.inputs["model"])
    generator = f"{made.run}@{made.digest[:16]}"
    return Means(config, tokenizer, sampler, grammar, validator, judge, reward, generator)


def read_structure(structure: StructureConfig) -> tuple[str, Any] | None:
    """Return kind and content of a structure; raise UsageError, naming the knob, where it is none."""
    for kind, value in structure.given():
        if kind != "schema":
            return kind, value
        try:
            return kind, read_constraint(kind, value)
        except UsageError as error:
            raise UsageError(f"{STAGE}.structure.{str(error).removeprefix('--')}") from None
    return None


def _has_room(sampler: Sampler, prompt: Sequence[int], params: SamplingParams) -> bool:
    try:
        check_length(0, prompt, params, sampler.model.config)
    except UsageError:
        return False
    return True


def answered(
    means: Means, records: Sequence[Any], prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
) -> list[dict[str, Any]]:
    """Return, for each prompt, its demonstrations, what was dropped and why, and the tokens that were drawn."""
    verdicts: dict[tuple[int, tuple[int, ...]], float] = {}

    def score_of(place: int, sample: Sample) -> float:
        assert means.judge is not None
        said = place, tuple(sample.token_ids)
        if said not in verdicts:
            verdicts[said] = means.judge(records[place], reply_of(means.tokenizer, prompts[place], sample))
            require_finite(STAGE, [[verdicts[said]]])
        return verdicts[said]

    def fault(place: int, sample: Sample) -> str | None:
        if found := fault_of(sample):
            return found
        if means.validator is not None and not read_document(sample.text, means.validator).valid:
            return "invalid"
        least = means.config.min_score
        return "low_score" if least is not None and score_of(place, sample) < least else None

    accept = (lambda place, sample: fault(place, sample) is None) if means.config.choose == "first_valid" else None
    constraints = [means.grammar] * len(prompts)
    samples = means.sampler.generate(prompts, params, constraints=constraints, accept=accept)
    rewards = means.reward(prompts, samples) if means.reward is not None else [None] * len(samples)
    made = []
    for place, (record, own) in enumerate(zip(records, samples, strict=True)):
        chosen = _chosen(means, record, own, place, (fault, score_of), rewards[place])
        rows = [
            demonstration(means, record, reply_of(means.tokenizer, prompts[place], own[number]), own[number])
            | {"id": record.id if len(own) == 1 or means.config.choose != "all" else f"{record.id}#{number}"}
            | ({"score": score} if score is not None else {})
            for number, score in zip(chosen.numbers, chosen.scores, strict=True)
        ]
        tokens = sum(len(sample.token_ids) for sample in own)
        made.append({"rows": rows, "dropped": dict(sorted(chosen.dropped.items())), "tokens": tokens})
    return made


def _chosen(
    means: Means,
    record: Any,
    samples: Sequence[Sample],
    place: int,
    verify: tuple[Callable[[int, Sample], str | None], Callable[[int, Sample], float]],
    rewards: Sequence[float] | None,
) -> Chosen:
    how = means.config.choose

    def fault(sample: Sample) -> str | None:
        return verify[0](place, sample)

    scores = rewards
    if means.judge is not None and how in ("all", "verifier"):
        scores = [verify[1](place, sample) if fault_of(sample) is None else 0.0 for sample in samples]
    if how == "all":
        return choose_all(samples, fault, scores)
    if how == "first_valid":
        return choose_first(samples, fault)
    if how == "vote":
        labels = sorted((reference_of(record) or "").split("|"))
        scorer = means.config.scorer or own_scorer(record) or "exact"
        return choose_majority(samples, fault, extractor(scorer, labels))
    return choose_best(samples, fault, scores)


def demonstration(means: Means, record: Any, reply: Any, sample: Sample) -> dict[str, Any]:
    """Return a response in the shape of the adapter ``prompt_completion``, with where it comes from."""
    turn = {"role": "assistant", "content": reply.answer}
    if reply.reasoning and means.config.reasoning == "keep":
        turn["reasoning_content"] = reply.reasoning
    return {
        "prompt": message_dicts(record.prompt),
        "completion": [turn],
        "tools": record.tools,
        "template_arguments": record.template_arguments,
        "license": means.config.license or record.license,
        "language": record.language,
        "task": record.task,
        "generator": means.generator,
        "logprob": mean_logprob(sample.logprobs),
    }


def account(prompts: int, made: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return what became of prompts and samples; raise PosttrainError where nothing is left, saying why."""
    dropped: Counter[str] = Counter()
    for found in made:
        dropped.update(found["dropped"])
    kept = sum(len(found["rows"]) for found in made)
    answered_prompts = sum(bool(found["rows"]) for found in made)
    accounting: dict[str, Any] = {
        "prompts": {
            "in": prompts,
            "too_long": prompts - len(made),
            "no_response": len(made) - answered_prompts,
            "kept": answered_prompts,
        },
        "samples": {"in": kept + dropped.total(), "kept": kept, "dropped": dict(sorted(dropped.items()))},
    }
    told = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
    if not kept:
        raise PosttrainError(
            f"{STAGE}: no response is left of {prompts} prompts, {prompts - len(made)} of them too long; dropped: "
            f"{told or 'none'}; raise sampling.max_tokens, or ask for less"
        )
    if kept + dropped["not_chosen"] + dropped["aborted"] < accounting["samples"]["in"] or answered_prompts < prompts:
        log.warning(
            "%d of %d prompts have no response (%d are too long); of the samples were dropped: %s",
            prompts - answered_prompts,
            prompts,
            prompts - len(made),
            told or "none",
        )
    return accounting


def _result(accounting: dict[str, Any], made: Sequence[dict[str, Any]], generator: str) -> StageResult:
    prompts, samples = accounting["prompts"], accounting["samples"]
    scores = [row["score"] for found in made for row in found["rows"] if "score" in row]
    metrics: dict[str, Any] = {"prompts": prompts["kept"], "responses": samples["kept"]}
    metrics |= {f"prompts_{name}": prompts[name] for name in ("too_long", "no_response")}
    metrics |= {f"dropped_{reason}": count for reason, count in samples["dropped"].items()}
    if scores:
        metrics["score"] = sum(scores) / len(scores)
    return StageResult(
        metrics=metrics,
        headline=f"{samples['kept']:,} responses to {prompts['kept']:,} of {prompts['in']:,} prompts",
        tokens=sum(found["tokens"] for found in made),
        licenses=sorted({row["license"] for found in made for row in found["rows"]}),
        facts={"generator": generator, "accounting": accounting},
    )


if __name__ == "__main__":
    stage_main(run, GenerateConfig, kind="sources")
