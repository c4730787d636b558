"""Conversations as text under a chat template, and the boundary between prompt and response."""

from __future__ import annotations

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.data.chat.templates import Span, has_generation_markers, template_name
from posttrain.data.messages import Conversation
from posttrain.stage.errors import UsageError


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, add_generation_prompt: bool = False
) -> tuple[str, list[Span]]:
    """Return a conversation as text, with the spans that the template marks as the assistant's.

    Raises UsageError when the template refuses the conversation.
    """
    marked = has_generation_markers(tokenizer)
    try:
        texts, spans = render_jinja_template(
            conversations=[conversation.messages],
            tools=conversation.tools or None,
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map | conversation.template_arguments,
        )
    except TemplateError as error:
        raise UsageError(f"{template_name(tokenizer)} refuses the conversation: {error}") from None
    return texts[0], spans[0] if marked else []


def render_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Return a conversation as the text that the model continues with its response."""
    return render(tokenizer, conversation, add_generation_prompt=True)[0]


def response_start(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> int:
    """Return the character at which the response begins in a conversation rendered as ``text``.

    ``prompt`` is what `render_prompt` gives without the response. Raises UsageError when the template renders the same
    turns differently once the response stands behind them.
    """
    if not text.startswith(prompt):
        raise UsageError(
            f"{template_name(tokenizer)} does not begin a finished conversation with its generation prompt "
            f"({prompt[-40:]!r}), so the response cannot be told from its prompt; set train.base.chat_template=chatml"
        )
    return len(prompt)
