"""What is tried before the first step, on the model as its engine holds it: that it computes what training counts on.

Letters of array shapes: B rows of a batch, R rows of a pack, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from posttrain.data.records import IGNORED
from posttrain.models.batching import pad_rows
from posttrain.models.tree.layout import Groups
from posttrain.stage.errors import UsageError

ROWS, TOKENS = 8, 64
"""Rows of a pack, and tokens of a row, that are compared."""


@torch.no_grad()
def require_separate_rows(model: Any, input_ids_BT: Tensor, position_ids_BT: Tensor, where: str) -> None:
    """Check that the rows of the first pack have the states that they have alone.

    Some families carry a state, or build masks, past where positions begin anew. All ranks must call this. Raises
    UsageError that names the family.
    """
    ids_T, positions_T = input_ids_BT[0], position_ids_BT[0]
    starts = (positions_T == 0).nonzero().flatten().tolist()
    spans = list(zip(starts, [*starts[1:], len(ids_T)], strict=True))[:ROWS]
    end = spans[-1][1]
    packed_TH = _states(model, ids_T[None, :end], position_ids=positions_T[None, :end])[0]
    alone_RT, _ = pad_rows([ids_T[start:stop].tolist() for start, stop in spans], 0)
    alone_RTH = _states(model, alone_RT.to(ids_T.device))
    differences = [
        _difference(packed_TH[start:stop], alone_RTH[row, : stop - start]) for row, (start, stop) in enumerate(spans)
    ]
    if max(differences) > _tolerance(packed_TH, 3e-2):
        raise UsageError(
            f"{where}.packing: {_family(model)} lets the rows of a pack reach into each other (their states differ by "
            f"{max(differences):.2g} from those of the rows alone); set packing=false, or try another attention"
        )


@torch.no_grad()
def require_shared_rewards(model: Any, ids_1T: Tensor, groups: Groups, where: str, rounded: bool = False) -> None:
    """Check that the responses of the first group that has two have the rewards which they have without the others.

    ``rounded`` says whether anything on the way has less than single precision. All ranks must call this. Raises
    UsageError that names the family.
    """
    number = next((n for n, responses in enumerate(groups.responses) if len(responses) > 1), 0)
    span, first = groups.spans[number], sum(map(len, groups.responses[:number]))
    prompt, *responses = (ids_1T[0, part].tolist() for part in (span.prompt, *span.responses[:ROWS]))
    padding = getattr(model, "module", model).config.get_text_config().pad_token_id
    alone_RT, _ = pad_rows([[*prompt, *response] for response in responses], padding)
    alone_R = model(input_ids=alone_RT.to(ids_1T.device), use_cache=False).logits.flatten().float()
    shared_R = model(input_ids=ids_1T, groups=groups, use_cache=False).logits.flatten()
    gap_R = (shared_R[first : first + len(responses)].float() - alone_R).abs() / alone_R.abs().clamp(min=1)
    gap = float(gap_R.max())
    _require_apart(gap, "rewards", model, where, rounded)


@torch.no_grad()
def require_shared_log_probs(
    model: Any, row: tuple[Tensor, Tensor, Groups], scores: Callable[[], Any], where: str, rounded: bool = False
) -> None:
    """Check that the responses of a row's first group have the log-probabilities which they have without each other.

    ``row`` is what `lay_out_to_predict` made, ``scores`` returns what the fused output layer gives for it;
    ``rounded`` says whether anything on the way has less than single precision. All ranks must call this. Raises
    UsageError that names the family.
    """
    ids_1T, labels_1T, groups = row
    span = groups.spans[0]
    prompt, *responses = (ids_1T[0, part].tolist() for part in (span.prompt, *span.responses[:ROWS]))
    alone_RT, mask_RT = pad_rows([[*prompt, *response] for response in responses], 0)
    trained_RT = (mask_RT == 1) & (torch.arange(alone_RT.shape[1]) > len(prompt))
    told = alone_RT.masked_fill(~trained_RT, IGNORED).to(ids_1T.device)
    alone = model(input_ids=alone_RT.to(ids_1T.device), labels=told, use_cache=False, fused_lm_head=True)
    alone_N = alone.log_probs[told[:, 1:] != IGNORED].float()
    shared_1T = scores().log_probs
    first = (labels_1T[:, 1:] != IGNORED).nonzero()[: len(alone_N), 1]
    gap = float((shared_1T[0, first].float() - alone_N).abs().mean())
    _require_apart(gap, "log-probabilities", model, where, rounded)


@torch.no_grad()
def require_fused_log_probs(model: Any, input_ids_BT: Tensor, where: str) -> None:
    """Check that the fused output layer gives what the model's own logits say.

    All ranks must call this. Raises UsageError that names the family.
    """
    ids_BT = input_ids_BT[:1, :TOKENS]
    fused_BT = model(input_ids=ids_BT, labels=ids_BT, use_cache=False, fused_lm_head=True).log_probs
    logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    own_BT = logits_BTV.float().log_softmax(-1).gather(-1, ids_BT[:, 1:, None]).squeeze(-1)
    gap = float((fused_BT.float() - own_BT).abs().mean())
    if gap > _tolerance(logits_BTV, 0.1):
        raise UsageError(
            f"{where}: the logits of {_family(model)} are more than its output layer's product (log-probabilities "
            f"differ by {gap:.2g}), which the fused loss does not know; this family cannot be trained here"
        )


def _require_apart(gap: float, what: str, model: Any, where: str, rounded: bool) -> None:
    if gap > (0.1 if rounded else 1e-4):
        raise UsageError(
            f"{where}.share_prompts: {_family(model)} does not keep apart the responses that share a prompt (their "
            f"{what} differ by {gap:.2g} from those of the responses alone); set {where}.share_prompts=never"
        )


def _states(model: Any, ids_BT: Tensor, **more: Tensor) -> Tensor:
    states_BTH: Tensor = model(input_ids=ids_BT, use_cache=False, output_hidden_states=True, **more).hidden_states[-1]
    return states_BTH


def _difference(found_TH: Tensor, expected_TH: Tensor) -> float:
    """Return how far states lie from others, as a share of their length, in the mean over tokens."""
    gap_T = (found_TH.float() - expected_TH.float()).norm(dim=-1)
    return float((gap_T / expected_TH.float().norm(dim=-1).clamp(min=1e-6)).mean())


def _tolerance(computed: Tensor, rounded: float) -> float:
    """Return what passes for rounding: ``rounded`` where numbers have less than single precision."""
    return 1e-4 if computed.dtype in (torch.float32, torch.float64) else rounded


def _family(model: Any) -> str:
    inner = getattr(model, "module", model)  # out of DDP's or DeepSpeed's wrapper
    return str(inner.config.model_type)
