"""Load models from artifacts: full weights, or an adapter on the sibling artifact that it was trained on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from posttrain.models.token_rows import use_rows_alone
from posttrain.stage.artifact import trusts_remote_code
from posttrain.stage.errors import UsageError
from posttrain.stage.whole import require_whole

BASE_FILE = "base.json"
"""File of an adapter artifact that names the sibling artifact with the backbone's weights."""
NEW_TOKENS = "new_tokens.json"
"""File of a base artifact that lists the tokens which were added for its chat template, and are not trained yet."""


def is_adapter(directory: Path) -> bool:
    """Return whether a model artifact holds an adapter rather than full weights."""
    return (directory / BASE_FILE).is_file()


def read_base(directory: Path) -> dict[str, Any]:
    """Return an adapter artifact's `base.json`."""
    raw: dict[str, Any] = json.loads((directory / BASE_FILE).read_text(encoding="utf-8"))
    return raw


def new_token_ids(directory: Path) -> list[int]:
    """Return the tokens that a model artifact's backbone got for its chat template and was not trained with."""
    file = backbone_directory(directory) / NEW_TOKENS
    ids: list[int] = json.loads(file.read_text(encoding="utf-8"))["ids"] if file.is_file() else []
    return ids


def backbone_directory(directory: Path) -> Path:
    """Return the directory with the full weights behind a model artifact, which is its own unless it is an adapter.

    Raises UsageError when the backbone is gone or damaged, or is not the one that the adapter was trained on.
    """
    if not is_adapter(directory):
        return directory
    base = read_base(directory)
    backbone: Path = directory.parent / base["base"]
    if not backbone.is_dir():
        raise UsageError(
            f"{directory}: the adapter's base artifact {backbone} is missing; restore it or run its stage again"
        )
    digest = require_whole(backbone).digest
    if digest != base["digest"]:
        raise UsageError(
            f"{backbone}: digest {digest[:12]}, but the adapter {directory.name} was trained on {base['digest'][:12]}"
        )
    return backbone


def load_policy(
    directory: Path,
    dtype: str = "float32",
    attention: str = "auto",
    *,
    trainable_adapter: bool = False,
    four_bit: bool = False,
) -> PreTrainedModel:
    """Return the causal language model of a model artifact; an adapter comes as a PeftModel on its backbone."""
    backbone = backbone_directory(directory)
    with known_attention(attention):
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            backbone,
            dtype=getattr(torch, dtype),
            attn_implementation=implementation(attention),
            quantization_config=four_bit_config() if four_bit else None,
            trust_remote_code=trusts_remote_code(backbone),
        )
    return _with_adapter(model, directory, trainable_adapter) if is_adapter(directory) else model


def load_reward_model(directory: Path, dtype: str = "float32", attention: str = "auto") -> PreTrainedModel:
    """Return the sequence classifier of a reward-model artifact; its `config` has `reward_mean` and `reward_std`."""
    backbone = backbone_directory(directory)
    trusted = trusts_remote_code(backbone)
    config = AutoConfig.from_pretrained(backbone, num_labels=1, trust_remote_code=trusted)
    if is_adapter(directory):
        base = read_base(directory)
        config.reward_mean, config.reward_std = base["reward_mean"], base["reward_std"]
        config.pad_token_id = base["pad_token_id"]
    elsewhere = head_from_elsewhere(config) if is_adapter(directory) else contextlib.nullcontext()
    with known_attention(attention), elsewhere:
        model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
            backbone,
            config=config,
            dtype=getattr(torch, dtype),
            attn_implementation=implementation(attention),
            trust_remote_code=trusted,
        )
    return _with_adapter(model, directory, trainable=False) if is_adapter(directory) else model


@contextlib.contextmanager
def head_from_elsewhere(config: PretrainedConfig) -> Iterator[None]:
    """Load a classifier from a language model inside, without a report that its head is missing: it comes later."""
    classifier = AutoModelForSequenceClassification._model_mapping.get(type(config), None)
    ignored = {"_keys_to_ignore_on_load_missing": r"^score\.", "_keys_to_ignore_on_load_unexpected": r"^lm_head\."}
    own = dict(vars(classifier)) if classifier is not None else {}
    try:
        for name, pattern in ignored.items() if classifier is not None else ():
            setattr(classifier, name, [*(getattr(classifier, name, None) or []), pattern])
        yield
    finally:
        for name in ignored if classifier is not None else ():
            if name in own:
                setattr(classifier, name, own[name])
            else:
                delattr(classifier, name)


def implementation(attention: str) -> str | None:
    """Return the name of an implementation of attention for transformers; None where it is to choose."""
    return None if attention == "auto" else attention


@contextlib.contextmanager
def known_attention(attention: str) -> Iterator[None]:
    """Say in one line what is wrong with an implementation of attention that a model cannot have."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if attention == "auto" or "attention" not in str(error).lower():
            raise
        reason = " ".join(str(error).split())
        raise UsageError(f"attention={attention}: {reason[:200]}; use attention=sdpa or eager") from None


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model in evaluation mode, and afterwards each of its modules back in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def reward_moments(model: Any) -> tuple[float, float]:
    """Return the mean of a reward model's scores and their standard deviation, 1 where that is 0.

    Raises UsageError where its configuration does not hold them.
    """
    config = model.config
    if not hasattr(config, "reward_mean"):
        raise UsageError(
            "inputs.reward: its config.json has no reward_mean and reward_std; give a model that train.reward wrote"
        )
    return float(config.reward_mean), float(config.reward_std) or 1.0


def four_bit_config() -> BitsAndBytesConfig:
    """Return the NF4 double quantisation of QLoRA (Dettmers et al. 2023).

    Raises UsageError when bitsandbytes is not installed.
    """
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        raise UsageError("adapter.kind=qlora: bitsandbytes is not installed; pip install 'posttrain[qlora]'") from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _with_adapter(model: PreTrainedModel, directory: Path, trainable: bool) -> PreTrainedModel:
    from peft import PeftModel

    adapted: PreTrainedModel = use_rows_alone(PeftModel.from_pretrained(model, str(directory), is_trainable=trainable))
    return adapted
