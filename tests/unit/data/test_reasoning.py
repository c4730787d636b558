"""The answer of a response is told from the reasoning before it, in each form that published models write."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from posttrain.data.chat.reasoning import FORMS, Reply, decode_marked, read_reply, split_reply

WHOLE = [
    "The answer is 4.",
    "",
    " four\n",
    "The <think> mark opens a block.",
    '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>',
    "x <|end|> y",
]
"""Responses without reasoning."""

ANALYSIS = "<|channel|>analysis<|message|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = '<|start|>assistant<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'


@pytest.mark.parametrize("text", WHOLE)
def test_a_response_without_reasoning_is_its_answer_letter_for_letter(text: str) -> None:
    assert split_reply(text) == Reply(text)


@pytest.mark.parametrize("opening", FORMS)
def test_every_form_is_told_from_the_answer(opening: str) -> None:
    closing = FORMS[opening]
    whole = f"{opening}\n2 and 2, so 5? No.\n{closing}\n\n4."
    assert split_reply(whole) == Reply("4.", "2 and 2, so 5? No.")
    assert split_reply(f"{opening}\n2 and 2, so 5") == Reply("", "2 and 2, so 5", finished=False)
    continued = whole.removeprefix(opening)
    assert split_reply(continued, f"<|im_start|>assistant\n{opening}\n") == Reply("4.", "2 and 2, so 5? No.")
    assert split_reply("\n2 and 2, so 5", f"assistant\n{opening}") == Reply("", "2 and 2, so 5", finished=False)


@pytest.mark.parametrize(
    ("response", "prompt", "reply"),
    [
        ("<think>\n\n</think>\n\nHello", "", Reply("Hello")),
        ("Hello", "<think>\n\n</think>\n\n", Reply("Hello")),
        ("4.", "user\nWhat does <think> do?<|im_end|>\nassistant\n", Reply("4.")),
        ("so 4.</think>4", "", Reply("4", "so 4.")),
        ("<think>\nagain</think>4", "assistant\n<think>\n", Reply("4", "again")),
        ("Let me see. <think>5</think> 4", "", Reply("Let me see.  4", "5")),
        ("<think>a</think>b <think>c</think>d", "", Reply("b d", "a\n\nc")),
        ("<think>a</think>b\n<think>c", "", Reply("", "a\n\nc", finished=False)),
        ("<think>a <think>b</think> c</think>d", "", Reply("d", "a <think>b</think> c")),
        ("<think>the <think> mark</think>d", "", Reply("d", "the <think> mark")),
        ("<think>a</think>The mark is <think>.", "", Reply("The mark is <think>.", "a")),
        ("<think>a</think>    indented", "", Reply("indented", "a")),
        (
            "<think>call it</think>\n<tool_call>\n{}\n</tool_call>",
            "",
            Reply("<tool_call>\n{}\n</tool_call>", "call it"),
        ),
        ('<think>{"a": 0}</think>{"a": 1}', "", Reply('{"a": 1}', '{"a": 0}')),
        ("<think></think>", "", Reply("")),
        ("<think>", "", Reply("", finished=False)),
    ],
)
def test_blocks_stand_where_a_response_or_its_prompt_opens_them(response: str, prompt: str, reply: Reply) -> None:
    assert split_reply(response, prompt) == reply


@pytest.mark.parametrize(
    ("response", "reply"),
    [
        (f"{ANALYSIS}2 + 2<|end|>{FINAL}4.<|return|>", Reply("4.", "2 + 2")),
        ("<|channel|>final<|message|>4.", Reply("4.")),
        (f"{ANALYSIS}2 + 2", Reply("", "2 + 2", finished=False)),
        (f"{ANALYSIS}2 + 2<|return|>", Reply("", "2 + 2", finished=False)),
        (f"{ANALYSIS}2<|end|><|start|>assistant{ANALYSIS}+ 2<|end|>{FINAL}4.", Reply("4.", "2\n\n+ 2")),
        (f"{ANALYSIS}2<|end|><|start|>assistant{ANALYSIS}+ 2", Reply("", "2\n\n+ 2", finished=False)),
        (f"{ANALYSIS}2 + 2<|end|>{CALL}", Reply(CALL, "2 + 2")),
        (f"{ANALYSIS}2 + 2<|end|><|start|>assistant<|channel|>fin", Reply("", "2 + 2")),
        (
            f"<|channel|>commentary<|message|>Let me add.<|end|>{CALL}",
            Reply(f"Let me add.\n\n{CALL}"),
        ),
    ],
)
def test_channels_but_that_of_analysis_are_the_answer(response: str, reply: Reply) -> None:
    assert split_reply(response, "<|start|>user<|message|>2 + 2?<|end|><|start|>assistant") == reply


def test_a_reply_in_one_text_is_split_into_itself() -> None:
    for reply in (Reply("4.", "2 + 2"), Reply("4."), Reply("")):
        assert split_reply(reply.inline) == reply


def marked_tokenizer(*special: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes with special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize(
    ("special", "prompt", "response", "reply"),
    [
        (
            ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
            "<|start|>assistant",
            f"{ANALYSIS}2 + 2<|end|>{FINAL}4.",
            Reply("4.", "2 + 2"),
        ),
        (("[THINK]", "[/THINK]", "[INST]"), "[INST]2 + 2?", "[THINK]2 + 2[/THINK]4.[INST]", Reply("4.", "2 + 2")),
        (
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            "2 + 2?<|START_THINKING|>",
            "2 + 2<|END_THINKING|><|START_RESPONSE|>4.<|END_RESPONSE|>",
            Reply("4.", "2 + 2"),
        ),
        (("<|channel>", "<channel|>"), "2 + 2?", "<|channel>thought\n2 + 2<channel|>4.", Reply("4.", "2 + 2")),
        (
            ("<|user|>", "<|end|>", "<|assistant|>"),
            "<|user|>2?<|end|>",
            "<think>2 + 2</think>4.<|end|>",
            Reply("4.", "2 + 2"),
        ),
    ],
)
def test_marks_that_are_special_tokens_are_seen_and_other_special_tokens_are_not(
    special: tuple[str, ...], prompt: str, response: str, reply: Reply
) -> None:
    tokenizer = marked_tokenizer(*special)
    asked, said = (tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, response))
    assert read_reply(tokenizer, asked, decode_marked(tokenizer, said)) == reply
