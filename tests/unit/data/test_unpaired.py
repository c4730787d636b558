"""Unpaired preferences: labelled rows, or comparisons, become answers that are desirable or not, and then tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from build_rows import policies
from curated_data import curate, source
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.tokenizer import prepare_tokenizer
from posttrain.data.messages import Message
from posttrain.data.records import UnpairedPreference
from posttrain.data.sources.adapters import ADAPTERS, detect
from posttrain.data.sources.row_values import RowError
from posttrain.data.tokens.encode_unpaired import encode_unpaired
from posttrain.data.tokens.outcome import Outcome
from posttrain.models.tokenizer import train_tokenizer
from posttrain.stage.errors import UsageError

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
END = "<|im_end|>"

ROWS: list[tuple[str, dict[str, Any]]] = [
    ("unpaired", {"prompt": "Hi", "completion": "Hello!", "label": True}),
    ("unpaired", {"prompt": [HI], "completion": [HELLO], "label": 1}),
    ("unpaired", {"prompt": "Hi", "completion": "Hello!", "label": "True"}),
    ("unpaired_messages", {"messages": [HI, HELLO], "label": True}),
]


def said(record: UnpairedPreference) -> tuple[str, str, bool]:
    return record.prompt[-1].content, record.completion[0].content, record.label


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_labelled_rows_are_recognised(name: str, row: dict[str, Any]) -> None:
    adapter = detect(row, "unpaired")
    assert adapter.name == name
    assert adapter.converter("unpaired")(row) == {"prompt": [HI], "completion": [HELLO], "label": True}


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_labelled_rows_are_no_demonstrations_and_the_way_out_is_named(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r":1: label False: says whether .*; use record_type=unpaired"):
        curate(tmp_path, "demonstration", [source(tmp_path, name, [{**row, "label": False}])])


def test_a_label_of_another_kind_is_an_ignored_column() -> None:
    row = {"prompt": "Hi", "completion": "Hello!", "label": "greeting"}
    assert detect(row, "demonstration").name == "prompt_completion"
    with pytest.raises(RowError, match="label 'greeting': must be true"):
        ADAPTERS["unpaired"].converter("unpaired")(row)


def test_what_an_earlier_turn_of_a_completion_says_belongs_to_the_prompt() -> None:
    row = {"prompt": [HI], "completion": [HELLO, HI, HELLO], "label": False}
    made = ADAPTERS["unpaired"].converter("unpaired")(row)
    assert made == {"prompt": [HI, HELLO, HI], "completion": [HELLO], "label": False}


def test_duplicates_drop_and_answers_labelled_both_ways_are_counted(tmp_path: Path) -> None:
    lines = [
        {"prompt": "A?", "completion": "Yes.", "label": True},
        {"prompt": "A?", "completion": "Yes.", "label": True},
        {"prompt": "A?", "completion": "Yes.", "label": False},
        {"prompt": "A?", "completion": "No.", "label": False},
        {"prompt": "B?", "completion": " ", "label": False},
    ]
    silent = [{"role": "assistant", "content": ""}]
    lines += [
        {"prompt": "B?", "completion": says_nothing, "label": False} for says_nothing in (silent, json.dumps(silent))
    ]
    made = curate(tmp_path, "unpaired", [source(tmp_path, "s", lines)], eval_fraction=0)
    assert list(map(said, made.train)) == [("A?", "Yes.", True), ("A?", "Yes.", False), ("A?", "No.", False)]
    of_source = made.accounting["by_source"]["s"]
    assert of_source["dropped"] == {"duplicate": 1, "empty_response": 3}
    assert of_source["noted"] == {"labelled_both_ways": 2}


def test_comparisons_give_their_best_and_their_worst(tmp_path: Path) -> None:
    pairs = [{"id": 7, "prompt": "A?", "chosen": "Yes.", "rejected": "No."}]
    ranked = [
        {"prompt": "B?", "responses": ["b", "a", "d", "c"], "ranks": [2, 1, 3, 3], "ended": [True, True, True, False]},
        {"prompt": "C?", "responses": ["same", "same "], "ranks": [1, 2]},
    ]
    sources = [source(tmp_path, "pairs", pairs), source(tmp_path, "ranked", ranked)]
    made = curate(tmp_path, "unpaired", sources, eval_fraction=0)
    wanted = [("A?", "Yes.", True), ("A?", "No.", False), ("B?", "a", True), ("B?", "c", False)]
    assert list(map(said, made.train)) == wanted
    assert [record.id for record in made.train[:2]] == ["pairs/7/desirable", "pairs/7/undesirable"]
    assert [record.ended for record in made.train[2:]] == [True, False]
    counts = made.accounting["by_source"]["ranked"]
    assert (counts["rows_in"], counts["kept"], counts["dropped"]) == (4, 2, {"identical_responses": 2})
    assert "ignored_columns" not in made.result.facts["sources"]["pairs"]


def test_reasoning_and_calls_of_an_answer_stay_with_it_and_columns_are_used(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    lines = [
        {"prompt": "A?", "completion": "<think>Hm.</think>Yes.", "label": True, "system": "Be brief."},
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [call]}], "label": 0.0},
    ]
    sources = [source(tmp_path, f"s{number}", [line]) for number, line in enumerate(lines)]
    first, second = curate(tmp_path, "unpaired", sources, eval_fraction=0).train
    assert [turn.content for turn in first.prompt] == ["Be brief.", "A?"]
    assert (first.completion[0].reasoning_content, first.completion[0].content) == ("Hm.", "Yes.")
    assert (second.completion[0].tool_calls[0].name, second.label) == ("f", False)


def test_reasoning_beside_two_responses_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "A?", "chosen": "Yes.", "rejected": "No.", "reasoning": "Hm."}
    with pytest.raises(UsageError, match=r"reasoning 'Hm\.': does not say whose"):
        curate(tmp_path, "unpaired", [source(tmp_path, "pairs", [row])])


def test_trees_give_the_best_and_the_worst_of_their_ranked_answers(tmp_path: Path) -> None:
    turn = {"message_id": "p", "parent_id": None, "role": "prompter", "text": "A?"}
    answers = [
        {"message_id": f"a{rank}", "parent_id": "p", "role": "assistant", "text": f"answer {rank}", "rank": rank}
        for rank in (1, 0, 2)
    ]
    made = curate(tmp_path, "unpaired", [source(tmp_path, "tree", [turn, *answers])], eval_fraction=0)
    assert list(map(said, made.train)) == [("A?", "answer 0", True), ("A?", "answer 2", False)]


def test_a_pair_stays_on_one_side_of_the_split(tmp_path: Path) -> None:
    pairs = [{"prompt": f"{n}?", "chosen": "Yes.", "rejected": "No."} for n in range(40)]
    made = curate(tmp_path, "unpaired", [source(tmp_path, "pairs", pairs)], eval_fraction=0.3)
    assert len(made.eval) > 4
    assert not {said(record)[0] for record in made.train} & {said(record)[0] for record in made.eval}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(["What is two plus two? It is four.", "user\n", "assistant\n"] * 4, 340, 512)
    prepare_tokenizer(tokenizer, "chatml")
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, answer: str, **knobs: Any) -> Outcome:
    fields = {name: knobs.pop(name) for name in ("label", "ended") if name in knobs}
    record = UnpairedPreference(
        id="u1",
        source="hand",
        prompt=[Message(role="user", content="What?")],
        completion=[Message(role="assistant", content=answer)],
        **{"label": True, **fields},
    )
    (outcome,) = encode_unpaired(tokenizer, [record], policies(**{"on_control_tokens": "drop", **knobs}))
    return outcome


@pytest.mark.parametrize("label", [True, False])
def test_a_response_stands_apart_from_its_prompt_and_ends_with_eos(
    tokenizer: PreTrainedTokenizerBase, label: bool
) -> None:
    row = encode(tokenizer, "It is four.", label=label).row
    assert row is not None
    assert tokenizer.decode(row["prompt_ids"]) == f"<|im_start|>user\nWhat?{END}\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["response_ids"]) == f"It is four.{END}"
    assert row["label"] is label
    cut = encode(tokenizer, "It is four.", ended=False).row
    assert cut is not None
    assert cut["response_ids"] == row["response_ids"][:-1]


def test_overlong_and_forged_rows_are_dropped_cut_or_errors(tokenizer: PreTrainedTokenizerBase) -> None:
    whole = encode(tokenizer, "It is four.").row
    assert whole is not None
    prompt, answer = len(whole["prompt_ids"]), whole["response_ids"]
    limit = prompt + 2
    assert encode(tokenizer, "It is four.", max_length=limit).reason == "overlong"
    cut = encode(tokenizer, "It is four.", max_length=limit, overlong="truncate")
    assert cut.row is not None
    assert (cut.row["response_ids"], cut.truncated, cut.lengths) == (answer[:2], 1, (limit,))
    assert encode(tokenizer, "It is four.", max_length=prompt, overlong="truncate").reason == "no_trained_token"
    with pytest.raises(UsageError, match=f"row u1 of hand: {prompt + len(answer)} tokens, but max_length={limit}"):
        encode(tokenizer, "It is four.", max_length=limit, overlong="error")
    assert encode(tokenizer, f"It is{END} four.").reason == "control_token"
