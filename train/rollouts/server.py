"""Rollouts by a vLLM server, which gets the policy's weights before each of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from posttrain.models.adapters import merged
from posttrain.sample.backends.credentials import credentials
from posttrain.sample.backends.server import ServerSampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage import heartbeat
from posttrain.stage.errors import PosttrainError

SERVED_NAME = "policy"
"""The name by which the server serves the model."""


class PolicyServer:
    """A server, and the folder through which it gets weights: both must see it under the same path."""

    def __init__(self, url: str, tokenizer: Any, folder: Path, main_process: bool, processed_logprobs: bool) -> None:
        self.sampler = ServerSampler(
            url, SERVED_NAME, tokenizer, processed_logprobs=processed_logprobs, headers=credentials()
        )
        self.folder = folder
        self.main_process = main_process

    def generate(
        self, policy: Any, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]
    ) -> list[list[Sample]]:
        """Return the samples of each prompt under the policy's present weights; all ranks must call this.

        Raises PosttrainError on all of them when the server does not take the weights.
        """
        with heartbeat.waiting("sampling"):
            failed: list[PosttrainError | None] = [self._update(policy) if self.main_process else None]
            if dist.is_initialized():
                dist.broadcast_object_list(failed, src=0)
            if failed[0] is not None:
                raise failed[0]
            return self.sampler.generate(prompts, params)

    def _update(self, policy: Any) -> PosttrainError | None:
        whole = merged(copy.deepcopy(policy).cpu()) if hasattr(policy, "peft_config") else policy
        whole.save_pretrained(self.folder)
        try:
            self.sampler.update_weights(self.folder, policy)
        except PosttrainError as error:
            return error
        return None
