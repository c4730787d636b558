"""What is asked of the sampler: what it cannot do, and which requests run together."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig

from posttrain.models.declared import context_length, rope_border
from posttrain.sample.sampling import Prompts, SamplingParams
from posttrain.stage.errors import UsageError

PREFILL_TOKENS = 2048
"""Most tokens of prompts, padding included, that run at once."""
SAVED_TOKENS = 16384
"""Tokens of keys and values that must be saved for samples of unequal length to run one after the other."""


def length_groups(prompts: Prompts, params: Sequence[SamplingParams], rows: int) -> list[list[int]]:
    """Return prompts in groups whose samples run together: a batch has room for its longest sample in every row.

    A group ends where samples are less than half as long as its longest, if that saves `SAVED_TOKENS` or more.
    """
    lengths = [len(ids) + request.max_tokens for ids, request in zip(prompts, params, strict=True)]
    order = sorted(range(len(prompts)), key=lambda number: lengths[number], reverse=True)
    left = sum(request.num_samples for request in params)
    groups: list[list[int]] = []
    for number in order:
        longest = lengths[groups[-1][0]] if groups else 0
        saved = min(rows, left) * (longest - lengths[number])
        if groups and (2 * lengths[number] >= longest or saved < SAVED_TOKENS):
            groups[-1].append(number)
        else:
            groups.append([number])
        left -= params[number].num_samples
    return groups


def prefill_groups(
    entering: list[tuple[Sequence[int], int, list[int]]], shared: int
) -> list[list[tuple[Sequence[int], int, list[int]]]]:
    """Return entering prompts in groups of similar length, the longest first, each of at most PREFILL_TOKENS.

    Of prompts that begin with the same ``shared`` tokens only the others count.
    """
    groups: list[list[tuple[Sequence[int], int, list[int]]]] = []
    for entry in sorted(entering, key=lambda entry: len(entry[0]), reverse=True):
        longest = len(groups[-1][0][0]) if groups else 0
        tokens = (longest - shared) * (len(groups[-1]) + 1) if groups else 0
        if groups and len(entry[0]) * 4 >= longest * 3 and tokens <= PREFILL_TOKENS:
            groups[-1].append(entry)
        else:
            groups.append([entry])
    return groups


def check_bias(number: int, params: SamplingParams, vocabulary: int) -> None:
    """Raise UsageError where a bias is that of no token."""
    unknown = [token for token in params.logit_bias if not 0 <= token < vocabulary]
    if unknown:
        raise UsageError(
            f"prompt {number}: logit_bias of token {unknown[0]}: the model has tokens 0 to {vocabulary - 1}; mend it"
        )


def check_length(number: int, prompt: Sequence[int], params: SamplingParams, config: PreTrainedConfig) -> None:
    """Raise UsageError where a prompt is empty, or the model has no room for it and its samples."""
    limit, border = context_length(config), rope_border(config)
    if not prompt:
        raise UsageError(f"prompt {number}: no tokens; begin it with BOS or a chat template")
    length = len(prompt) + params.max_tokens
    if border is not None and length > border:
        raise UsageError(
            f"prompt {number}: {len(prompt)} tokens and max_tokens={params.max_tokens} pass {border} tokens, behind "
            "which the model's longrope has other factors; lower max_tokens, shorten the prompt, or use a server"
        )
    if limit is not None and length > limit:
        raise UsageError(
            f"prompt {number}: {len(prompt)} tokens and max_tokens={params.max_tokens} exceed the model's context of "
            f"{limit}; lower max_tokens or shorten the prompt"
        )
