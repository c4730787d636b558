"""Which reasoning of a conversation is rendered: a model is given its earlier answers without their reasoning."""

from __future__ import annotations

import dataclasses
from typing import Literal

from posttrain.data.messages import Conversation

Thinking = Literal["keep", "drop", "last_turn"]


def choose_reasoning(conversation: Conversation, thinking: Thinking) -> tuple[Conversation, list[int]]:
    """Return a conversation with the reasoning that is to be rendered, and the places of messages that lost theirs.

    ``last_turn`` keeps what the assistant thought after the user's last message, between calls of tools too.
    """
    if thinking == "keep":
        return conversation, []
    messages = conversation.messages
    asked = max((place for place, message in enumerate(messages) if message["role"] == "user"), default=-1)
    dropped = [
        place
        for place, message in enumerate(messages)
        if "reasoning_content" in message and (thinking == "drop" or place < asked)
    ]
    if not dropped:
        return conversation, []
    bare = {place: {k: v for k, v in messages[place].items() if k != "reasoning_content"} for place in dropped}
    kept = [bare.get(place, message) for place, message in enumerate(messages)]
    return dataclasses.replace(conversation, messages=kept), dropped
