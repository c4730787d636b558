"""Chat templates, masks and boundaries, against transformers itself, on real and trained tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.data.chat.pieces import encode_behind, encode_pieces, response_text
from posttrain.data.chat.rendering import render, render_prompt, response_start
from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import (
    adds_bos,
    check_tokenizer,
    control_tokens,
    load_tokenizer,
    prepare_tokenizer,
    tokenizer_digest,
)
from posttrain.data.messages import Conversation
from posttrain.models.tokenizer import train_tokenizer
from posttrain.stage.errors import UsageError

SHARED = Path(__file__).resolve().parents[3].parent / "shared"
NAMES = ["stories260k", "gpt2", "gptneox", "trained"]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Où est-il ?\n\n  Réponds 12 fois 3."},
    {"role": "assistant", "content": "Là-bas 🙂\n- 36\n"},
    {"role": "user", "content": "তারপর?"},
    {"role": "assistant", "content": "No more."},
]
QWEN_LIKE = (
    "{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
LLAMA_LIKE = (
    "{{- bos_token }}{%- for m in messages %}"
    "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


def raw_tokenizer(name: str, **tokens: Any) -> PreTrainedTokenizerBase:
    if name == "trained":
        return train_tokenizer([message["content"] for message in CONVERSATION] * 3, 400, 512)
    folder = SHARED / ("models" if name == "stories260k" else "tokenizers") / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is absent")
    if name == "stories260k":
        return AutoTokenizer.from_pretrained(folder)
    return PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **tokens)


def chat_tokenizer(name: str) -> PreTrainedTokenizerBase:
    tokenizer = raw_tokenizer(name)
    prepare_tokenizer(tokenizer, "chatml", pad_token="<|pad|>")
    return tokenizer


def fake(template: str, eos: str, extra: list[str], **tokens: str) -> PreTrainedTokenizerBase:
    """A real vocabulary dressed with another model family's special tokens and template."""
    tokenizer = raw_tokenizer("gptneox", eos_token=eos, extra_special_tokens=extra, **tokens)
    tokenizer.chat_template = template
    return tokenizer


