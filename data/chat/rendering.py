"""Conversations as text under a chat template, and the boundary between prompt and response.

What is rendered is what was given: a template that leaves out a text of the conversation raises LostTextError.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.forms import forms_of
from posttrain.data.chat.given import lost_text
from posttrain.data.chat.reasoning import CLOSING, FORMS, opened_block
from posttrain.data.chat.templates import ChatTemplate, Span, template_of
from posttrain.data.messages import Conversation, Json
from posttrain.stage.errors import UsageError


class LostTextError(UsageError):
    """The template leaves out something that the conversation says."""


def render(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, add_generation_prompt: bool = False
) -> tuple[str, list[Span]]:
    """Return a conversation as text, with the spans that the template marks as the assistant's.

    Raises UsageError when the template refuses the conversation, and LostTextError when it leaves a part of it out.
    """
    template = template_of(tokenizer)
    text, spans = _written(template, conversation, add_generation_prompt)
    _require_given(template, conversation, text, add_generation_prompt)
    return text, spans


def _written(
    template: ChatTemplate, conversation: Conversation, add_generation_prompt: bool = False
) -> tuple[str, list[Span]]:
    return template.fill(forms_of(template).write(conversation), add_generation_prompt)


def _require_given(
    template: ChatTemplate, conversation: Conversation, text: str, add_generation_prompt: bool = False
) -> None:
    lost = lost_text(template, conversation, text, add_generation_prompt)
    if lost is not None:
        raise LostTextError(f"{template.name} leaves out {lost}; {_fix(lost)}")


def _fix(lost: str) -> str:
    if "'system'" in lost or "'developer'" in lost:
        return "import the model with train.base.merge_system=true, or with a template that has a place for it"
    if "reasoning" in lost:
        return "set data.tokenize.thinking=drop, or take a template that keeps it"
    return "import the model with a template that has a place for it, such as train.base.chat_template=chatml"


def render_prompt(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """Return a conversation as the text that the model continues with its response."""
    return render(tokenizer, conversation, add_generation_prompt=True)[0]


def render_answered(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[str, int]:
    """Return a conversation whose last turn is the assistant's as text, and the character at which its response begins.

    Before that character stands what `render_prompt` gives without the last turn; behind it, what a model has to write
    to say that turn. Where the generation prompt opens a block of reasoning that the template does not write into
    finished turns, the response goes on inside that block. Raises UsageError when the template renders the same turns
    differently once the response stands behind them.
    """
    prompt = render_prompt(tokenizer, conversation.without_last())
    opening = opened_block(prompt)
    template = template_of(tokenizer)
    text, _ = _written(template, conversation)
    if opening is not None and not text.startswith(prompt):
        return _continued(template, prompt, opening, conversation), len(prompt)
    _require_given(template, conversation, text)
    return text, response_start(tokenizer, prompt, text)


def _continued(template: ChatTemplate, prompt: str, opening: str, conversation: Conversation) -> str:
    """Return the prompt, the reasoning that it has begun, and the last turn as it is written without reasoning.

    Raises LostTextError when something else is left out.
    """
    last: Json = dict(conversation.messages[-1])
    reasoning = last.pop("reasoning_content", "").strip("\n")
    unthought = conversation.without_last().followed_by(last)
    plain, _ = _written(template, unthought)
    opened = prompt.rindex(opening)
    if not plain.startswith(prompt[:opened]):
        raise _no_boundary(template, prompt)
    text = f"{prompt}{reasoning}\n{FORMS[opening]}\n\n{plain[opened:]}"
    _require_given(template, unthought, text)
    return text


def response_start(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> int:
    """Return the character at which the response begins in a conversation rendered as ``text``.

    ``prompt`` is what `render_prompt` gives without the response. Raises UsageError when the template renders the same
    turns differently once the response stands behind them.
    """
    if not text.startswith(prompt):
        raise _no_boundary(template_of(tokenizer), prompt)
    return len(prompt)


def _no_boundary(template: ChatTemplate, prompt: str) -> UsageError:
    thinks = "; set data.tokenize.thinking=drop" if CLOSING.search(prompt[-40:]) else ""
    return UsageError(
        f"{template.name} does not begin a finished conversation with its generation prompt ({prompt[-40:]!r}), so the "
        f"response cannot be told from its prompt{thinks or '; set train.base.chat_template=chatml'}"
    )
