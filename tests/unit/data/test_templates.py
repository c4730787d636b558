"""The templates of the field's models, each with conversations of every kind: what is trained is what is served.

The table of docs/chat-templates.md is made here: `python tests/unit/data/test_templates.py` prints it.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.given import message_parts
from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.probe import probe
from posttrain.data.chat.rendering import render, render_prompt
from posttrain.data.chat.templates import ChatTemplate, fixed_template, template_digest, template_of
from posttrain.data.chat.tokenizer import control_pattern, fix_template, load_tokenizer, prepare_tokenizer
from posttrain.data.messages import Conversation, Json, message_dicts
from posttrain.data.records import IGNORED, Demonstration, prompt_of
from posttrain.data.tokens.encode import encode_demonstrations
from posttrain.data.tokens.outcome import Policies
from posttrain.models.tokenizer import train_tokenizer
from posttrain.stage.errors import UsageError

FOLDER = Path(__file__).parents[2] / "chat_templates"
OURS = {"chatml": "eos=<|im_end|> special=<|im_start|>", "verbatim": "eos=</s> special="}
NAMES = sorted([*OURS, *(path.stem for path in FOLDER.glob("*.jinja"))])
TOOLS: list[Json] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Gives the {thing} of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name, thing in (("get_weather", "weather"), ("get_time", "time"))
]


def user(content: str) -> Json:
    return {"role": "user", "content": content}


def says(content: str, reasoning: str | None = None, calls: tuple[tuple[str, str], ...] = ()) -> Json:
    """A turn of the assistant; calls are a function and its city."""
    made: Json = {"role": "assistant", "content": content}
    if reasoning is not None:
        made["reasoning_content"] = reasoning
    if calls:
        made["tool_calls"] = [
            {"name": name, "arguments": {"city": city}, "id": f"call{city[:5]}"} for name, city in calls
        ]
    return made


def result(city: str, content: str) -> Json:
    return {"role": "tool", "content": content, "tool_call_id": f"call{city[:5]}", "name": "get_weather"}


SYSTEM = {"role": "system", "content": "Answer in one word."}
KINDS: dict[str, tuple[list[Json], list[Json] | None]] = {
    "one turn": ([user("Is ice cold?"), says("Yes, it is.")], None),
    "system": ([SYSTEM, user("Is ice cold?"), says("Yes.")], None),
    "empty system": ([{"role": "system", "content": ""}, user("Is ice cold?"), says("Yes.")], None),
    "developer": ([{"role": "developer", "content": "Be brief."}, user("Is ice cold?"), says("Yes.")], None),
    "turns": ([SYSTEM, user("Two?"), says("2"), user("Four?"), says("4"), user("Six?"), says("6")], None),
    "reasoning": ([user("2 + 2?"), says("It is 4.", "Two and two\nmake four.")], None),
    "reasoning each turn": (
        [user("2 + 2?"), says("It is 4.", "Two and two."), user("And 3 + 3?"), says("It is 6.", "Three twice.")],
        None,
    ),
    "tools": ([user("Hello!"), says("Good day!")], TOOLS),
    "call": ([user("Weather in Paris?"), says("", None, (("get_weather", "Paris"),))], TOOLS),
    "call, result": (
        [
            user("Weather in Paris?"),
            says("", None, (("get_weather", "Paris"),)),
            result("Paris", '{"sky": "grey"}'),
            says("It is grey."),
        ],
        TOOLS,
    ),
    "parallel calls": (
        [
            user("Weather in Paris and Delhi?"),
            says("", None, (("get_weather", "Paris"), ("get_weather", "Delhi"))),
            result("Paris", "grey"),
            result("Delhi", "hot"),
            says("Grey and hot."),
        ],
        TOOLS,
    ),
    "reasoning, call": (
        [
            user("Weather in Paris?"),
            says("", "I have to look.", (("get_weather", "Paris"),)),
            result("Paris", "grey"),
            says("It is grey.", "The sky is grey there."),
        ],
        TOOLS,
    ),
}


@functools.cache
def tokenizer_for(name: str, merge_system: bool = False) -> PreTrainedTokenizerBase:
    """A small trained vocabulary with a template and the special tokens that it names."""
    text = OURS.get(name) or (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")
    head = dict(part.partition("=")[::2] for part in text.split("-#}")[0].replace("{#-", "").split())
    texts = [message["content"] for messages, _ in KINDS.values() for message in messages] * 4
    tokenizer = train_tokenizer(texts, 400, 4096)
    special = [token for token in head["special"].split(",") if token]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special], special_tokens=True)
    names = {f"{key}_token": head[key] for key in ("bos", "eos") if key in head}
    tokenizer.add_special_tokens(names)
    prepare_tokenizer(tokenizer, name if name in OURS else text, eos_token=head["eos"])
    fix_template(tokenizer, {}, datetime.date(2026, 2, 3), merge_system)
    return tokenizer


def record_of(kind: str) -> Demonstration:
    messages, tools = KINDS[kind]
    last = max(place for place, message in enumerate(messages) if message["role"] == "user") + 1
    return Demonstration.model_validate(
        {"id": kind, "source": "hand", "prompt": messages[:last], "completion": messages[last:], "tools": tools}
    )


class Trained(NamedTuple):
    """What became of one conversation under one template."""

    ids: list[int]
    parts: list[tuple[int, int]]
    """Trained tokens, as ranges."""
    untrained: int


def train(name: str, kind: str, thinking: Any = "last_turn", loss_on: Any = "assistant") -> Trained:
    policies = Policies(4096, "error", "error", "error", thinking)
    (outcome,) = encode_demonstrations(tokenizer_for(name), [record_of(kind)], policies, loss_on)
    assert outcome.row is not None
    trained = [False, *(label != IGNORED for label in outcome.row["labels"]), False]
    edges = [place for place, (one, other) in enumerate(itertools.pairwise(trained)) if one != other]
    return Trained(outcome.row["input_ids"], list(zip(edges[::2], edges[1::2], strict=True)), outcome.turns_untrained)


def served(kind: str, turn: int) -> Conversation:
    """The conversation that a server is given for a turn: what was thought for earlier users is not in it."""
    record = record_of(kind)
    whole = prompt_of(record).followed_by(*message_dicts(record.completion))
    return Conversation(whole.messages[:turn], whole.tools)


def fed_back(name: str, kind: str, ids: list[int]) -> bool:
    """Return whether a server that is asked again reads the tokens of the row, and then the new question."""
    messages = [{k: v for k, v in m.items() if k != "reasoning_content"} for m in served(kind, 99).messages]
    again = Conversation([*messages, user("And then?")], served(kind, 99).tools)
    return encode_prompts(tokenizer_for(name), [again])[0][: len(ids)] == ids


def cell(name: str, kind: str) -> str:
    """The entry of the table: trained tokens of all, turns left out, and whether a server reads them back."""
    try:
        made = train(name, kind)
    except UsageError as error:
        return reason(str(error))
    tokens = sum(end - start for start, end in made.parts)
    left = f" −{made.untrained}" if made.untrained else ""
    return f"{tokens}/{len(made.ids)}{left}{' =' if fed_back(name, kind, made.ids) else ''}"


def reason(error: str) -> str:
    """The refusal in a word or two."""
    for words, short in (
        ("definition of tool", "no tools"),
        ("'system'", "no system"),
        ("'developer'", "no system"),
        ("System role", "no system"),
        ("roles must alternate", "no such order"),
        ("ingle tool-calls", "one call"),
        ("Only one tool call", "one call"),
        ("its tool call", "no calls"),
        ("its reasoning", "no reasoning"),
    ):
        if words in error:
            return f"*{short}*"
    raise AssertionError(error)


def table() -> str:
    """The table of the page."""
    lines = [f"| template | {' | '.join(KINDS)} |", "|---" * (len(KINDS) + 1) + "|"]
    lines += [f"| {name} | {' | '.join(cell(name, kind) for kind in KINDS)} |" for name in NAMES]
    return "\n".join(lines) + "\n"


def test_the_page_has_the_table() -> None:
    page = (FOLDER.parents[1] / "docs" / "chat-templates.md").read_text(encoding="utf-8")
    assert table() in page


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_what_is_served(name: str, kind: str) -> None:
    tokenizer = tokenizer_for(name)
    try:
        made = train(name, kind)
    except UsageError as error:
        assert reason(str(error))
        return
    messages = served(kind, 99).messages
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    assert len(made.parts) + made.untrained == len(turns) and made.parts
    special = control_pattern(tokenizer)
    for (start, end), turn in zip(made.parts, turns[-len(made.parts) :], strict=True):
        assert encode_prompts(tokenizer, [served(kind, turn)])[0] == made.ids[:start]
        text = tokenizer.decode(made.ids[start:end])
        ends = [match.end() for match in special.finditer(text)]
        assert ends and ends[-1] == len(text)
        said = [content for _, content in message_parts(messages[turn])]
        assert said and all(part in text for part in said)
    assert made.parts[-1][1] == len(made.ids)


def test_a_template_that_keeps_no_earlier_reasoning_refuses_to_be_asked_for_it() -> None:
    with pytest.raises(UsageError, match=r"leaves out message 2, by 'assistant': its reasoning.*thinking=drop"):
        train("qwen3", "reasoning each turn", "keep")
    kept, last, none = (train("chatml", "reasoning each turn", thinking) for thinking in ("keep", "last_turn", "drop"))
    assert [(len(made.parts), made.untrained) for made in (kept, last, none)] == [(2, 0), (1, 1), (2, 0)]
    text = tokenizer_for("chatml").decode(none.ids)
    assert "Two and two." in tokenizer_for("chatml").decode(kept.ids) and "Three twice." not in text


def test_the_completion_is_the_last_round_of_the_assistant() -> None:
    parts = train("chatml", "call, result", loss_on="completion").parts
    assert parts == train("chatml", "call, result").parts and len(parts) == 2
    assert len(train("chatml", "turns", loss_on="completion").parts) == 1
    assert len(train("chatml", "turns").parts) == 3


def test_a_short_text_is_not_found_by_chance() -> None:
    tokenizer = tokenizer_for("phi_3")
    lost = Conversation([{"role": "system", "content": "a"}, user("Say a."), says("a")])
    with pytest.raises(UsageError, match=r"leaves out message 1, by 'system': its content.*merge_system=true"):
        render(tokenizer, lost)


@pytest.mark.parametrize("name", ["gemma_2", "phi_3"])
def test_a_system_message_can_be_merged_where_there_is_no_place_for_it(name: str) -> None:
    tokenizer = tokenizer_for(name, merge_system=True)
    asked = Conversation([SYSTEM, user("Is ice cold?")])
    merged = Conversation([user("Answer in one word.\n\nIs ice cold?")])
    assert render_prompt(tokenizer, asked) == render_prompt(tokenizer_for(name), merged)
    assert render_prompt(tokenizer, merged) == render_prompt(tokenizer_for(name), merged)


@pytest.mark.parametrize(
    ("name", "written"), [("llama_3_2", "03 Feb 2026"), ("smollm3", "03 February 2026"), ("gpt_oss", "2026-02-03")]
)
def test_a_date_is_that_of_the_import_on_every_day(name: str, written: str) -> None:
    assert written in render_prompt(tokenizer_for(name), served("one turn", 1))


def test_arguments_travel_in_the_template_and_a_row_may_differ() -> None:
    tokenizer = copy.deepcopy(tokenizer_for("qwen3"))
    before = template_digest(tokenizer)
    fix_template(tokenizer, {"enable_thinking": False}, datetime.date(2026, 2, 3), merge_system=False)
    assert template_digest(tokenizer) != before
    asked = served("one turn", 1)
    assert render_prompt(tokenizer, asked).endswith("<think>\n\n</think>\n\n")
    assert tokenizer.apply_chat_template(asked.messages, tokenize=False, add_generation_prompt=True) == render_prompt(
        tokenizer, asked
    )
    own = dataclasses.replace(asked, template_arguments={"enable_thinking": True})
    assert render_prompt(tokenizer, own).endswith("<|im_start|>assistant\n")


def test_literals_of_every_kind_reach_the_template() -> None:
    value = {"a": [1, 2.5, None, True], "b": 'say "é"\n\\n'}
    text = fixed_template("{{ given | tojson }}", {"given": value}, datetime.date(2026, 2, 3), merge_system=False)
    assert json.loads(ChatTemplate(text, text, ()).fill(Conversation([user("a")]))[0]) == value


def test_one_of_several_templates_is_taken_and_the_one_for_tools_goes_along(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tokenizer_for("qwen2_5"))
    plain, tools = tokenizer.chat_template, tokenizer.chat_template + "{# for tools #}"
    tokenizer.chat_template = {"plain": plain, "rag": "{{ 1 }}", "tool_use": tools}
    with pytest.raises(
        UsageError, match=r"chat_template_name=None: the tokenizer's templates are plain, rag, tool_use"
    ):
        prepare_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer, own_name="plain")
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (
        template_of(loaded)
        == template_of(tokenizer)
        == dataclasses.replace(template_of(tokenizer_for("qwen2_5")), text_with_tools=tools)
    )


def test_probing_says_what_a_template_does() -> None:
    found = {name: probe(tokenizer_for(name)) for name in ("qwen3", "phi_3", "gemma_2", "gpt_oss", "mistral_v3")}
    assert [found[name]["system"] for name in ("qwen3", "phi_3")] == ["writes", "leaves out"]
    assert found["gemma_2"]["system"] == "refuses: System role not supported"
    assert [found[name]["reasoning"] for name in ("qwen3", "gemma_2", "gpt_oss")] == [
        "writes",
        "writes, within the content",
        "writes",
    ]
    assert found["qwen3"]["earlier reasoning"] == "leaves out"
    assert [found[name]["tools"] for name in ("qwen3", "phi_3", "mistral_v3")] == ["writes", "leaves out", "writes"]
    assert found["gpt_oss"]["parallel calls"].startswith("refuses: Only one tool call")
    assert found["qwen3"]["developer"] == "writes, as system"


if __name__ == "__main__":
    print(table())