def pieces_of(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> list[list[int]]:
    conversation = Conversation(messages)
    text, _ = render(tokenizer, conversation)
    return encode_pieces(
        tokenizer, [text], [[response_start(tokenizer, render_prompt(tokenizer, conversation.without_last()), text)]]
    )[0]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_and_masks_are_those_of_transformers(name: str) -> None:
    tokenizer = chat_tokenizer(name)
    check_tokenizer(tokenizer, generation_markers=True)
    expected = tokenizer.apply_chat_template(CONVERSATION, return_assistant_tokens_mask=True)
    text, spans = render(tokenizer, Conversation(CONVERSATION))
    assert [text[start:end] for start, end in spans] == ["Là-bas 🙂\n- 36\n<|im_end|>", "No more.<|im_end|>"]
    pieces = encode_pieces(tokenizer, [text], [[cut for span in spans for cut in span]])[0]
    assert [token for piece in pieces for token in piece] == expected["input_ids"]
    mask = [index % 2 for index, piece in enumerate(pieces) for _ in piece]
    assert mask == expected["assistant_masks"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("response", ["Fine.", " Fine.", "\nFine.", "\n\n  Fine", "\t"])
def test_a_response_follows_exactly_the_prompt_of_generation(name: str, response: str) -> None:
    tokenizer = chat_tokenizer(name)
    question = [{"role": "user", "content": "How?"}]
    prompt, answer = pieces_of(tokenizer, [*question, {"role": "assistant", "content": response}])
    assert prompt == tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert tokenizer.eos_token_id in answer
    if name != "stories260k":  # its normaliser adds a space after every special token
        assert tokenizer.decode(answer) == f"{response}<|im_end|>\n"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("response", [" He cried.", "\nThe end", " 🙂"])
def test_verbatim_is_running_text_that_a_response_continues(name: str, response: str) -> None:
    tokenizer = raw_tokenizer(name, **({} if name == "trained" else {"eos_token": "<|endoftext|>"}))
    size = len(tokenizer)
    prepare_tokenizer(tokenizer, "verbatim", pad_token="<unk>" if name == "stories260k" else "<|pad|>")
    check_tokenizer(tokenizer, generation_markers=True)
    assert len(tokenizer) == size + (name == "gpt2")  # <|pad|>, and nothing else; gptneox reserves a token for padding
    opening = "Tim lost his ball. He was sad."
    prompt, answer = pieces_of(
        tokenizer, [{"role": "user", "content": opening}, {"role": "assistant", "content": response}]
    )
    assert prompt == tokenizer(opening).input_ids
    assert [*prompt, *answer] == [*tokenizer(opening + response).input_ids, tokenizer.eos_token_id]
    assert response_text(tokenizer, prompt, answer) == response


@pytest.mark.parametrize("name", NAMES)
def test_a_sampled_response_is_the_text_behind_its_prompts(name: str) -> None:
    tokenizer = chat_tokenizer(name)
    for response in ("Fine.", " Fine.", "\n\n  Fine"):
        prompt, answer = pieces_of(tokenizer, [CONVERSATION[1], {"role": "assistant", "content": response}])
        sampled = answer[: answer.index(tokenizer.eos_token_id) + 1]
        assert response_text(tokenizer, prompt, sampled) == response


def spaced_tokenizer() -> PreTrainedTokenizerBase:
    """Like SentencePiece's, it puts a space before every text that it is given."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator(["Once upon a time, there was a cat. One, two. me"] * 4, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


@pytest.mark.parametrize("name", ["stories260k", "spaced"])
def test_a_token_that_spans_the_cut_changes_no_text(name: str) -> None:
    tokenizer = spaced_tokenizer() if name == "spaced" else raw_tokenizer(name)
    prepare_tokenizer(tokenizer, "verbatim", "<|pad|>")
    for prompt, response in (("Once upon a ti", "me, there was a cat."), ("Once upon a", " time"), ("One", ", two")):
        (pieces,) = encode_pieces(tokenizer, [prompt + response], [[len(prompt)]])
        assert pieces[0] == tokenizer(prompt, add_special_tokens=False).input_ids
        assert tokenizer.decode([*pieces[0], *pieces[1]]) == prompt + response
    assert encode_behind(tokenizer, "me") != tokenizer("me", add_special_tokens=False).input_ids


def test_bos_begins_a_conversation_where_the_tokenizer_adds_it() -> None:
    stories, trained = chat_tokenizer("stories260k"), chat_tokenizer("trained")
    assert adds_bos(stories)
    assert pieces_of(stories, CONVERSATION)[0][:2] == [1, stories.convert_tokens_to_ids("<|im_start|>")]
    assert not adds_bos(trained)
    assert pieces_of(trained, CONVERSATION)[0][0] == trained.convert_tokens_to_ids("<|im_start|>")


def test_chatml_ends_turns_with_eos_and_keeps_the_vocabulary() -> None:
    tokenizer = raw_tokenizer("stories260k")
    prepare_tokenizer(tokenizer, None, pad_token="<|pad|>")
    assert tokenizer.eos_token == "<|im_end|>"
    assert len(tokenizer) == 512 + 3
    prepare_tokenizer(tokenizer, "chatml", pad_token="<|pad|>")
    assert len(tokenizer) == 512 + 3


def test_qwen_conventions() -> None:
    tokenizer = fake(QWEN_LIKE, "<|endoftext|>", ["<|im_start|>", "<|im_end|>"], pad_token="<|endoftext|>")
    with pytest.raises(UsageError, match="padding and EOS are both"):
        check_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer, eos_token="<|im_end|>")
    check_tokenizer(tokenizer)
    assert tokenizer.chat_template == QWEN_LIKE
    prompt, response = pieces_of(tokenizer, CONVERSATION)
    assert tokenizer.decode(prompt).endswith("<|im_start|>assistant\n")
    assert response[-2] == tokenizer.eos_token_id
    check_tokenizer(tokenizer, generation_markers=True)  # which it does not need


def test_llama_conventions() -> None:
    markers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = fake(LLAMA_LIKE, "<|endoftext|>", markers, bos_token="<|padding|>")
    prepare_tokenizer(tokenizer, pad_token="<|finetune_right_pad_id|>")
    with pytest.raises(UsageError, match=r"ends a response with '<\|eot_id\|>'.*train.base.eos_token='<\|eot_id\|>'"):
        check_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer, eos_token="<|eot_id|>")
    check_tokenizer(tokenizer)
    assert pieces_of(tokenizer, CONVERSATION)[1][-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")


def test_padding_is_the_tokenizers_own_or_one_that_it_reserves() -> None:
    def padded(specials: list[str], **own: str) -> tuple[str | None, int]:
        extra = [*specials, "<|image_pad|>"]
        tokenizer = raw_tokenizer("gpt2", eos_token="<|endoftext|>", extra_special_tokens=extra, **own)
        size = len(tokenizer)
        prepare_tokenizer(tokenizer, "verbatim", pad_token="<|pad|>")
        return tokenizer.pad_token, len(tokenizer) - size

    assert padded([]) == ("<|pad|>", 1)
    assert padded([], pad_token="<|endoftext|>") == ("<|pad|>", 1)
    assert padded(["<pad>"], pad_token="<pad>") == ("<pad>", 0)
    assert padded(["<|finetune_right_pad_id|>"]) == ("<|finetune_right_pad_id|>", 0)
    assert padded(["[PAD]"], pad_token="<|endoftext|>") == ("[PAD]", 0)
    assert padded(["[PAD]", "<|pad|>"]) == ("<|pad|>", 0)


def test_smollm_conventions() -> None:
    end = "<|endoftext|>"
    tokenizer = raw_tokenizer("gpt2", bos_token=end, eos_token=end, extra_special_tokens=["<|im_start|>", "<|im_end|>"])
    size = len(tokenizer)
    prepare_tokenizer(tokenizer, pad_token=end)
    check_tokenizer(tokenizer, generation_markers=True)
    assert (len(tokenizer), tokenizer.eos_token, tokenizer.pad_token) == (size, "<|im_end|>", end)


def test_unfit_tokenizers_are_refused_with_the_fix() -> None:
    tokenizer = raw_tokenizer("gpt2")
    with pytest.raises(UsageError, match=r"no chat template; set train.base.chat_template=chatml"):
        check_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer)
    with pytest.raises(UsageError, match=r"no padding token; set train.base.pad_token='<\|pad\|>'"):
        check_tokenizer(tokenizer)
    prepare_tokenizer(tokenizer, pad_token="<|im_end|>")
    with pytest.raises(UsageError, match=r"padding and EOS are both '<.im_end.>'"):
        check_tokenizer(tokenizer)


def test_padding_that_is_the_end_of_a_turn_is_refused() -> None:
    tokenizer = raw_tokenizer("gpt2")
    prepare_tokenizer(tokenizer, "chatml", pad_token="<|im_end|>")
    with pytest.raises(UsageError, match=r"padding and EOS are both '<.im_end.>'.*train.base.pad_token='<.pad.>'"):
        check_tokenizer(tokenizer)


def test_templates_that_hide_the_response_or_its_end_are_refused() -> None:
    tokenizer = chat_tokenizer("trained")
    good = tokenizer.chat_template
    tokenizer.chat_template = good.replace('assistant\\n" -}}', 'assistant\\nSo: " -}}')
    with pytest.raises(UsageError, match="does not begin a finished conversation with its generation prompt"):
        check_tokenizer(tokenizer)
    inside = '{{- "<|im_end|>" -}}\n        {%- endgeneration -%}'
    tokenizer.chat_template = good.replace(inside, '{%- endgeneration -%}{{- "<|im_end|>" -}}')
    check_tokenizer(tokenizer)
    with pytest.raises(UsageError, match=r"outside its {% generation %} markers"):
        check_tokenizer(tokenizer, generation_markers=True)
    tokenizer.chat_template = "{{ raise_exception('only one turn') }}"
    with pytest.raises(UsageError, match="refuses the conversation: only one turn"):
        check_tokenizer(tokenizer)


def test_control_tokens_are_the_special_ones_longest_first() -> None:
    tokens = control_tokens(chat_tokenizer("gptneox"))
    assert {"<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|padding|>"} <= set(tokens)
    assert not any(token.isspace() for token in tokens)
    assert [len(token) for token in tokens] == sorted(map(len, tokens), reverse=True)


def test_digests_survive_saving_and_padding_and_see_changes(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("trained")
    digests = template_digest(tokenizer), tokenizer_digest(tokenizer)
    tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (template_digest(loaded), tokenizer_digest(loaded)) == digests
    loaded.add_tokens(["new"])
    assert tokenizer_digest(loaded) != digests[1]
    loaded.chat_template += " "
    assert template_digest(loaded) != digests[0]


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no tokenizer that can be read"):
        load_tokenizer(tmp_path)
