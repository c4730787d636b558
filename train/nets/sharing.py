"""Whether a stage computes each prompt once for all its responses, and its model made ready for that."""

from __future__ import annotations

import logging
from typing import Any

import torch

from posttrain.models.shared_prompts import scores_as_alone, share_prompts, why_unshared
from posttrain.stage.errors import UsageError
from posttrain.train.config.common import Sharing

log = logging.getLogger(__name__)


def made_to_share(model: Any, wanted: Sharing, attention: str, where: str, *, scores: bool = False) -> bool:
    """Return whether prompts are shared, and give the model the attention for it, in place, if so.

    ``where`` is the stage's configuration path. With ``scores`` the model, which is whole, is tried on a few tokens.
    Raises UsageError where prompts always should be shared and cannot.
    """
    if wanted == "never":
        return False
    reason = why_unshared(model, attention)
    if not reason:
        share_prompts(model, torch.cuda.is_available())
        if not scores or scores_as_alone(model):
            log.info("each prompt is computed once for all its responses")
            return True
        reason = f"{model.config.model_type} has other log-probabilities then"
    if wanted == "always":
        raise UsageError(f"{where}.share_prompts=always: {reason}; set {where}.share_prompts=auto")
    log.info("prompts are computed with each response: %s", reason)
    return False
