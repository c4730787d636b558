"""A conversation at the terminal, and responses as people read them."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable

from tokenizers.decoders import DecodeStream

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.reasoning import hidden_tokens
from posttrain.data.messages import Conversation, Json
from posttrain.sample.asking.citing import Citation
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.stage.errors import UsageError

RESET = "/reset"
_CUT = "the reasoning did not end; raise max_tokens"


def with_system(messages: list[Json], system: str) -> Conversation:
    """Return a conversation that begins with a system message, if there is one."""
    return Conversation([{"role": "system", "content": system}, *messages] if system else messages)


def readable(sample: Sample) -> str:
    """Return a response for people to read, its reasoning set apart from the answer."""
    if not sample.reasoning and sample.answered:
        return sample.text
    head = f"[reasoning: {len(sample.reasoning.split())} words]\n{sample.reasoning}"
    return f"{head}\n\n[answer]\n{sample.text}" if sample.answered else f"{head}\n\n[no answer: {_CUT}]"


def chat(
    sampler: Sampler,
    params: SamplingParams,
    system: str,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Talk until the input ends; responses appear token by token, unless a stop text could have to be taken back."""
    write(f"Say something; {RESET} forgets the conversation, an empty line ends it.\n")
    conversation: list[Json] = []
    for turn in itertools.count():
        try:
            said = read("> ").strip()
        except EOFError:
            said = ""
        if not said:
            return
        if said == RESET:
            conversation = []
            continue
        asked = [*conversation, {"role": "user", "content": said}]
        own = dataclasses.replace(params, seed=derived_seed(params.seed, f"turn {turn}"))
        try:
            answer = _stream(sampler, own, with_system(asked, system), write)
        except UsageError as error:
            write(f"({error}; {RESET} makes room)\n")
            continue
        conversation = [*asked, answer]


def _stream(
    sampler: Sampler, params: SamplingParams, conversation: Conversation, write: Callable[[str], object]
) -> Json:
    """Write a response as it comes, and return it as a message."""
    decoder, tokenizer = DecodeStream(skip_special_tokens=False), sampler.tokenizer.backend_tokenizer
    hidden = hidden_tokens(sampler.tokenizer) | sampler.ending(params).tokens
    shown: list[str] = []

    def show(prompt: int, number: int, token: int) -> None:
        if token not in hidden:
            shown.append(decoder.step(tokenizer, token) or "")
            write(shown[-1])
            sys.stdout.flush()

    ids = encode_prompts(sampler.tokenizer, [conversation])
    ((sample,),) = sampler.generate(ids, params, on_token=None if params.stop else show)
    rest = sample.response.removeprefix("".join(shown))  # all of it, or the half of a character that was held back
    write(f"{rest}\n" if sample.answered else f"{rest}\n(no answer: {_CUT})\n")
    message: Json = {"role": "assistant", "content": sample.text or " "}
    return message | ({"reasoning_content": sample.reasoning} if sample.reasoning and sample.answered else {})


def citations(sample: Sample, citation: Citation) -> str:
    """Return an answer with the places of its quotes below it, or that it is withheld and why."""
    if not citation.holds:
        return f"(withheld: {citation.reason if sample.answered else _CUT})"
    places = [
        f'  "{quote}": passage {support.passage + 1}, characters {support.start + 1} to {support.end}'
        for quote, supports in citation.supported.items()
        for support in supports
    ]
    return "\n".join([readable(sample), *places])


def outcome(told: Json) -> str:
    """Return how one of several samples was come by, as a line; empty where there was no choice."""
    if "choice" in told:
        choice = told["choice"]
        score = "no score" if choice["score"] is None else f"{choice['score']:.3f}"
        place = f"sample {choice['index'] + 1} of {choice['samples']}"
        return f"({place}, {choice['by']} {score}, {choice['tokens']} tokens in all)"
    if "attempt" in told:
        attempt = told["attempt"]
        what = "valid" if attempt["valid"] else "no valid response"
        return f"({what} after {attempt['samples']} samples, {attempt['tokens']} tokens in all)"
    return ""
