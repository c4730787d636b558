"""Columns that change what a row means, whatever its shape: each is used, or refused by name.

| column                                      | what becomes of it                                                    |
|---------------------------------------------|-----------------------------------------------------------------------|
| tools, functions                            | the tools on offer: a list of definitions, or its JSON text           |
| system, system_prompt                       | a system turn in front                                                |
| history                                     | earlier turns: a list of pairs, or of messages                        |
| context                                     | follows the one question after an empty line                          |
| template_arguments, chat_template_kwargs    | arguments of the chat template for this row                           |
| reasoning_content, reasoning, thinking      | what the assistant thought before the completion                      |
| images, videos, audio and the like          | refused unless empty: only text is trained on                         |
| weight                                      | refused unless 1: rows have no weights                                |
| label, where it says whether it is good     | refused for demonstrations: bad completions are not to be imitated    |

A source leaves a column out by ``ignore``.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from posttrain.data.config.curate import RecordType
from posttrain.data.sources.calls import read_tools
from posttrain.data.sources.row_values import (
    Payload,
    RowError,
    Values,
    checked_json,
    checked_text,
    given,
    json_list,
    json_value,
    show,
)
from posttrain.data.sources.turns import (
    LEADING,
    REASONING,
    Messages,
    assistant,
    is_absent,
    one_text,
    read_messages,
    says,
    user,
)

TOOLS = ("tools", "functions")
SYSTEM = ("system", "system_prompt")
ARGUMENTS = ("template_arguments", "chat_template_kwargs")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
_ASKED = frozenset({*TOOLS, *SYSTEM, *ARGUMENTS, *MEDIA, "history", "context"})
_TAKEN = frozenset(
    {
        "messages",
        "conversation",
        "conversations",
        "tools",
        "documents",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "return_assistant_tokens_mask",
        "return_dict",
    }
)
"""Arguments that rendering gives the template itself."""


@lru_cache
def settings_of(record_type: RecordType) -> frozenset[str]:
    """Return the columns that are read for records of a type besides those of the adapter."""
    if record_type in ("prompt", "evaluation"):  # what concerns the answer alone is left out with it
        return _ASKED
    return _ASKED | {*REASONING, "weight"}


def settle(row: Values, payload: Payload, record_type: RecordType) -> Payload:
    """Return the payload of a row with what its further columns say. Raises RowError for what cannot be used."""
    read = settings_of(record_type)
    said = {name: value for name, value in row.items() if (name in read or name == "label") and not is_absent(value)}
    if not said:
        return payload
    _refuse(said, payload, record_type)
    made = dict(payload)
    if tools := _tools(said):
        made["tools"] = tools
    if arguments := _arguments(said):
        made["template_arguments"] = arguments
    made["prompt"] = _with_system(said, _with_history(said, _with_context(said, payload["prompt"])))
    if thought := one_text([checked_text(said[name], name) for name in REASONING if name in said], "reasoning"):
        made["completion"] = _with_reasoning(payload["completion"], thought)
    return made


def _fault(name: str, value: Any, reason: str) -> RowError:
    return RowError(f"{name} {show(value)}: {reason}, or leave the column out by the source's ignore=[{name}]")


def _refuse(said: Values, payload: Payload, record_type: RecordType) -> None:
    for name in MEDIA:
        if name in said and not is_absent(json_list(said[name])):
            raise _fault(name, said[name], "only text can be trained on; remove the row")
    if "weight" in said and said["weight"] not in (1, "1", "1.0"):
        raise _fault("weight", said["weight"], "rows have no weights; repeat the row")
    if not payload["prompt"]:
        for name in said:
            if name not in ("weight", "label"):
                raise _fault(name, said[name], f"a plain text has no {name}; give prompt and completion")
        return
    if record_type == "demonstration" and _is_verdict(said.get("label")):
        raise _fault("label", said["label"], "says whether the completion is good; use record_type=unpaired")
    if "completion" not in payload:
        for name in REASONING:
            if name in said:
                raise _fault(name, said[name], "does not say whose; give responses as messages with reasoning_content")


def _is_verdict(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().casefold() in ("true", "false", "0", "1")
    return isinstance(value, (bool, int, float)) and value in (0, 1)


def _tools(said: Values) -> list[dict[str, Any]]:
    lists = [read_tools(said[name], name) for name in TOOLS if name in said]
    if len(lists) > 1 and lists[0] and lists[1] and lists[0] != lists[1]:
        raise RowError(f"functions {show(said['functions'])}: the column tools says otherwise; keep one")
    return next((tools for tools in lists if tools), [])


def _arguments(said: Values) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for name in ARGUMENTS:
        if name not in said:
            continue
        value = json_value(said[name], name)
        if not isinstance(value, dict):
            raise RowError(f"{name} {show(value)}: must be an object, or its JSON text")
        for key, item in value.items():
            if key in _TAKEN:
                raise RowError(f"{name}.{key} {show(item)}: is not the row's to say; remove it")
            if key in arguments and arguments[key] != item:
                raise RowError(f"{name}.{key} {show(item)}: {ARGUMENTS[0]} says otherwise; keep one")
        arguments |= checked_json(value, name)
    return arguments


def _with_context(said: Values, prompt: Messages) -> Messages:
    if "context" not in said:
        return prompt
    *before, asked = prompt
    if asked["role"] != "user" or any(turn["role"] not in LEADING for turn in before):
        raise _fault("context", said["context"], "belongs to one question, not to a conversation; write it in a turn")
    return [*before, user(f"{asked['content']}\n\n{checked_text(said['context'], 'context')}")]


def _with_history(said: Values, prompt: Messages) -> Messages:
    """Return the prompt with the turns of the history after its system turn, unless it already begins with them."""
    if "history" not in said:
        return prompt
    history = _history(said["history"])
    lead, turns = _lead(prompt)
    own, history = _lead(history)
    if own and lead and [says(turn) for turn in own] != [says(turn) for turn in lead]:
        raise RowError(f"history {show(own[0]['content'])}: the prompt begins with another system turn; keep one")
    if [says(turn) for turn in turns[: len(history)]] == [says(turn) for turn in history]:
        history = []
    return [*(lead or own), *history, *turns]


def _lead(turns: Messages) -> tuple[Messages, Messages]:
    """Return the system turns with which a conversation begins, and the others."""
    count = next((index for index, turn in enumerate(turns) if turn["role"] not in LEADING), len(turns))
    return turns[:count], turns[count:]


def _history(value: Any) -> Messages:
    turns = json_list(value)
    if isinstance(turns, list) and turns and isinstance(turns[0], dict):
        return read_messages(turns, "history")
    if not isinstance(turns, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in turns):
        raise _fault("history", value, "must be a list of pairs of question and answer, or of messages; mend it")
    made: Messages = []
    for index, (question, answer) in enumerate(turns):
        made.append(user(checked_text(question, f"history[{index}][0]")))
        made.append(assistant(checked_text(answer, f"history[{index}][1]")))
    return made


def _with_system(said: Values, prompt: Messages) -> Messages:
    texts = [checked_text(said[name], name) for name in SYSTEM if name in said]
    text = one_text(texts, "system")
    if not text:
        return prompt
    turn = {"role": "system", "content": text}
    if prompt[0]["role"] in LEADING:
        if says(prompt[0])[1] != says(turn)[1]:
            found = show(prompt[0]["content"])
            raise _fault("system", text, f"the conversation begins with another system turn, {found}; keep one")
        return prompt
    return [turn, *prompt]


def _with_reasoning(completion: Messages, thought: str) -> Messages:
    *before, last = completion
    if given(last, "reasoning_content") is not None:
        one_text([last["reasoning_content"], thought], "reasoning")
        return completion
    return [*before, {**last, "reasoning_content": thought}]
