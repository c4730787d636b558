"""Score answers with a reward model, under its own chat template and tokenizer.

B answers of a forward pass, T positions, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat import encode_texts, load_tokenizer, render, template_digest, tokenizer_digest
from posttrain.sample.batching import by_tokens, pad_rows
from posttrain.sample.models import load_reward_model
from posttrain.stage import heartbeat
from posttrain.train.rewards import Answer


class RewardModelScore:
    """Callable that returns the reward of each answer; a frozen copy of the model on the device."""

    def __init__(
        self,
        directory: Path,
        policy_tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        scoring_tokens: int,
        normalize: bool,
    ) -> None:
        self.tokenizer = load_tokenizer(directory)
        model = load_reward_model(directory)
        merged: Any = model.merge_and_unload() if hasattr(model, "peft_config") else model
        self.model = merged.to(device).eval().requires_grad_(False)
        self.device = device
        self.scoring_tokens = scoring_tokens
        config = model.config
        self.mean = float(config.reward_mean) if normalize else 0.0
        self.std = float(config.reward_std) if normalize else 1.0
        self.same_tokens = all(
            digest(self.tokenizer) == digest(policy_tokenizer) for digest in (template_digest, tokenizer_digest)
        )

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Return the score at the last token of each answer, with the model's mean and deviation taken out."""
        sequences = self._sequences(answers)
        rewards = [0.0] * len(answers)
        for rows in by_tokens([len(ids) for ids in sequences], self.scoring_tokens):
            ids_BT, mask_BT = pad_rows([sequences[row] for row in rows], self.tokenizer.pad_token_id)
            last_B = mask_BT.sum(1) - 1
            hidden_BTH = self.model.base_model(input_ids=ids_BT.to(self.device), use_cache=False).last_hidden_state
            scores_B = self.model.score(hidden_BTH[torch.arange(len(rows)), last_B]).squeeze(-1).double()
            for row, score in zip(rows, scores_B.tolist(), strict=True):
                rewards[row] = (score - self.mean) / (self.std or 1.0)
            heartbeat.pulse()
        return rewards

    def _sequences(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Return the tokens that the model reads: the policy's where it would make the same, else its own."""
        if self.same_tokens:
            return [[*answer.prompt_ids, *answer.response_ids] for answer in answers]
        conversations = [[*answer.messages, {"role": "assistant", "content": answer.text}] for answer in answers]
        texts = [render(self.tokenizer, messages)[0] for messages in conversations]
        return [_up_to_end(ids, self.tokenizer.eos_token_id) for ids in encode_texts(self.tokenizer, texts)]


def _up_to_end(ids: list[int], end: int) -> list[int]:
    """Return tokens without what the template puts behind the end of the last turn, where reward models read."""
    return ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids
