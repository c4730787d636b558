"""A sample's text is the answer behind its reasoning, wherever tokens or the prompt open the block."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from saying_model import saying_model, words_tokenizer

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.messages import Conversation
from posttrain.sample.asking.talk import chat, readable
from posttrain.sample.backends.server import ServerSampler
from posttrain.sample.choose.answers import number_answer
from posttrain.sample.choose.select import best_of, by_logprob, first_valid, majority_of
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.grammar import choice_grammar
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.ladder import read_document
from posttrain.sample.structured.repair import repair_json
from posttrain.stage.errors import UsageError

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PLAIN, SPECIAL = ("<think>", "</think>"), ("[THINK]", "[/THINK]")
END = "<|im_end|>"


def say(said: str, params: SamplingParams = GREEDY, first: str = "\n") -> Sample:
    """Return the sample of a model that says this text, behind a prompt that ends with ``first``."""
    tokenizer = words_tokenizer(*PLAIN, special=SPECIAL)
    prompt = tokenizer(f"<|im_start|>user\nred{END}\n<|im_start|>assistant{first}").input_ids
    ((sample,),) = Sampler(saying_model(tokenizer, said, first), tokenizer).generate([prompt], params)
    return sample


@pytest.mark.parametrize("marks", [PLAIN, SPECIAL])
@pytest.mark.parametrize("beams", [1, 2])
def test_text_is_the_answer_and_the_whole_response_is_kept(marks: tuple[str, str], beams: int) -> None:
    opening, closing = marks
    sample = say(f"{opening} one two{closing} three{END}", dataclasses.replace(GREEDY, num_beams=beams))
    assert (sample.text, sample.reasoning, sample.reasoning_tokens) == ("three", "one two", 2)
    assert sample.response == f"{opening} one two{closing} three"
    assert sample.ended and sample.answered


def test_a_response_without_reasoning_is_as_it_was() -> None:
    sample = say(f" one two{END}", first="\n")
    assert (sample.text, sample.response, sample.reasoning, sample.whole) == (" one two", " one two", "", None)
    assert sample.ended and sample.answered


@pytest.mark.parametrize("marks", [PLAIN, SPECIAL])
def test_a_prompt_may_open_the_block(marks: tuple[str, str]) -> None:
    opening, closing = marks
    sample = say(f" one two{closing} three{END}", first=f"\n{opening}")
    assert (sample.text, sample.reasoning) == ("three", "one two")
    assert say(f" one two{END}", first=f"\n{opening}").text == ""


@pytest.mark.parametrize(
    ("said", "reason"), [(f"<think> one two{END}", "stop"), ("<think> one two three four five six", "length")]
)
def test_reasoning_that_goes_on_is_no_answer_whatever_ended_the_sample(said: str, reason: str) -> None:
    sample = say(said, dataclasses.replace(GREEDY, max_tokens=5))
    assert sample.finish_reason == reason
    assert (sample.text, sample.ended, sample.answered) == ("", False, False)
    assert sample.reasoning.startswith("one two") and sample.response.startswith("<think> one two")


def test_a_document_under_a_grammar_is_whole_whatever_it_quotes() -> None:
    tokenizer = words_tokenizer()
    sampler = Sampler(saying_model(tokenizer, f" one{END}"), tokenizer)
    grammar = choice_grammar(Vocabulary.of(tokenizer, sampler.ends), ["a </think> b"])
    prompt = tokenizer("<think>\n").input_ids
    ((sample,),) = sampler.generate([prompt], dataclasses.replace(GREEDY, max_tokens=40), constraints=[grammar])
    assert (sample.text, sample.answered, sample.reasoning) == ("a </think> b", True, "")


def made(text: str, *, reasoning: str = "", answered: bool = True, logprob: float = -1.0) -> Sample:
    return Sample([0], [logprob], [logprob], "stop", text, 0.0, reasoning, len(reasoning), answered, None)


def test_what_ended_within_its_reasoning_neither_votes_nor_wins() -> None:
    open_ended = made("", reasoning="7 or 7", answered=False, logprob=-0.01)
    samples = [open_ended, open_ended, made("5", reasoning="6"), made("4")]
    assert majority_of(samples, lambda text: number_answer(text) or "none").sample.text == "5"
    assert best_of(samples, by_logprob([[0]], [samples])[0]).index == 2


class Scripted:
    """Gives its samples, up to the first that is accepted."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        assert accept is not None
        return [[sample for sample in self.samples if not accept(0, sample)]]


def test_the_first_valid_sample_has_an_answer() -> None:
    source = Scripted(made("", reasoning="7", answered=False), made("5"))
    (attempt,) = first_valid(source, [[0]], GREEDY, lambda prompt, sample: True)
    assert attempt.sample is not None and attempt.sample.text == "5"


def test_the_final_document_is_read_not_a_draft() -> None:
    draft = '{"a": [0, 0, 0, 0]}'
    found = repair_json(f'<think>{draft}</think>\n{{"a": [1],}}')
    assert found is not None and found.value == {"a": [1]}
    assert found.changes[0] == f"left out reasoning: {len(draft) + 16} characters"
    assert repair_json(f"<think>{draft}") is None
    assert not read_document(f"[THINK]{draft}", Validator({}), repair=True).parsed
    quoted = repair_json('{"a": "</think>",}')
    assert quoted is not None and quoted.value == {"a": "</think>"}


def test_people_read_the_reasoning_apart() -> None:
    assert readable(made("4")) == "4"
    assert readable(made("4", reasoning="2 and 2")) == "[reasoning: 3 words]\n2 and 2\n\n[answer]\n4"
    assert readable(made("", reasoning="2 and", answered=False)).endswith(
        "2 and\n\n[no answer: the reasoning did not end; raise max_tokens]"
    )


class Noting(Sampler):
    """A sampler that notes what it was asked."""

    asked: str = ""

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], **more: Any
    ) -> list[list[Sample]]:
        self.asked = self.tokenizer.decode(prompts[0])
        return super().generate(prompts, params, **more)


def test_a_chat_shows_all_and_goes_on_with_the_answer() -> None:
    tokenizer = words_tokenizer(*PLAIN, special=SPECIAL)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role ~ '<' ~ m.content ~ '|' ~ m.reasoning_content ~ '>' }}{% endfor %}{{ '\\n' }}"
    )
    sampler = Noting(saying_model(tokenizer, f"[THINK] one[/THINK] two{END}"), tokenizer)
    shown: list[str] = []
    said = iter(["red", "blue", ""])
    chat(sampler, GREEDY, "", lambda prompt: next(said), shown.append)
    assert "".join(shown).count("[THINK] one[/THINK] two\n") == 2
    assert "assistant<two|>" in sampler.asked  # a model is given its earlier answers without their reasoning


def test_prompts_of_a_template_are_sampled_as_they_are_rendered() -> None:
    tokenizer = words_tokenizer(*PLAIN)
    tokenizer.chat_template += "{% if add_generation_prompt %}<think>\n{% endif %}"
    (prompt,) = encode_prompts(tokenizer, [Conversation([{"role": "user", "content": "red"}])])
    ((sample,),) = Sampler(saying_model(tokenizer, f" one</think> two{END}"), tokenizer).generate([prompt], GREEDY)
    assert (sample.text, sample.reasoning) == ("two", "one")


class Answering(BaseHTTPRequestHandler):
    """A server of vLLM's dialect that gives one response."""

    choice: dict[str, Any]

    def do_POST(self) -> None:
        body = json.dumps({"choices": [self.choice]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize("marks", [PLAIN, SPECIAL])
def test_a_servers_response_is_told_apart_though_its_text_lacks_special_tokens(marks: tuple[str, str]) -> None:
    tokenizer = words_tokenizer(*PLAIN, special=SPECIAL)
    ids = tokenizer(f"{marks[0]} one{marks[1]} two{END}").input_ids
    text = tokenizer.decode(ids, skip_special_tokens=True)
    choice = {"finish_reason": "stop", "text": text, "token_ids": ids}
    choice["logprobs"] = {"token_logprobs": [-1.0] * len(ids)}
    handler = type("Own", (Answering,), {"choice": choice})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.handle_request).start()
        sampler = ServerSampler(f"http://127.0.0.1:{server.server_port}", "policy", tokenizer)
        ((sample,),) = sampler.generate([[1]], SamplingParams())
    assert (sample.text, sample.reasoning, sample.ended) == ("two", "one", True)


def test_a_server_that_loses_the_marks_is_refused() -> None:
    tokenizer = words_tokenizer(*PLAIN, special=SPECIAL)
    sampler = ServerSampler("http://127.0.0.1:9", "policy", tokenizer, "transformers")
    with pytest.raises(UsageError, match=r"\[THINK\]: transformers serve leaves special tokens out.*; use vllm"):
        sampler.generate([[1]], SamplingParams())
