"""The answer of a response, apart from the reasoning before it: what is scored, ranked and voted on.

Models reason in blocks of one of `FORMS` before they answer. Where the marks of a form are special tokens, they are
lost to a text that was decoded without special tokens; `decode_marked` keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMS: dict[str, str] = {
    "<think>": "</think>",
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|channel>thought": "<channel|>",
    "<|channel|>analysis<|message|>": "<|end|>",
}
"""What opens a block of reasoning, and what closes it."""
_CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|call|>", "<|return|>")
"""Marks of responses in channels, of which reasoning is one and what users see, or tools are told, another."""
MARKS = frozenset({*FORMS, *FORMS.values(), "<|channel>", *_CHANNEL_MARKS})
"""Tokens that `decode_marked` keeps although they are special."""

_OPENING = re.compile("|".join(map(re.escape, FORMS)))
CLOSING = re.compile("|".join(re.escape(mark) for mark in FORMS.values() if mark not in _CHANNEL_MARKS))
"""What closes a block of reasoning; not that of channels, which ends other parts too."""
_SHOWN_HEADER = re.compile(r"(?:<\|start\|>assistant)*<\|channel\|>(?:final|commentary)\s*<\|message\|>")
_CUT_HEADER = re.compile(r"(?:<\|start\|>[^<]*)?(?:<\|channel\|>(?:(?! to=)[^<])*)?\Z")
_TURN_END = re.compile(r"<\|(?:end|return)\|>")
_NEXT_PART = re.compile(r"<\|end\|>(?=<\|start\|>)")
_LONGEST_OPENING = 64
"""Tokens at the end of a prompt among which the mark is that it opens a block with."""


@dataclass(frozen=True)
class Reply:
    """A response in its parts."""

    answer: str
    """What stands behind the reasoning, tool calls included; empty while the reasoning goes on."""
    reasoning: str = ""
    """What was thought before; empty where nothing was."""
    finished: bool = True
    """Whether the reasoning, where there is any, came to its end."""

    @property
    def inline(self) -> str:
        """The reply as one text whose reasoning stands in ``<think>``, as data and many templates have it."""
        return f"<think>\n{self.reasoning}\n</think>\n\n{self.answer}" if self.reasoning else self.answer


def split_reply(response: str, prompt: str = "") -> Reply:
    """Return the answer of a response and the reasoning before it.

    ``prompt`` is the text before the response, of which the end will do: a chat template may open the block there. A
    block that never closes leaves no answer. Blocks further on are taken out too, but for one that is only named: an
    opening mark within a line that nothing closes. A closing mark without an opening one ends what stands before it.
    A response without reasoning is its answer, letter for letter.
    """
    opening = opened_block(prompt)
    thoughts: list[str] = []
    answer, rest = "", response
    if opening is not None:
        rest = opening + response.removeprefix(opening)
    elif (closing := CLOSING.search(response)) and not _OPENING.search(response, 0, closing.start()):
        thoughts.append(response[: closing.start()])
        rest = response[closing.end() :]
    while found := _OPENING.search(rest):
        thought, behind = _block(rest[found.end() :], found[0])
        if behind is None:
            if rest[: found.start()].rpartition("\n")[2].strip() and FORMS[found[0]] not in _CHANNEL_MARKS:
                break
            return Reply("", _joined([*thoughts, thought]), finished=False)
        thoughts.append(thought)
        answer, rest = answer + rest[: found.start()], behind
    answer = _without_headers(answer + rest)
    return Reply(answer.lstrip() if thoughts else answer, _joined(thoughts))


def opened_block(prompt: str) -> str | None:
    """Return the mark of the block of reasoning that a prompt ends in, if any."""
    before = prompt.rstrip()
    return next((mark for mark in FORMS if before.endswith(mark)), None)


def _block(text: str, opening: str) -> tuple[str, str | None]:
    """Return what a block holds and what stands behind it, or None where it does not close; blocks may hold blocks."""
    closing = FORMS[opening]
    inside, closed, behind = text.partition(closing)
    if not closed:
        return (_TURN_END.sub("", text) if closing in _CHANNEL_MARKS else text), None
    for _ in range(inside.count(opening)):
        more, closed, further = behind.partition(closing)
        if not closed or opening in more:
            break
        inside, behind = inside + closing + more, further
    return inside, behind


def _joined(thoughts: Sequence[str]) -> str:
    return "\n\n".join(stripped for thought in thoughts if (stripped := thought.strip()))


def _without_headers(answer: str) -> str:
    """Return what is left of a response in channels without marks; a tool call keeps those that say whom it calls."""
    if "<|channel|>" not in answer and "<|start|>" not in answer:
        return answer
    shown = _SHOWN_HEADER.sub("", _TURN_END.sub("", _NEXT_PART.sub("\n\n", answer)))
    return _CUT_HEADER.sub("", shown)


def decode_marked(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    """Return the text of tokens without special ones, but for those that set reasoning apart."""
    text: str
    if special_marks(tokenizer).isdisjoint(tokens):
        text = tokenizer.decode(tokens, skip_special_tokens=True)
    else:
        hidden = hidden_tokens(tokenizer)
        text = tokenizer.decode([token for token in tokens if token not in hidden])
    return text


def hidden_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the special tokens that `decode_marked` leaves out."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset(special - special_marks(tokenizer))


def special_marks(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the special tokens of a tokenizer that set reasoning apart."""
    special = {token.content: number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    # Without channels, <|end|> is the end of another model's turn.
    marks = MARKS if "<|channel|>" in special else MARKS.difference(_CHANNEL_MARKS)
    return frozenset(special[mark] for mark in marks.intersection(special))


def read_reply(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], text: str) -> Reply:
    """Return the parts of a response, whose text `decode_marked` gave, to a prompt of these tokens."""
    return split_reply(text, tokenizer.decode(list(prompt[-_LONGEST_OPENING:])))
