"""Whether a stage computes each prompt once for all its responses, and its model made ready for that."""

from __future__ import annotations

import logging
from typing import Any

import torch

from posttrain.models.shared_prompts import share_prompts, why_unshared
from posttrain.stage.errors import UsageError
from posttrain.train.config.common import Sharing

log = logging.getLogger(__name__)


def made_to_share(model: Any, wanted: Sharing, attention: str, where: str) -> bool:
    """Return whether prompts are shared, and give the model the attention for it, in place, if so.

    ``where`` is the stage's configuration path. Raises UsageError where they always should be and cannot.
    """
    if wanted == "never":
        return False
    reason = why_unshared(model, attention)
    if reason and wanted == "always":
        raise UsageError(f"{where}.share_prompts=always: {reason}; set {where}.share_prompts=auto")
    if reason:
        log.info("prompts are computed with each response: %s", reason)
        return False
    share_prompts(model, torch.cuda.is_available())
    log.info("each prompt is computed once for all its responses")
    return True
