"""Get the answers to questions: responses that a model samples, or the options that it finds the most likely."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_behind, encode_prompts
from posttrain.data.checks.options import LIKELIEST, likeliest
from posttrain.data.records import IGNORED
from posttrain.evaluate.inputs import split_by_length
from posttrain.evaluate.measure.answering import Question
from posttrain.evaluate.measure.heldout import row_losses
from posttrain.models.processes import Rank
from posttrain.sample.sampling import Generates, Sample
from posttrain.sample.shares import sample_shares


def fitting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> tuple[list[Question], list[str]]:
    """Return the questions that the model's context holds with their answers, and the ids of the others."""
    items, conversations = [one.item for one in questions], [one.conversation for one in questions]
    items, too_long = split_by_length(
        model, tokenizer, items, [_longest(tokenizer, one) for one in questions], conversations
    )
    kept = {item.id for item in items}
    return [one for one in questions if one.item.id in kept], too_long


def _longest(tokenizer: PreTrainedTokenizerBase, question: Question) -> int:
    lengths = [len(encode_behind(tokenizer, option)) for option in question.options]
    return max(lengths, default=question.params.max_tokens)


def answers_to(
    rank: Rank,
    work: Path,
    model: PreTrainedModel,
    source: Generates,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    batch_size: int,
) -> list[list[Sample]] | None:
    """Return the samples of each question on the first rank, None on the others; an option is a sample too.

    ``source`` samples, and ``model`` says how likely options are. What is in ``work`` is not asked again.
    """
    prompts = encode_prompts(tokenizer, [one.conversation for one in questions])
    sampled = [place for place, one in enumerate(questions) if not one.options]
    chosen = [place for place, one in enumerate(questions) if one.options]
    samples = sample_shares(
        rank, work, source, [prompts[n] for n in sampled], [questions[n].params for n in sampled], batch_size
    )
    options = _options(
        rank, work, model, tokenizer, [prompts[n] for n in chosen], [questions[n] for n in chosen], batch_size
    )
    if samples is None or options is None:
        return None
    found = dict(zip([*sampled, *chosen], [*samples, *options], strict=True))
    return [found[place] for place in range(len(questions))]


def _options(
    rank: Rank,
    work: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    questions: Sequence[Question],
    batch_size: int,
) -> list[list[Sample]] | None:
    """Return the likeliest option of each question, with its log-probability, as the one sample of it."""
    if not questions:
        return []
    pairs = [
        (prompt, encode_behind(tokenizer, option))
        for prompt, question in zip(prompts, questions, strict=True)
        for option in question.options
    ]
    rows = [[*prompt, *option] for prompt, option in pairs]
    labels = [[*[IGNORED] * len(prompt), *option] for prompt, option in pairs]
    losses = row_losses(rank, work, model, rows, labels, batch_size, "options")
    if losses is None:
        return None
    found, start = [], 0
    for question in questions:
        options = question.options
        logprobs = [-one.loss for one in losses[start : start + len(options)]]
        ids = [option for _, option in pairs[start : start + len(options)]]
        place = options.index(likeliest(options, logprobs, LIKELIEST[question.item.scorer]))
        found.append([Sample(ids[place], [logprobs[place]], [], "stop", options[place], 0.0)])
        start += len(options)
    return found
