"""Rows by hand for tests of tokenization, and what becomes of one."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from posttrain.data.messages import Message
from posttrain.data.records import IGNORED, Comparison, Demonstration
from posttrain.data.tokens.encode import encode_demonstrations
from posttrain.data.tokens.encode_comparisons import encode_comparisons
from posttrain.data.tokens.outcome import Outcome, Policies


def messages(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [Message(role=roles[index % 2], content=turn) for index, turn in enumerate(turns)]


def demonstration(*turns: str, **fields: Any) -> Demonstration:
    conversation = messages(*turns)
    values = {"id": "d1", "source": "hand", "prompt": conversation[:-1], "completion": conversation[-1:], **fields}
    return Demonstration(**values)


def comparison(responses: list[str], ranks: list[int], **fields: Any) -> Comparison:
    turns = [Message(role="assistant", content=response) for response in responses]
    return Comparison(
        **{"id": "c1", "source": "hand", "prompt": messages("What?"), "responses": turns, "ranks": ranks, **fields}
    )


def policies(**options: Any) -> Policies:
    usual = {"overlong": "drop", "on_control_tokens": "error", "on_lost_text": "error", "thinking": "last_turn"}
    return Policies(**{"max_length": 128, **usual, **options})


def demonstrate(tokenizer: PreTrainedTokenizerBase, record: Demonstration, **options: Any) -> Outcome:
    loss_on = options.pop("loss_on", "completion")
    return encode_demonstrations(tokenizer, [record], policies(**options), loss_on)[0]


def compare(tokenizer: PreTrainedTokenizerBase, record: Comparison, **options: Any) -> Outcome:
    return encode_comparisons(tokenizer, [record], policies(**options))[0]


def trained_text(tokenizer: PreTrainedTokenizerBase, outcome: Outcome) -> list[str]:
    """The texts of the runs of trained tokens, one for each run."""
    assert outcome.row is not None
    runs: list[list[int]] = [[]]
    for token, target in zip(outcome.row["input_ids"], outcome.row["labels"], strict=True):
        assert target in (IGNORED, token)
        if target == IGNORED:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(ids) for ids in runs if ids]
