"""Log-probabilities that a model gives the tokens of responses.

Letters of array shapes: B rows of the batch, T tokens (padded on the right), V vocabulary, N tokens of the responses.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from posttrain.sample.batching import by_tokens, pad_rows
from posttrain.stage.progress import track


def response_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    batch_tokens: int,
    temperature: float = 1.0,
) -> list[NDArray[np.float64]]:
    """Return the log-probability of each token of each response, in nats, in the order given.

    ``temperature`` divides the logits, as in sampling; ``batch_tokens`` bounds a forward pass, padding included.
    """
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    found: dict[int, NDArray[np.float64]] = {}
    for rows in track(by_tokens(lengths, batch_tokens), len(lengths), "log-probabilities"):
        batch = _batch_logprobs(model, [prompts[row] for row in rows], [responses[row] for row in rows], temperature)
        found.update(zip(rows, batch, strict=True))
    return [found[row] for row in range(len(lengths))]


@torch.inference_mode()
def _batch_logprobs(
    model: PreTrainedModel, prompts: list[Sequence[int]], responses: list[Sequence[int]], temperature: float
) -> list[NDArray[np.float64]]:
    ids_BT, mask_BT = pad_rows([[*p, *r] for p, r in zip(prompts, responses, strict=True)], padding=0)
    chosen_BT = mask_BT.bool()
    for row, prompt in enumerate(prompts):
        chosen_BT[row, : len(prompt)] = False
    ids_BT, mask_BT, chosen_BT = (tensor.to(model.device) for tensor in (ids_BT, mask_BT, chosen_BT))
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, use_cache=False).logits
    logits_NV = logits_BTV[:, :-1][chosen_BT[:, 1:]].float() / temperature
    logprobs_N = -functional.cross_entropy(logits_NV, ids_BT[chosen_BT], reduction="none")
    ends = np.cumsum([len(response) for response in responses])[:-1]
    return np.split(logprobs_N.double().cpu().numpy(), ends)
