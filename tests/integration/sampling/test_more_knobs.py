"""Penalties of repeats, least lengths, and the most likely tokens of each place, by the real sampler."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from byte_models import VOCABULARY, build, byte_tokenizer
from saying_model import saying_model, words_tokenizer

from posttrain.sample.engine.ending import Ending
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.grammar import choice_grammar
from posttrain.stage.errors import UsageError

PROMPT = [5, 9, 40, 41]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(build("llama").double(), byte_tokenizer())


def logits_after(sampler: Sampler, tokens: list[int]) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = sampler.model(torch.tensor([[*PROMPT, *tokens]])).logits[0, -1]
    return logits


def test_each_token_is_the_best_after_penalties_of_the_samples_own_tokens(sampler: Sampler) -> None:
    plain = SamplingParams(max_tokens=24, temperature=0, min_tokens=24)
    params = dataclasses.replace(plain, presence_penalty=0.05, frequency_penalty=0.15)
    others = [plain, dataclasses.replace(params, frequency_penalty=-0.5)]
    sample, repeating, held = (own[0] for own in sampler.generate([PROMPT] * 3, [params, *others]))
    for place, token in enumerate(sample.token_ids):
        logits = logits_after(sampler, sample.token_ids[:place])
        for seen in set(sample.token_ids[:place]):
            logits[seen] -= 0.05 + 0.15 * sample.token_ids[:place].count(seen)
        logits[sorted(sampler.ends)] = -torch.inf
        assert int(logits.argmax()) == token
    assert sample.token_ids != repeating.token_ids and len(set(held.token_ids)) <= len(set(repeating.token_ids))


def test_nothing_ends_a_sample_before_its_least_length(sampler: Sampler) -> None:
    free = SamplingParams(max_tokens=12, stop_token_ids=tuple(range(20, VOCABULARY)), num_samples=8, seed=1)
    assert min(len(sample.token_ids) for sample in sampler.generate([PROMPT], free)[0]) < 6
    for sample in sampler.generate([PROMPT, PROMPT[:2]], [dataclasses.replace(free, min_tokens=6), free])[0]:
        assert len(sample.token_ids) > 6 and not set(sample.token_ids[:6]) & set(range(20, VOCABULARY))
        assert not set(sample.token_ids[:6]) & sampler.ends


def test_an_early_stop_text_is_text_like_any_other() -> None:
    tokenizer = words_tokenizer()
    tokens = tokenizer("red blue red green blue").input_ids
    ends = frozenset({tokenizer.eos_token_id})
    blue = tokenizer(" blue").input_ids
    first = len(tokenizer("red blue").input_ids)
    assert len(blue) == 1 and Ending(tokenizer, ends, ["blue"]).text(tokens) == "red "
    late = Ending(tokenizer, ends, ["blue"], min_tokens=first)
    assert late.text(tokens) == late.said([], tokens)["text"] == "red blue red green "
    reached = [count for count in range(1, len(tokens) + 1) if late.reached(tokens[:count])]
    assert reached == [len(tokens)]


def test_the_most_likely_tokens_are_those_of_a_fresh_forward(sampler: Sampler) -> None:
    params = SamplingParams(max_tokens=5, seed=2, top_logprobs=3, min_tokens=5)
    one, other = sampler.generate([PROMPT, PROMPT[:3]], [params, dataclasses.replace(params, top_logprobs=0)])
    assert other[0].top_tokens == [] and len(one[0].top_tokens) == len(one[0].token_ids) == 5
    for place in range(5):
        logprobs = logits_after(sampler, one[0].token_ids[:place]).log_softmax(-1)
        values, ids = logprobs.topk(3)
        assert one[0].top_tokens[place] == ids.tolist()
        assert one[0].top_logprobs[place] == pytest.approx(values.tolist(), abs=1e-5)


def test_forced_tokens_have_their_most_likely_too() -> None:
    tokenizer = words_tokenizer()
    sampler = Sampler(saying_model(tokenizer, "red<|im_end|>"), tokenizer)
    grammar = choice_grammar(Vocabulary.of(tokenizer, sampler.ends), ["green one two three"])
    params = SamplingParams(max_tokens=30, top_logprobs=2)
    prompt = tokenizer("<|im_start|>user\nred<|im_end|>\n<|im_start|>assistant\n").input_ids
    ((sample,),) = sampler.generate([prompt], params, constraints=[grammar])
    assert sample.text == "green one two three"
    assert [len(ids) for ids in sample.top_tokens] == [2] * len(sample.token_ids)
    assert len(sample.top_logprobs) == len(sample.token_ids)
    with pytest.raises(UsageError, match="min_tokens=2: a grammar says where it may end"):
        sampler.generate([prompt], dataclasses.replace(params, min_tokens=2), constraints=[grammar])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"presence_penalty": 3.0}, "presence_penalty=3.0: must be in"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty=nan: must be in"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens=9: must be in"),
        ({"top_logprobs": -1}, "top_logprobs=-1: must be at least 0"),
        ({"num_beams": 2, "temperature": 0.0, "min_tokens": 1}, "num_beams=2: beam search follows the model alone"),
        ({"num_beams": 2, "temperature": 0.0, "top_logprobs": 1}, "num_beams=2: beam search follows the model alone"),
    ],
)
def test_values_out_of_range_are_refused(knobs: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**knobs)  # type: ignore[arg-type]
