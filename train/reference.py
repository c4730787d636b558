"""Log-probabilities of every response under the frozen reference model, computed once and kept as an artifact.

    accelerate launch -m posttrain.train.reference inputs.model=DIR inputs.data=DIR output=DIR

B sequences of a batch, T positions. Responses are sorted by length and batched by tokens, so little padding is
computed; ranks take batches in turn.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from datasets import Dataset
from torch import Tensor

from posttrain.data.chat import load_tokenizer
from posttrain.sample.batching import by_tokens, pad_rows
from posttrain.sample.models import load_policy
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.train.config import ReferenceConfig
from posttrain.train.dataset import read_groups, require_tokens
from posttrain.train.processes import device, join

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Response:
    """One response of one group, with its prompt."""

    id: str
    index: int
    prompt_length: int
    ids: list[int]


def responses_of(groups: Dataset) -> list[Response]:
    """Return every response of every group, in file order."""
    return [
        Response(group["id"], index, len(group["prompt_ids"]), group["prompt_ids"] + response)
        for group in groups
        for index, response in enumerate(group["responses_ids"])
    ]


def batches_by_tokens(responses: list[Response], batch_tokens: int) -> list[list[Response]]:
    """Return batches of similar length, longest first, each of at most ``batch_tokens`` padded tokens."""
    ordered = sorted(responses, key=lambda item: (item.id, item.index))
    batches = by_tokens([len(item.ids) for item in ordered], batch_tokens)
    return [[ordered[row] for row in rows] for rows in batches]


@torch.no_grad()
def response_log_probs(model: Any, batch: list[Response], pad_token_id: int) -> Tensor:
    """Return the summed log-probability of each response given its prompt, as ``logp_B`` in float64."""
    device = next(model.parameters()).device
    ids_BT, mask_BT = (t.to(device) for t in pad_rows([response.ids for response in batch], pad_token_id))
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits[:, :-1]
    targets_BT = ids_BT[:, 1:]
    picked_BT = logits_BTV.float().log_softmax(-1).gather(-1, targets_BT[..., None]).squeeze(-1)
    starts = torch.tensor([response.prompt_length - 1 for response in batch], device=device)
    in_response_BT = (torch.arange(targets_BT.shape[1], device=device) >= starts[:, None]) & mask_BT[:, 1:].bool()
    logp_B: Tensor = (picked_BT.double() * in_response_BT).sum(-1)
    return logp_B


def _table(rows: list[tuple[str, int, float]]) -> pa.Table:
    schema = pa.schema([("id", pa.string()), ("response", pa.int32()), ("logp", pa.float64())])
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def run(config: ReferenceConfig, context: Context) -> StageResult:
    """Score all responses of ``inputs.data`` under ``inputs.model`` and write one row a response."""
    world_size = join(context)
    rank = dist.get_rank() if dist.is_initialized() else 0
    tokenizer = load_tokenizer(context.inputs["model"])
    require_tokens(context.inputs["data"], "comparison", tokenizer)
    model = load_policy(context.inputs["model"], config.dtype, config.attention, four_bit=config.four_bit)
    model = model.to(device()).eval()
    tokens = 0
    for split in ("train", "eval"):
        responses = responses_of(read_groups(context.inputs["data"], split))
        tokens += sum(len(response.ids) for response in responses)
        batches = batches_by_tokens(responses, config.batch_tokens)
        heartbeat.beat(f"scoring {split}")
        part: list[tuple[str, int, float]] = []
        for number in range(rank, len(batches), world_size):
            values = response_log_probs(model, batches[number], tokenizer.pad_token_id).tolist()
            heartbeat.pulse()
            part += [(item.id, item.index, logp) for item, logp in zip(batches[number], values, strict=True)]
        parts: list[Any] = [part]
        if dist.is_initialized():
            parts = [None] * world_size
            dist.all_gather_object(parts, part)
        rows = sorted(row for piece in parts for row in piece)
        log.info("%s: %d responses in %d batches", split, len(rows), len(batches))
        if context.main_process:
            pq.write_table(_table(rows), context.output / f"{split}.parquet")
    return StageResult({"tokens": tokens}, f"{tokens:,} tokens scored", tokens)


if __name__ == "__main__":
    stage_main(run, ReferenceConfig, kind="reference_logps")
