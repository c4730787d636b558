"""Read what the evaluation stages need of their input artifacts, with all checks before a model loads."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow.parquet as pq
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import require_tokens
from posttrain.data.checks.scorers import RATINGS, require_scorer, require_whole_reference
from posttrain.data.messages import Conversation
from posttrain.data.records import SPLITS, EvaluationItem, dataset_type, prompt_of, read_records
from posttrain.models.declared import context_length
from posttrain.stage.errors import UsageError

log = logging.getLogger(__name__)

NONE = "no held-out rows"
"""What a stage says that has nothing to evaluate on."""


def read_heldout_tokens(directory: Path, record_type: str, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the held-out rows of a tokens artifact; where there are none, as a user may choose, a warning says so.

    Raises UsageError when it holds another record type, or was made with another tokenizer or chat template than the
    model's.
    """
    require_tokens(directory, record_type, tokenizer)
    rows: list[dict[str, Any]] = pq.read_table(directory / "eval.parquet").to_pylist()
    if not rows:
        log.warning(
            "%s: %s; more rows, or a higher eval_fraction of its dataset, would hold some out", directory.name, NONE
        )
    return rows


def read_evaluation_items(directory: Path) -> list[EvaluationItem]:
    """Return the held-out evaluation items of a dataset, or all of them when none is held out.

    Raises UsageError when the dataset holds other records or nothing, or an item's scorer cannot be used, or cannot
    judge by its reference.
    """
    record_type = dataset_type(directory)
    if record_type is not EvaluationItem:
        raise UsageError(f"{directory.name}: holds {record_type.__name__} records; give a dataset of evaluation items")
    items = read_records(directory / "eval.parquet", EvaluationItem)
    if not items:
        items = [item for split in SPLITS for item in read_records(directory / f"{split}.parquet", EvaluationItem)]
    if not items:
        raise UsageError(f"{directory.name}: no evaluation items; look at its accounting.json for where they went")
    for item in items:
        try:
            require_scorer(item.scorer)
            require_whole_reference(item.scorer, item.reference)
        except UsageError as error:
            raise UsageError(f"{directory.name}: item {item.id}: {error}") from None
    return items


def require_right_and_wrong(items: Iterable[EvaluationItem], where: str) -> None:
    """Raise UsageError, naming the stage ``where``, for an item whose scorer only rates and calls nothing right."""
    for item in items:
        if item.scorer in RATINGS:
            raise UsageError(
                f"{where}: item {item.id}: {item.scorer} rates responses and calls none right, so there is no share "
                "of right ones; use evaluate.drift, which takes means"
            )


class _OfATask(Protocol):
    @property
    def task(self) -> str: ...

    @property
    def language(self) -> str: ...


T = TypeVar("T", bound=_OfATask)


def take_evenly(items: Sequence[T], most: int | None) -> list[T]:
    """Return at most ``most`` items, taken in turns from each task and language, in the order given."""
    if most is None or len(items) <= most:
        return list(items)
    queues: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        queues[item.task, item.language].append(index)
    turns = [index for index in chain.from_iterable(zip_longest(*queues.values())) if index is not None]
    return [items[index] for index in sorted(turns[:most])]


def split_by_length(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: Sequence[EvaluationItem],
    max_new_tokens: int | Sequence[int],
    conversations: Sequence[Conversation] | None = None,
) -> tuple[list[EvaluationItem], list[str]]:
    """Return the items that the model's context holds together with a response, and the ids of the others.

    ``max_new_tokens`` is one for all items, or one for each; ``conversations`` are what the items ask, where that is
    more than their own prompts.

    Raises UsageError when it holds none.
    """
    context = context_length(model.config)
    if context is None:
        return list(items), []
    ids = encode_prompts(tokenizer, conversations or [prompt_of(item) for item in items])
    most = [max_new_tokens] * len(ids) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    fits = [len(prompt) + new <= context for prompt, new in zip(ids, most, strict=True)]
    fitting = [item for item, fit in zip(items, fits, strict=True) if fit]
    if not fitting:
        raise UsageError(
            f"max_new_tokens={min(most)}: with the shortest prompt of {min(map(len, ids))} tokens, no item fits "
            f"the model's context of {context}; lower it"
        )
    too_long = [item.id for item, fit in zip(items, fits, strict=True) if not fit]
    if too_long:
        log.warning("%d of %d items leave no room for a response and are left out", len(too_long), len(items))
    return fitting, too_long
