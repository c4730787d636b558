"""Chat templates as text: ours, those of models, what is fixed in one at import, and what identifies one."""

from __future__ import annotations

import datetime
import json
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.data.messages import Conversation
from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text

Span = tuple[int, int]
"""Half-open range of characters."""
TEMPLATES = {"chatml": "chat/chatml.jinja", "verbatim": "chat/verbatim.jinja"}
"""Our templates: ChatML, and running text for models that continue what they read; both mark the assistant's part."""
_GENERATION_MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
_DATE_FORMAT = re.compile(r"strftime_now\(\s*(?:\"([^\"]*)\"|'([^']*)')\s*\)")
_MERGE_SYSTEM = resources.files("posttrain.conf").joinpath("chat/merge_system.jinja")


@dataclass(frozen=True)
class ChatTemplate:
    """The Jinja texts of a tokenizer, for conversations without and with tools, and its special tokens by name."""

    text: str
    text_with_tools: str
    special: tuple[tuple[str, str], ...]

    def fill(self, conversation: Conversation, add_generation_prompt: bool = False) -> tuple[str, list[Span]]:
        """Return a conversation as text, with the spans that the template marks as the assistant's.

        Raises UsageError when the template refuses the conversation.
        """
        text = self.text_with_tools if conversation.tools else self.text
        marked = is_marked(text)
        try:
            texts, spans = render_jinja_template(
                conversations=[conversation.messages],
                tools=conversation.tools or None,
                chat_template=text,
                return_assistant_tokens_mask=marked,
                add_generation_prompt=add_generation_prompt,
                **dict(self.special) | conversation.template_arguments,
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise UsageError(f"{self.name} refuses the conversation: {error}") from None
        return texts[0], spans[0] if marked else []

    @property
    def name(self) -> str:
        """How messages call the template."""
        return f"the chat template {self.digest[:12]}"

    @property
    def digest(self) -> str:
        """SHA-256 of the template's text, or of both texts where they differ."""
        both = self.text if self.text == self.text_with_tools else canonical_json([self.text, self.text_with_tools])
        return sha256_text(both)


def template_of(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """Return a tokenizer's chat template; where it has several by name, the default and the one for tools."""
    texts = (tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}]))
    return ChatTemplate(*texts, tuple(tokenizer.special_tokens_map.items()))


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template."""
    return template_of(tokenizer).digest


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how messages call the chat template."""
    return template_of(tokenizer).name


def is_marked(text: str) -> bool:
    """Return whether a template marks what the assistant says."""
    return _GENERATION_MARKER.search(text) is not None


def named_template(name: str, begins_with_bos: bool) -> str:
    """Return a template of ours; some models want BOS before everything."""
    template = resources.files("posttrain.conf").joinpath(TEMPLATES[name]).read_text(encoding="utf-8")
    return "{{- bos_token -}}\n" + template if begins_with_bos else template


def fixed_template(text: str, arguments: dict[str, Any], date: datetime.date, merge_system: bool) -> str:
    """Return a template with what is decided once for a model written in front of its text.

    ``arguments`` are its variables, such as ``enable_thinking``, where a caller does not give them; ``date`` is what
    a template that writes the day's date gets, on every day; ``merge_system`` puts a system message in front of the
    first user's, for templates that have no place for it. Written into the text they travel with the model into
    whatever serves it, and are part of its digest.
    """
    head = "".join(
        f"{{%- if {name} is not defined %}}{{%- set {name} = {_literal(value)} %}}{{%- endif %}}\n"
        for name, value in arguments.items()
    )
    formats = list(dict.fromkeys(double or single for double, single in _DATE_FORMAT.findall(text)))
    if formats:
        written = {form: date.strftime(form) for form in formats}
        head += f"{{%- macro strftime_now(format) %}}{{{{- {_literal(written)}[format] }}}}{{%- endmacro %}}\n"
    if merge_system:
        head += _MERGE_SYSTEM.read_text(encoding="utf-8")
    return head + text


def writes_date(text: str) -> bool:
    """Return whether a template asks for the date in a way that `fixed_template` can answer."""
    return _DATE_FORMAT.search(text) is not None


def _literal(value: Any) -> str:
    """Return a JSON value as Jinja writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
