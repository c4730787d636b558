"""Build a reward model from a policy, and measure its scale.

R responses of a micro-batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForSequenceClassification, PreTrainedModel, set_seed

from posttrain.sample.models import four_bit_config, is_adapter, load_policy, trusts_remote_code
from posttrain.stage.errors import UsageError
from posttrain.train.adapters import weights_dtype
from posttrain.train.config import RewardConfig

_STATISTICS_BATCHES = 64
"""Micro-batches per rank that the reward's mean and standard deviation are measured on."""


def classifier_from_policy(source: Path, config: RewardConfig, pad_token_id: int, seed: int) -> PreTrainedModel:
    """Return a sequence classifier with one output: the policy's trunk under a new score head, drawn from the seed.

    Raises UsageError when an adapter should be trained on top of another adapter.
    """
    set_seed(seed)
    arguments: dict[str, Any] = {"num_labels": 1, "attn_implementation": config.attention, "pad_token_id": pad_token_id}
    dtype = getattr(torch, weights_dtype(config))
    if not is_adapter(source):
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=dtype,
            quantization_config=four_bit_config() if config.adapter.kind == "qlora" else None,
            trust_remote_code=trusts_remote_code(source),
            **arguments,
        )
        return model
    if config.adapter.kind != "full":
        raise UsageError(
            "train.reward.adapter: the input model is itself an adapter; start the reward model from its base artifact "
            "(stages.reward.inputs.model), or use train.reward.adapter.kind=full, which merges it"
        )
    merged = load_policy(source).merge_and_unload()
    model = AutoModelForSequenceClassification.from_config(merged.config, **arguments).to(dtype)
    trunk = model.base_model_prefix
    getattr(model, trunk).load_state_dict(getattr(merged, trunk).state_dict())
    return model


@torch.no_grad()
def reward_statistics(trainer: Any) -> tuple[float, float]:
    """Return mean and standard deviation of the reward over the first training batches of all ranks.

    A user of the model subtracts and divides by them, so that rewards of different models are comparable.
    """
    trainer.model.eval()
    sums = torch.zeros(3, dtype=torch.float64, device=trainer.args.device)
    for index, batch in enumerate(trainer.get_train_dataloader()):
        if index == _STATISTICS_BATCHES:
            break
        inputs = trainer._prepare_inputs(batch)
        outputs = trainer.model_wrapped(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
        )
        rewards_R = outputs.logits.squeeze(-1).double()
        sums += torch.stack([torch.ones_like(rewards_R).sum(), rewards_R.sum(), (rewards_R**2).sum()])
    if dist.is_initialized():
        dist.all_reduce(sums)
    count, total, squares = sums.tolist()
    mean = total / count
    return mean, max(squares / count - mean**2, 0.0) ** 0.5
