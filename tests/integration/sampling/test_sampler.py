"""The sampler against `generate`, against fresh forwards and against itself in other company."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from byte_models import ARCHITECTURES, EOS, VOCABULARY, build, byte_tokenizer, prompts_of
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from posttrain.sample.engine.llama_step import llama_forward
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.structured.constraint import Bitmask
from posttrain.stage.errors import PosttrainError, UsageError

STORIES = Path(__file__).resolve().parents[3].parent / "shared" / "models" / "stories260k"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


def fresh_logprobs(model: PreTrainedModel, prompt: list[int], sample: Sample) -> torch.Tensor:
    ids = torch.tensor([prompt + sample.token_ids])
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
    return logits.log_softmax(-1)[torch.arange(len(sample.token_ids)), torch.tensor(sample.token_ids)]


def assert_fresh(model: PreTrainedModel, prompt: list[int], sample: Sample) -> None:
    expected = fresh_logprobs(model, prompt, sample)
    torch.testing.assert_close(torch.tensor(sample.logprobs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_gives_the_tokens_of_generate(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts = build(name), prompts_of(13)
    lengths = [5 + 7 * (number % 9) for number in range(len(prompts))]
    each = [SamplingParams(temperature=0, max_tokens=length) for length in lengths]
    samples = Sampler(model, tokenizer, max_batch_size=5).generate(prompts, each)
    for prompt, length, (sample,) in zip(prompts, lengths, samples, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False)[0, len(prompt) :]
        assert sample.token_ids == expected.tolist()
        assert sample.finish_reason == ("stop" if sample.token_ids[-1] == EOS else "length")
        assert_fresh(model, prompt, sample)


def test_the_plain_forward_serves_llama_like_models_that_nothing_wraps() -> None:
    served = {name: llama_forward(build(name)) is not None for name in ARCHITECTURES}
    assert [name for name, is_served in served.items() if is_served] == ["llama", "qwen2", "qwen3"]
    adapted = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj"]))
    assert llama_forward(adapted) is None
    assert llama_forward(adapted.get_base_model()) is None
    hooked = build("llama")
    hooked.model.layers[1].register_forward_pre_hook(lambda module, inputs: None)
    assert llama_forward(hooked) is None


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "knobs",
    [{}, {"temperature": 0.8, "top_k": 20, "top_p": 0.9}, {"min_p": 0.05, "repetition_penalty": 1.2}],
    ids=["plain", "truncated", "penalised"],
)
def test_a_request_gives_the_same_tokens_alone_and_in_a_batch(
    name: str, knobs: dict[str, Any], tokenizer: PreTrainedTokenizerFast
) -> None:
    model, prompts = build(name), prompts_of(32)
    each = [
        SamplingParams(**knobs, max_tokens=10 + number, num_samples=2, seed=number % 3)
        for number in range(len(prompts))
    ]
    together = Sampler(model, tokenizer, max_batch_size=64).generate(prompts, each)
    crowded = Sampler(model, tokenizer, max_batch_size=5).generate(prompts, each)
    alone = [Sampler(model, tokenizer).generate([ids], [one])[0] for ids, one in zip(prompts, each, strict=True)]
    tokens = [
        [[sample.token_ids for sample in samples] for samples in results] for results in (together, crowded, alone)
    ]
    assert tokens[0] == tokens[1] == tokens[2]
    assert len({tuple(ids) for samples in tokens[0] for ids in samples}) > 55  # a few end at once
    for prompt, samples in zip(prompts, together, strict=True):
        assert_fresh(model, prompt, samples[0])


def test_sampling_logprobs_are_of_the_distribution_drawn_from(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompt = build("llama"), prompts_of(1)[0]
    params = SamplingParams(temperature=0.7, top_k=10, logit_bias={5: 1.5}, max_tokens=20, seed=3)
    (sample,) = Sampler(model, tokenizer).generate([prompt], params)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt + sample.token_ids])).logits[0, len(prompt) - 1 : -1]
    logits[:, 5] += 1.5
    kept = (logits / 0.7).topk(10)
    for row, token in enumerate(sample.token_ids):
        place = kept.indices[row].tolist().index(token)
        expected = kept.values[row].log_softmax(-1)[place].item()
        assert sample.sampling_logprobs[row] == pytest.approx(expected, abs=1e-5)


def test_frequencies_of_the_engine(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompt = build("llama"), [5, 9, 9, 4]
    params = SamplingParams(
        temperature=2.0, top_p=0.9, repetition_penalty=1.5, logit_bias={7: -2.0}, max_tokens=1, num_samples=20_000
    )
    samples = Sampler(model, tokenizer, max_batch_size=4000).generate([prompt], params)[0]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[0, -1].double()
    for token in {*prompt}:
        logits[token] *= 1 / 1.5 if logits[token] > 0 else 1.5
    logits[7] -= 2.0
    weights, order = (logits / 2.0).softmax(-1).sort(descending=True)
    weights[weights.cumsum(-1) - weights >= 0.9] = 0
    exact = torch.zeros(VOCABULARY, dtype=torch.float64).scatter_(0, order, weights / weights.sum()).numpy()
    counts = np.bincount([sample.token_ids[0] for sample in samples], minlength=VOCABULARY)
    assert counts[exact == 0].sum() == 0
    often = exact * 20_000 >= 5
    observed = [*counts[often], counts[~often].sum()] if exact[~often].sum() else counts[often]
    expected = [*exact[often], exact[~often].sum()] if exact[~often].sum() else exact[often]
    assert chisquare(observed, np.array(expected) * 20_000).pvalue > 1e-3


def test_a_stop_text_is_found_across_tokens_and_cut_from_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompt = build("llama"), prompts_of(1)[0]
    plain = SamplingParams(max_tokens=60, seed=5)
    (whole,) = Sampler(model, tokenizer).generate([prompt], plain)[0]
    stop = whole.text[20:23]
    place = whole.text.index(stop)
    params = SamplingParams(max_tokens=60, seed=5, stop=("never there", stop))
    (cut,) = Sampler(model, tokenizer).generate([prompt], params)[0]
    assert (cut.text, cut.finish_reason) == (whole.text[:place], "stop")
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) == len(cut.logprobs) == len(cut.sampling_logprobs)
    assert tokenizer.decode(cut.token_ids).endswith(stop)
    stopped = SamplingParams(max_tokens=60, seed=5, stop_token_ids=(whole.token_ids[10],))
    (short,) = Sampler(model, tokenizer).generate([prompt], stopped)[0]
    assert short.token_ids == whole.token_ids[: whole.token_ids.index(whole.token_ids[10]) + 1]


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"no {STORIES}")
def test_a_stop_text_inside_tokens_of_a_trained_model() -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(STORIES), AutoTokenizer.from_pretrained(STORIES)
    prompt = tokenizer("Once upon a time").input_ids
    params = SamplingParams(temperature=0, max_tokens=80, stop=("irl named L", "."))
    (sample,) = Sampler(model, tokenizer).generate([prompt], params)[0]
    expected = tokenizer.decode(
        model.eval().generate(torch.tensor([prompt]), max_new_tokens=80, do_sample=False)[0, len(prompt) :]
    )
    assert "irl named L" in expected
    assert sample.text == expected[: expected.index("irl named L")]


def test_an_accepted_sample_cancels_its_siblings(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts = build("llama"), prompts_of(3)
    heard: list[tuple[int, list[int]]] = []

    def accept(prompt: int, sample: Sample) -> bool:
        heard.append((prompt, sample.token_ids))
        return prompt == 1

    params = SamplingParams(max_tokens=40, num_samples=6)
    samples = Sampler(model, tokenizer, max_batch_size=4).generate(prompts, params, accept=accept)
    assert [len(rows) for rows in samples] == [6, 6, 6]
    assert sorted(number for number, _ in heard) == [0] * 6 + [1] + [2] * 6
    assert [sample.finish_reason for sample in samples[1]].count("aborted") == 5
    assert "aborted" not in {sample.finish_reason for number in (0, 2) for sample in samples[number]}
    free = Sampler(model, tokenizer).generate(prompts, params)
    assert [sample.token_ids for sample in samples[2]] == [sample.token_ids for sample in free[2]]
    for sample, whole in zip(samples[1], free[1], strict=True):
        assert sample.token_ids == whole.token_ids[: len(sample.token_ids)]


def test_tokens_are_told_as_they_come(tokenizer: PreTrainedTokenizerFast) -> None:
    told: dict[tuple[int, int], list[int]] = {}
    samples = Sampler(build("gpt2"), tokenizer, max_batch_size=3).generate(
        prompts_of(3),
        SamplingParams(max_tokens=12, num_samples=2),
        on_token=lambda prompt, sample, token: told.setdefault((prompt, sample), []).append(token),
    )
    assert told == {(p, s): sample.token_ids for p, rows in enumerate(samples) for s, sample in enumerate(rows)}


class Pattern:
    """Allows odd tokens, of which it refuses one; after each it forces a run of even ones, shorter and shorter."""

    refused = 11

    def __init__(self, forcing: bool) -> None:
        self.forcing, self.run, self.pending, self.ended = forcing, 9, list[int](), False

    def fill(self, bitmask_W: Bitmask, tokens_left: int) -> None:
        bitmask_W[:] = 0
        for token in self.pending[:1] or range(3, VOCABULARY, 2):
            bitmask_W[token // 32] |= np.int32(np.uint32(1 << token % 32).view(np.int32))

    def advance(self, token: int) -> bool:
        if token == self.refused:
            return False
        if self.pending:
            assert token == self.pending.pop(0)
        else:
            assert token % 2 == 1
            self.pending, self.run = [4 + 2 * (token % 5 + n) for n in range(self.run)], self.run - 2
            self.ended = self.run < 0
        return True

    def forced(self) -> list[int]:
        return list(self.pending) if self.forcing else []


@pytest.mark.parametrize("name", ["llama", "gemma3_window"])
def test_forced_tokens_run_ahead_and_change_nothing(name: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts = build(name), prompts_of(6)
    params = SamplingParams(max_tokens=24, num_samples=2, top_p=0.95)
    ahead, step_by_step = (
        Sampler(model, tokenizer, max_batch_size=7).generate(
            prompts, params, constraints=[None, *[lambda forcing=forcing: Pattern(forcing)] * 5]
        )
        for forcing in (True, False)
    )
    for prompt, left, right in zip(prompts, ahead, step_by_step, strict=True):
        assert [sample.token_ids for sample in left] == [sample.token_ids for sample in right]
        for sample in left:
            assert_fresh(model, prompt, sample)
    for sample in (sample for samples in ahead[1:] for sample in samples):
        assert sample.token_ids[0] % 2 == 1
        assert sample.token_ids[1:10] == [4 + 2 * (sample.token_ids[0] % 5 + n) for n in range(9)]
        assert sample.sampling_logprobs[1:10] == [0.0] * 9
        assert Pattern.refused not in sample.token_ids
        assert sample.finish_reason == "length" or sample.token_ids[-1] % 2 == 1


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0])
def test_beam_search_finds_what_generate_finds(length_penalty: float, tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompts, ends = build("llama"), prompts_of(7), [EOS, *range(20, 30)]
    params = SamplingParams(
        temperature=0, num_beams=4, num_samples=3, max_tokens=12, length_penalty=length_penalty,
        stop_token_ids=tuple(ends),
    )  # fmt: skip
    found = Sampler(model, tokenizer, max_batch_size=9).generate(prompts, params)
    for prompt, samples in zip(prompts, found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=12,
            early_stopping="never",
            length_penalty=length_penalty,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=1,
        )[:, len(prompt) :]
        padded = [(sample.token_ids + [1] * 12)[: expected.shape[1]] for sample in samples]
        assert padded == expected.tolist()
        assert_fresh(model, prompt, samples[0])
    lengths = {len(sample.token_ids) for samples in found for sample in samples}
    assert len(lengths) > 1 or length_penalty == 2.0


def test_dropout_is_off_while_sampling_and_modes_are_kept(tokenizer: PreTrainedTokenizerFast) -> None:
    model = get_peft_model(build("llama"), LoraConfig(target_modules=["q_proj", "v_proj"], lora_dropout=0.5, r=4))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    prompts, params = prompts_of(4), SamplingParams(max_tokens=15)
    quiet = Sampler(model.eval(), tokenizer).generate(prompts, params)
    model.train()
    model.get_base_model().model.norm.eval()
    modes = [module.training for module in model.modules()]
    loud = Sampler(model, tokenizer).generate(prompts, params)
    assert [module.training for module in model.modules()] == modes
    assert [row[0].token_ids for row in loud] == [row[0].token_ids for row in quiet]
    for prompt, (sample,) in zip(prompts, loud, strict=True):
        assert_fresh(model.eval(), prompt, sample)


def test_changed_weights_are_seen(tokenizer: PreTrainedTokenizerFast) -> None:
    model, prompt = build("llama"), prompts_of(1)[0]
    sampler, params = Sampler(model, tokenizer), SamplingParams(max_tokens=10)
    sampler.generate([prompt], params)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.7)
    (sample,) = sampler.generate([prompt], params)[0]
    assert_fresh(model, prompt, sample)


def test_what_cannot_be_sampled_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    sampler = Sampler(build("llama"), tokenizer)
    with pytest.raises(UsageError, match="prompt 1: no tokens"):
        sampler.generate([[3], []], SamplingParams(max_tokens=1))
    with pytest.raises(UsageError, match="prompt 0: 100 tokens and max_tokens=29 exceed the model's context of 128"):
        sampler.generate([[3] * 100], SamplingParams(max_tokens=29))
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1))
    with pytest.raises(UsageError, match="mamba: a forward that takes no cache of keys and values"):
        Sampler(mamba, tokenizer).generate([[3]], SamplingParams(max_tokens=1))
    assert sampler.generate([], SamplingParams()) == []
    for token in (-1, VOCABULARY):
        with pytest.raises(UsageError, match=f"logit_bias of token {token}: the model has tokens 0 to 96"):
            sampler.generate([[3]], SamplingParams(logit_bias={token: 1.0}, max_tokens=1))
    for bias in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match="logit_bias of token 5: must be a number"):
            SamplingParams(logit_bias={5: bias})


def test_broken_weights_end_in_one_line(tokenizer: PreTrainedTokenizerFast) -> None:
    model = build("llama")
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    for knobs in ({"temperature": 0.0}, {}, {"top_p": 0.9}, {"top_k": 5}, {"min_p": 0.1}):
        with pytest.raises(PosttrainError, match="prompt 0: the model's logits are not finite after 0 tokens"):
            Sampler(model, tokenizer).generate([[3]], SamplingParams(max_tokens=4, **knobs))
