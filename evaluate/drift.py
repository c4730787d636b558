"""Sample a policy afresh, and say what its responses are worth and how far they lie from a reference model.

python -m posttrain.evaluate.drift inputs.model=DIR inputs.reference=DIR inputs.items=DIR output=DIR num_samples=4
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import numpy as np
import torch

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.evaluate.config.drift import DriftConfig
from posttrain.evaluate.inputs import read_evaluation_items, split_by_length, take_evenly
from posttrain.evaluate.measure.answering import require_finite
from posttrain.evaluate.measure.drift_scores import (
    FIGURES,
    SampledResponse,
    divergence,
    summarise_responses,
    write_responses,
)
from posttrain.evaluate.measure.item_scores import prompt_text, scores_of
from posttrain.models.batching import by_tokens
from posttrain.models.load import load_policy
from posttrain.models.token_log_probs import response_log_probs
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.many import sample_prompts
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.score import member_rewards, members, require_tokenizer
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)


def run(config: DriftConfig, context: Context) -> StageResult:
    """Write samples.parquet and summary.json."""
    directory, reference_directory = context.inputs["model"], context.inputs["reference"]
    tokenizer = load_tokenizer(directory)
    if tokenizer_digest(tokenizer) != tokenizer_digest(load_tokenizer(reference_directory)):
        raise UsageError(
            "evaluate.drift: model and reference differ in tokenizer, so one cannot score what the other says; give "
            "as reference the model that training started from"
        )
    judges = members(context.inputs, "reward_model")
    require_tokenizer(judges, tokenizer_digest(tokenizer), "evaluate.drift")
    items = take_evenly(read_evaluation_items(context.inputs["items"]), config.max_items)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_policy(directory, config.dtype).eval().to(device)
    items, too_long = split_by_length(model, tokenizer, items, config.max_new_tokens)
    log.info("%d items, %d samples each, %d new tokens at most", len(items), config.num_samples, config.max_new_tokens)

    prompts = encode_prompts(tokenizer, [prompt_of(item) for item in items])
    plain_params = SamplingParams(
        max_tokens=config.max_new_tokens, temperature=config.temperature, num_samples=config.num_samples
    )
    params = [dataclasses.replace(plain_params, seed=derived_seed(context.spec.seed, item.id)) for item in items]
    sampler = Sampler(model, tokenizer, max_batch_size=config.batch_size)
    samples = sample_prompts(sampler, prompts, params)  # an item's seed is its own: policies draw with the same luck
    for item, own in zip(items, samples, strict=True):
        require_finite(item, own)
    asked = [prompt for prompt, own in zip(prompts, samples, strict=True) for _ in own]
    said = [sample.token_ids for own in samples for sample in own]
    lengths = [len(prompt) + len(response) for prompt, response in zip(asked, said, strict=True)]
    batches = by_tokens(lengths, config.scoring_tokens)
    logprobs = response_log_probs(model, asked, said, batches, config.temperature)
    del model
    reference = load_policy(reference_directory, config.dtype).eval().to(device)
    plain = tempered = response_log_probs(reference, asked, said, batches)
    if config.temperature != 1:
        tempered = response_log_probs(reference, asked, said, batches, config.temperature)
    del reference
    rewards = None
    if judges:
        whole = [[*prompt, *response] for prompt, response in zip(asked, said, strict=True)]
        rewards = member_rewards(judges, whole, tokenizer.pad_token_id, config.batch_size, config.dtype).T.tolist()

    numbered = [(item, number, one) for item, own in zip(items, samples, strict=True) for number, one in enumerate(own)]
    responses = [
        score_response(
            *sampled,
            divergence(logprobs[row], tempered[row]),
            float(plain[row].sum(dtype=np.float64)),
            None if rewards is None else rewards[row],
        )
        for row, sampled in enumerate(numbered)
    ]
    write_responses(context.output, responses)
    summary = summarise_responses(responses, config.confidence, config.resamples, context.spec.seed)
    summary |= {"temperature": config.temperature, "confidence": config.confidence, "too_long": too_long}
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, sum(map(len, said)))


def score_response(
    item: EvaluationItem,
    number: int,
    sample: Sample,
    divergences: tuple[float, float],
    reference_logprob: float,
    rewards: list[float] | None = None,
) -> SampledResponse:
    """Return a sample of an item with its scores; ``divergences`` are its `kl` and `k3`."""
    correct, preference = scores_of(item, sample.text)
    return SampledResponse(
        id=item.id,
        task=item.task,
        language=item.language,
        sample=number,
        prompt=prompt_text(item.prompt),
        response=sample.response,
        tokens=len(sample.token_ids),
        ended=sample.ended,
        correct=correct,
        preference=preference,
        score=correct if preference is None else preference,
        kl=divergences[0],
        k3=divergences[1],
        reference_logprob=reference_logprob,
        answer=sample.text,
        reasoning_tokens=sample.reasoning_tokens,
        group=item.group,
        rewards=rewards,
    )


def _result(summary: dict[str, Any], tokens: int) -> StageResult:
    metrics: dict[str, Any] = {name: summary[name]["value"] for name in FIGURES if name in summary}
    metrics |= {name: summary[name] for name in ("items", "responses", "distinct_1", "distinct_2")}
    metrics["too_long"] = len(summary["too_long"])
    headline = f"score {metrics['score']:.3f}, KL {metrics['kl']:.2f}"
    return StageResult(metrics=metrics, headline=headline, tokens=tokens)


if __name__ == "__main__":
    stage_main(run, DriftConfig, kind="drift")
