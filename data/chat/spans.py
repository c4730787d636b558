"""Where the assistant speaks in a rendered conversation, found by differences of renderings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.rendering import render, render_answered, render_prompt
from posttrain.data.chat.templates import Span, is_marked, template_of
from posttrain.data.chat.thinking import Thinking, choose_reasoning
from posttrain.data.messages import Conversation, Json
from posttrain.stage.errors import UsageError


@dataclass(frozen=True)
class Spoken:
    """A conversation as text, up to the end of its last turn, and the assistant's turns in it."""

    text: str
    spans: list[Span]
    """Of the turns that were asked for and can be trained, in order: from where the model goes on to the turn's end."""
    left_out: int
    """Turns that were asked for and stand behind another text than the one that they would be generated from."""


def spoken_turns(
    tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], conversation: Conversation, turns: Sequence[int]
) -> Spoken:
    """Return the rendering of a conversation, which ends with an assistant's turn, and the spans of some of its turns.

    ``control`` matches a special token; ``turns`` are places of assistant messages, the last one among them. A turn is
    trained where what stands before it is what the model would be given there; templates that write earlier turns
    otherwise once others follow, as those that take reasoning out of them do, leave such turns out. Raises UsageError
    where the last turn cannot be told from its prompt, or does not end with a special token.
    """
    text, start = render_answered(tokenizer, conversation)
    end = _end_of_last(tokenizer, control, text, start)
    spans = [_span_of(tokenizer, control, conversation, turn, text) for turn in turns[:-1]]
    found = [span for span in spans if span is not None]
    return Spoken(text[:end], [*found, (start, end)], len(spans) - len(found))


def spoken_response(
    tokenizer: PreTrainedTokenizerBase,
    control: re.Pattern[str],
    asked: Conversation,
    response: Json,
    thinking: Thinking,
) -> tuple[Spoken, int]:
    """Return a prompt with one response, of which the span is, and how many messages lost their reasoning."""
    conversation, dropped = choose_reasoning(asked.followed_by(response), thinking)
    return spoken_turns(tokenizer, control, conversation, [len(asked.messages)]), len(dropped)


def within_marks(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, spoken: Spoken) -> Spoken:
    """Return the spans without what the template's own marks, where it has them, leave out.

    Marks may take in what the generation prompt writes; a model never has to, so it stays outside.
    """
    if not is_marked(template_of(tokenizer).text):
        return spoken
    text, marks = render(tokenizer, conversation)
    if not text.startswith(spoken.text):
        return spoken
    clipped = [
        (max(start, begin), min(end, stop))
        for start, end in spoken.spans
        for begin, stop in marks
        if max(start, begin) < min(end, stop)
    ]
    return replace(spoken, spans=clipped)


def _end_of_last(tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], text: str, start: int) -> int:
    ends = [match.end() for match in control.finditer(text, start)]
    if not ends:
        raise UsageError(
            f"{template_of(tokenizer).name} ends the last turn with {text[start:][-20:]!r}, not with a special token, "
            "so generation would not stop there; set train.base.chat_template=chatml"
        )
    return ends[-1]


def _span_of(
    tokenizer: PreTrainedTokenizerBase, control: re.Pattern[str], conversation: Conversation, turn: int, text: str
) -> Span | None:
    """Return the span of an earlier turn; None where the model would have been given another text before it."""
    before = Conversation(conversation.messages[:turn], conversation.tools, conversation.template_arguments)
    prompt = render_prompt(tokenizer, before)
    if not text.startswith(prompt):
        return None
    alone, start = render_answered(tokenizer, before.followed_by(conversation.messages[turn]))
    ends = control.findall(alone, start)
    # The same special tokens have to close the turn here; more of them may stand within it.
    found = [match for _, match in zip(ends, control.finditer(text, len(prompt)), strict=False)]
    if not ends or [match[0] for match in found] != ends:
        return None
    return len(prompt), found[-1].end()
