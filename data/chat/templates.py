"""Chat templates as text: ours, those of models, and what identifies one."""

from __future__ import annotations

import re
from importlib import resources

from transformers import PreTrainedTokenizerBase

from posttrain.stage.files import sha256_text

Span = tuple[int, int]
"""Half-open range of characters."""
TEMPLATES = {"chatml": "chat/chatml.jinja", "verbatim": "chat/verbatim.jinja"}
"""Our templates: ChatML, and running text for models that continue what they read; both mark the assistant's part."""


def named_template(name: str, begins_with_bos: bool) -> str:
    """Return a template of ours; some models want BOS before everything."""
    template = resources.files("posttrain.conf").joinpath(TEMPLATES[name]).read_text(encoding="utf-8")
    return "{{- bos_token -}}\n" + template if begins_with_bos else template


def has_generation_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template marks what the assistant says."""
    return _GENERATION_MARKER.search(tokenizer.get_chat_template()) is not None


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template."""
    return sha256_text(tokenizer.get_chat_template())


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how messages call the chat template."""
    return f"the chat template {template_digest(tokenizer)[:12]}"


_GENERATION_MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
