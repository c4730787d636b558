"""Knobs of tokenization."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from posttrain.stage.schema import schema, speed

DEFAULT_LENGTH = 4096
"""Most tokens of a row where the configuration does not say; longer models need it said."""
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length")
"""What families call the number of tokens that a model takes."""


@schema
class TokenizeConfig:
    """Turns a dataset into token ids under a model's own tokenizer and chat template."""

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of prompt and response together; None takes as many as the model does, but no more than 4096."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """``truncate`` cuts the end of the response and keeps rows that still have a trained token.

    Responses of a comparison that are equal once cut are one; a group with fewer than two different ranks left drops.
    """
    loss_on: Literal["completion", "assistant", "all"] = "completion"
    """Demonstrations: train on the last round of the assistant, on each of its turns, or on every token."""
    on_control_tokens: Literal["drop", "error"] = "error"
    """What to do with a row whose text holds a special token of the tokenizer, such as ``<|im_end|>``."""
    on_lost_text: Literal["drop", "error"] = "error"
    """What to do with a row of which the chat template leaves something out, such as a system message."""
    thinking: Literal["keep", "drop", "last_turn"] = "last_turn"
    """Which reasoning of the assistant is rendered: all, none, or what came after the user's last message.

    A model is given its earlier answers without their reasoning; turns that lose theirs to `last_turn` are not trained.
    """
    prompts_only: bool = False
    """Keep only the prompts of records that have answers, for rollouts."""
    num_workers: int = speed(1, ge=1)
    """Processes that encode."""


def declared_positions(config: dict[str, Any]) -> int | None:
    """Return how many tokens a model takes by its ``config.json``, or None where that does not say."""
    config = config.get("text_config") or config  # of a model that reads pictures too
    return next((config[name] for name in POSITIONS if config.get(name)), None)
