"""Log-probabilities of every response under the frozen reference model, computed once and kept as an artifact.

Of unpaired preferences also those of a mismatched response each, see `posttrain.train.rows.unpaired`.

    accelerate launch -m posttrain.train.reference inputs.model=DIR inputs.data=DIR output=DIR

Prompts lie in one row with all their responses, as many as a budget of tokens takes; or else responses are sorted by
length and batched by tokens, so that little padding is computed. Ranks take batches in turn.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from posttrain.models.batching import by_tokens
from posttrain.models.load import load_policy
from posttrain.models.processes import device
from posttrain.models.shared_prompts import by_budget, shared_log_probs
from posttrain.models.token_log_probs import response_log_probs
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config.reference import ReferenceConfig
from posttrain.train.engine.opening import begin
from posttrain.train.nets.sharing import made_to_share
from posttrain.train.rows.dataset import read_groups
from posttrain.train.rows.unpaired import is_unpaired, read_unpaired

Group = tuple[str, list[int], list[list[int]]]
"""Id, prompt and responses of a row."""
Logp = tuple[str, int, float]
"""Id of a row, number of a response there, and its log-probability."""

log = logging.getLogger(__name__)


def run(config: ReferenceConfig, context: Context) -> StageResult:
    """Score all responses of ``inputs.data`` under ``inputs.model`` and write one row a response."""
    unpaired = is_unpaired(context.inputs["data"])
    begin(context, "unpaired" if unpaired else "comparison")
    model = load_policy(context.inputs["model"], config.dtype, config.attention, four_bit=config.four_bit)
    model = model.to(device()).eval()
    shared = made_to_share(model, config.share_prompts, config.attention, "train.reference", scores=True)
    tokens = 0
    for split in ("train", "eval"):
        groups = responses_of(context.inputs["data"], split, unpaired)
        tokens += sum(len(prompt) + len(response) for _, prompt, responses in groups for response in responses)
        scored = _with_shared_prompts if shared else _each_alone
        part, batches = scored(model, groups, config.batch_tokens)
        rows = sorted(_gathered(part))
        log.info("%s: %d responses in %d batches", split, len(rows), batches)
        if context.main_process:
            pq.write_table(_table(rows), context.output / f"{split}.parquet")
    return StageResult({"tokens": tokens}, f"{tokens:,} tokens scored", tokens)


def _with_shared_prompts(model: Any, groups: list[Group], batch_tokens: int) -> tuple[list[Logp], int]:
    """Return this rank's part of the log-probabilities, and the number of all ranks' batches."""
    batches = by_budget([group[1:] for group in groups], batch_tokens)
    found = shared_log_probs(model, [group[1:] for group in groups], _own(batches))
    part = [
        (groups[row][0], number, float(logps.sum(dtype="float64")))
        for row, of_row in found.items()
        for number, logps in enumerate(of_row)
    ]
    return part, len(batches)


def _each_alone(model: Any, groups: list[Group], batch_tokens: int) -> tuple[list[Logp], int]:
    """Do as `_with_shared_prompts`, for each response with a prompt of its own."""
    names = [(name, number) for name, _, responses in groups for number in range(len(responses))]
    prompts = [prompt for _, prompt, responses in groups for _ in responses]
    responses = [response for _, _, of_group in groups for response in of_group]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    batches = by_tokens(lengths, batch_tokens)
    found = response_log_probs(model, prompts, responses, _own(batches), share=False)
    return [(*names[number], float(logps.sum(dtype="float64"))) for number, logps in found.items()], len(batches)


def responses_of(data: Path, split: str, unpaired: bool) -> list[Group]:
    """Return id, prompt and responses of every row; of unpaired ones its own response and a mismatched one."""
    if not unpaired:
        return [(row["id"], row["prompt_ids"], row["responses_ids"]) for row in read_groups(data, split)]
    rows = read_unpaired(data, split)
    return [(row["id"], row["prompt_ids"], [row["response_ids"], row["mismatched_ids"]]) for row in rows]


def _own(batches: list[list[int]]) -> list[list[int]]:
    """Return the batches that are this rank's turn."""
    return batches[dist.get_rank() :: dist.get_world_size()] if dist.is_initialized() else batches


def _gathered(part: list[Logp]) -> list[Logp]:
    """Return the rows of all ranks."""
    if not dist.is_initialized():
        return part
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part)
    return [row for piece in parts for row in piece]


def _table(rows: list[Logp]) -> pa.Table:
    schema = pa.schema([("id", pa.string()), ("response", pa.int32()), ("logp", pa.float64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


if __name__ == "__main__":
    stage_main(run, ReferenceConfig, kind="reference_logps")
