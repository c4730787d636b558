"""Episodes: sampled responses with all that PPO's updates need, and how they are kept and laid out in batches.

N tokens of all responses of a micro-batch, B episodes, T positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.models.token_log_probs import response_batch

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclasses.dataclass
class Episode:
    """One response; every array has one value per token of it."""

    place: int
    """Its number among those of its phase, over all ranks."""
    row: int
    """Number of its prompt."""
    prompt_ids: list[int]
    response_ids: list[int]
    logps: Floats
    """Log-probabilities under the policy that sampled it, as training computes them."""
    ended: bool
    """Whether it ended by itself, with an answer."""
    text: str = ""
    """What stands behind the reasoning."""
    sampler_logps: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    """Log-probabilities as a server computed them; empty where the stage itself sampled."""
    reference_logps: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    values: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    score: float = 0.0
    components: dict[str, float] = dataclasses.field(default_factory=dict)
    advantages: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    returns: Floats = dataclasses.field(default_factory=lambda: np.empty(0, np.float32))
    reasoning: str = ""
    reasoning_tokens: int = 0
    answered: bool = True
    """Whether the reasoning, where there is any, came to its end."""

    @property
    def length(self) -> int:
        """Tokens of prompt and response."""
        return len(self.prompt_ids) + len(self.response_ids)


_PER_TOKEN = ("logps", "reference_logps", "values", "advantages", "returns")


def padded(arrays: Sequence[Floats]) -> Tensor:
    """Return arrays of different lengths as one matrix ``BT``, zero behind their ends."""
    return pad_sequence([torch.from_numpy(array) for array in arrays], batch_first=True)


def mini_batches(
    episodes: Sequence[Episode], size: int, seed: Sequence[int], world_size: int, accumulation: int
) -> list[list[list[int]]]:
    """Return, for each mini-batch of a pass, its episodes as ``accumulation * world_size`` micro-batches.

    The order depends on the seed alone. A mini-batch is sorted by length before it is cut, so that the episodes of a
    micro-batch are of similar length and those that ranks work on at the same time are, too; whatever the number of
    ranks, a step sees the same episodes.
    """
    order = np.random.default_rng(seed).permutation(len(episodes)).tolist()
    micro = size // (world_size * accumulation)
    batches = []
    for start in range(0, len(order), size):
        rows = sorted(order[start : start + size], key=lambda index: (episodes[index].length, index))
        batches.append([rows[cut : cut + micro] for cut in range(0, size, micro)])
    return batches


def collate_episodes(episodes: Sequence[Episode], pad_token_id: int, step_tokens: int) -> dict[str, Tensor]:
    """Return one micro-batch: ``input_ids_BT``, the mask of response tokens ``chosen_BT``, and their values ``_N``.

    ``step_tokens`` is the number of response tokens of the whole optimizer step, over all ranks.
    """
    ids_BT, chosen_BT = response_batch([(e.prompt_ids, e.response_ids) for e in episodes], pad_token_id)
    per_token = {name: torch.from_numpy(np.concatenate([getattr(e, name) for e in episodes])) for name in _PER_TOKEN}
    return {
        "row": torch.tensor([e.row for e in episodes]),
        "num_tokens": torch.tensor(sum(e.length for e in episodes)),
        "step_tokens": torch.tensor(step_tokens),
        "input_ids": ids_BT,
        "chosen": chosen_BT,
        **per_token,
    }


def save_episodes(path: Path, episodes: Sequence[Episode]) -> None:
    """Write what the updates need of episodes as safetensors."""
    arrays = {name: np.concatenate([getattr(e, name) for e in episodes]) for name in _PER_TOKEN}
    arrays |= {name: np.concatenate([getattr(e, name) for e in episodes]) for name in ("prompt_ids", "response_ids")}
    arrays["rows"] = np.array([(e.place, e.row, len(e.prompt_ids), len(e.response_ids), e.ended) for e in episodes])
    save_file(arrays, path)


def load_episodes(path: Path) -> list[Episode]:
    """Return the episodes that `save_episodes` wrote."""
    arrays = load_file(path)
    episodes = []
    prompt_at = response_at = 0
    for place, row, prompt_length, response_length, ended in arrays["rows"].tolist():
        response = slice(response_at, response_at + response_length)
        per_token: dict[str, Any] = {name: arrays[name][response] for name in _PER_TOKEN}
        episodes.append(
            Episode(
                place,
                row,
                prompt_ids=arrays["prompt_ids"][prompt_at : prompt_at + prompt_length].tolist(),
                response_ids=arrays["response_ids"][response].tolist(),
                ended=bool(ended),
                **per_token,
            )
        )
        prompt_at += prompt_length
        response_at += response_length
    return episodes
