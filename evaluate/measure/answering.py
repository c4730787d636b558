"""Responses to evaluation items, kept as they come: an evaluation that was cut goes on where it was, item by item."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from posttrain.data.messages import Conversation, message_dicts
from posttrain.data.records import EvaluationItem, prompt_of
from posttrain.models.batching import by_length
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.generate import CHUNK_BATCHES
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.errors import NonFiniteLossError, UsageError
from posttrain.stage.progress import track

JOURNAL = "answers.jsonl"


def answer_items(
    sampler: Sampler,
    items: Sequence[EvaluationItem],
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    work: Path,
) -> list[list[Sample]]:
    """Return the samples of each item; what an earlier attempt left in ``work`` is not sampled again.

    Raises NonFiniteLossError where the model gives a token no finite log-probability.
    """
    journal = work / JOURNAL
    found = _read(journal)
    left = [row for row, item in enumerate(items) if item.id not in found]
    most = max((request.num_samples for request in params), default=1)
    chunk = max(1, CHUNK_BATCHES * sampler.max_batch_size // most)
    with journal.open("a", encoding="utf-8") as file:
        for places in track(by_length([prompts[row] for row in left], chunk), len(left), "generate"):
            rows = [left[place] for place in places]
            own = sampler.generate([prompts[row] for row in rows], [params[row] for row in rows])
            for row, samples in zip(rows, own, strict=True):
                require_finite(items[row], samples)
                found[items[row].id] = samples
                file.write(
                    json.dumps({"id": items[row].id, "samples": [dataclasses.asdict(s) for s in samples]}) + "\n"
                )
            file.flush()
            os.fsync(file.fileno())
    return [found[item.id] for item in items]


def _read(journal: Path) -> dict[str, list[Sample]]:
    """Return the samples by item of a journal; a last line that was cut while it was written does not count."""
    found: dict[str, list[Sample]] = {}
    if not journal.exists():
        return found
    whole, _, torn = journal.read_text(encoding="utf-8").rpartition("\n")
    if torn:
        journal.write_text(whole + "\n" * bool(whole), encoding="utf-8")
    for line in whole.splitlines():
        row = json.loads(line)
        found[row["id"]] = [Sample(**sample) for sample in row["samples"]]
    return found


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
