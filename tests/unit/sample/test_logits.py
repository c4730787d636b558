"""The knobs and the draw: sampled frequencies against exact probabilities, which transformers' processors give."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from posttrain.sample.engine.logits import (
    add_bias,
    choose,
    draw,
    knobs_of,
    largest,
    log_probabilities,
    penalise_repeats,
)
from posttrain.sample.engine.uniforms import BLOCK, redraw_uniforms, sample_key, uniforms
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import UsageError

DRAWS = 20_000
BATCH = 500
CPU = torch.device("cpu")

KNOBS = [
    SamplingParams(),
    SamplingParams(temperature=0.6),
    SamplingParams(temperature=1.7),
    SamplingParams(top_k=7),
    SamplingParams(top_p=0.8),
    SamplingParams(min_p=0.1),
    SamplingParams(temperature=0.8, top_k=30, top_p=0.9),
    SamplingParams(temperature=1.3, top_p=0.95, min_p=0.05),
    SamplingParams(temperature=0.7, top_k=40, top_p=0.97, min_p=0.02),
]
VOCABULARIES = [50, 300, 1500]
"""Smaller than the first prefilter, larger than it, and larger than the second."""


def logits_of(vocabulary: int) -> Tensor:
    return torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * 1.5


def reference(logits_1V: Tensor, params: SamplingParams) -> Tensor:
    """The exact distribution, by transformers' processors in transformers' order."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    return warpers(torch.zeros(1, 1, dtype=torch.int64), logits_1V.clone()).double().softmax(-1)[0]


def many_uniforms(rows: int, seed: int = 0) -> Tensor:
    blocks = [uniforms(sample_key(seed, [1, 2], 0), block) for block in range(-(-rows // BLOCK))]
    return torch.from_numpy(np.concatenate(blocks)[:rows])


def assert_drawn_from(tokens: Tensor, probabilities_V: Tensor) -> None:
    """Chi-square over the tokens that are expected five times at least, the others as one."""
    counts = np.bincount(tokens.numpy(), minlength=len(probabilities_V))
    exact = probabilities_V.numpy()
    assert counts[exact == 0].sum() == 0
    often = exact * len(tokens) >= 5
    observed, expected = [*counts[often]], [*(exact[often] * len(tokens))]
    if rest := exact[~often].sum() * len(tokens):
        observed.append(counts[~often].sum())
        expected.append(rest)
    expected_counts = np.array(expected) * sum(observed) / sum(expected)
    assert chisquare(observed, expected_counts).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("params", KNOBS, ids=str)
def test_frequencies_match_exact_probabilities(params: SamplingParams, vocabulary: int) -> None:
    logits_1V = logits_of(vocabulary)
    knobs = knobs_of([params] * BATCH, vocabulary, CPU)
    batches = [choose(logits_1V.expand(BATCH, -1), knobs, part) for part in many_uniforms(DRAWS).split(BATCH)]
    tokens, logprobs = (torch.cat(parts) for parts in zip(*batches, strict=True))
    exact = reference(logits_1V, params)
    assert_drawn_from(tokens, exact)
    torch.testing.assert_close(logprobs.double(), exact[tokens].log(), atol=2e-6, rtol=2e-6)


def test_penalty_and_bias_shift_the_distribution_that_is_drawn_from() -> None:
    logits_1V, seen = logits_of(50), torch.zeros(1, 50, dtype=torch.bool)
    seen[0, [3, 7, 20]] = True
    processed = penalise_repeats(logits_1V, seen, torch.tensor([[1.4]]))
    torch.testing.assert_close(
        processed, RepetitionPenaltyLogitsProcessor(1.4)(torch.tensor([[3, 7, 20, 7]]), logits_1V.clone())
    )
    add_bias(processed, [{5: 2.0, 3: -1.0}])
    expected = logits_1V.clone()
    for token in (3, 7, 20):
        expected[0, token] *= 1 / 1.4 if expected[0, token] > 0 else 1.4
    expected[0, 5] += 2.0
    expected[0, 3] -= 1.0
    torch.testing.assert_close(processed, expected)
    tokens, _ = choose(processed.expand(DRAWS, -1), knobs_of([SamplingParams()] * DRAWS, 50, CPU), many_uniforms(DRAWS))
    assert_drawn_from(tokens, expected[0].double().softmax(-1))


def test_rows_of_a_mixed_batch_follow_their_own_knobs() -> None:
    each = [*KNOBS, SamplingParams(temperature=0)]
    logits_1V, count = logits_of(300), 2000
    rows = [params for params in each for _ in range(count)]
    tokens, logprobs = choose(
        logits_1V.expand(len(rows), -1), knobs_of(rows, 300, CPU), many_uniforms(len(rows), seed=4)
    )
    for number, params in enumerate(KNOBS):
        assert_drawn_from(tokens[number * count : (number + 1) * count], reference(logits_1V, params))
    assert set(tokens[-count:].tolist()) == {int(logits_1V.argmax())}
    assert set(logprobs[-count:].tolist()) == {0.0}


def unequal_knobs(random: np.random.Generator) -> SamplingParams:
    """Knobs of which each is turned, or not, by chance."""
    return SamplingParams(
        temperature=float(random.choice([0.0, 0.7, 1.0, 1.8])),
        top_k=int(random.choice([0, 0, 1, 7, 63, 64, 65, 400, 5000])),
        top_p=float(random.choice([0.2, 0.9, 0.999, 1.0, 1.0])),
        min_p=float(random.choice([0.0, 0.0, 0.05])),
    )


@pytest.mark.parametrize("spacing", [0.0, 0.25], ids=["continuous", "ties"])
def test_a_row_draws_by_its_own_knobs_whatever_stands_beside_it(spacing: float) -> None:
    random = np.random.default_rng(7)
    for vocabulary in [*VOCABULARIES, 9000] * 15:
        rows = [unequal_knobs(random) for _ in range(random.integers(2, 9))]
        logits = torch.from_numpy(random.normal(0, random.choice([1.0, 4.0]), (len(rows), vocabulary))).float()
        logits = (logits / spacing).round() * spacing if spacing else logits
        drawn = torch.from_numpy(random.random((len(rows), 2)))
        tokens, logprobs = choose(logits, knobs_of(rows, vocabulary, CPU), drawn)
        for row, params in enumerate(rows):
            own = slice(row, row + 1)
            (token,), (logprob,) = choose(logits[own], knobs_of([params], vocabulary, CPU), drawn[own])
            assert tokens[row] == token, params
            assert logprobs[row] == pytest.approx(logprob.item(), abs=1e-5)


def test_a_nucleus_among_the_top_k_is_of_their_mass_in_any_company() -> None:
    logits_1V = logits_of(1500) / 8
    rows = [SamplingParams(top_k=400, top_p=0.9), SamplingParams(top_p=0.9)] * BATCH
    tokens, _ = choose(logits_1V.expand(len(rows), -1), knobs_of(rows, 1500, CPU), many_uniforms(len(rows)))
    exact = reference(logits_1V, rows[0])
    assert len(set(tokens[::2].tolist())) > 200
    assert (exact[tokens[::2]] > 0).all()


def test_of_equal_logits_the_first_tokens_are_the_most_likely() -> None:
    logits = torch.zeros(300, 3000)
    for params, kept in [
        (SamplingParams(top_k=5), 5),
        (SamplingParams(top_p=0.0009), 3),
        (SamplingParams(top_k=1), 1),
    ]:
        tokens, logprobs = choose(logits, knobs_of([params] * 300, 3000, CPU), many_uniforms(300))
        assert set(tokens.tolist()) == set(range(kept))
        assert logprobs[0].item() == pytest.approx(-math.log(kept), abs=1e-6)


def test_a_token_of_no_weight_is_never_drawn() -> None:
    weights = torch.zeros(4, 100)
    weights[:, 37] = 1e-30
    weights[1, 99] = 1e-30
    extremes = torch.tensor([[0.0, 0.0], [1 - 2**-53, 1 - 2**-53], [1 - 2**-53, 0.0], [0.5, 0.5]], dtype=torch.float64)
    tokens, mass = draw(weights, extremes)
    assert tokens.tolist() == [37, 99, 37, 37]
    torch.testing.assert_close(mass, torch.tensor([1e-30, 2e-30, 1e-30, 1e-30]))


def test_a_nucleus_holds_the_fewest_tokens_with_its_mass() -> None:
    # 0.5 + 0.3 reach 0.75, so two tokens stay, at 0.5 / 0.8 and 0.3 / 0.8
    logits = torch.tensor([[0.3, 0.5, 0.15, 0.05]]).log().expand(DRAWS, -1)
    tokens, logprobs = choose(logits, knobs_of([SamplingParams(top_p=0.75)] * DRAWS, 4, CPU), many_uniforms(DRAWS))
    assert set(tokens.tolist()) == {0, 1}
    assert tokens.float().mean().item() == pytest.approx(0.625, abs=0.015)
    assert logprobs[tokens == 0][0].item() == pytest.approx(math.log(0.375), abs=1e-6)


@pytest.mark.parametrize(("vocabulary", "count"), [(50, 50), (1000, 1), (1003, 17), (32_000, 64), (32_000, 1024)])
def test_the_largest_are_those_of_topk(vocabulary: int, count: int) -> None:
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(1))
    values, tokens = largest(logits, count)
    expected = logits.topk(count)
    assert torch.equal(values, expected.values)
    assert torch.equal(logits.gather(1, tokens), values)
    assert all(len(set(row)) == count for row in tokens.tolist())


def test_log_probabilities_are_those_of_log_softmax() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(2)) * 8 + 300
    tokens = torch.tensor([0, 999, 3, 500, 77])
    expected = logits.double().log_softmax(-1)[torch.arange(5), tokens]
    torch.testing.assert_close(log_probabilities(logits, tokens).double(), expected, atol=1e-5, rtol=1e-6)


def test_each_row_gets_its_own_bias() -> None:
    logits = torch.ones(3, 4)
    add_bias(logits, [{0: 2.0, 3: -1.0}, {}, {0: -4.0}])
    assert logits.tolist() == [[3, 1, 1, 0], [1, 1, 1, 1], [-3, 1, 1, 1]]


def test_uniforms_depend_on_the_request_alone() -> None:
    keys = [sample_key(0, [1, 2], 0), sample_key(1, [1, 2], 0), sample_key(0, [1, 3], 0), sample_key(0, [1, 2], 1)]
    assert np.array_equal(uniforms(keys[0], 7), uniforms(sample_key(0, [1, 2], 0), 7))
    drawn = [tuple(pair) for key in keys for block in (0, 1) for pair in uniforms(key, block)]
    drawn += [tuple(redraw_uniforms(keys[0], position, attempt)) for position in (0, 1) for attempt in (1, 2)]
    assert len(set(drawn)) == 4 * 2 * BLOCK + 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"top_p": 0.0}, r"top_p=0.0: must be in \(0, 1\]"),
        ({"temperature": -1.0}, "temperature=-1.0: must be at least 0"),
        ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
        ({"stop": ("",)}, "stop: an empty text"),
        ({"num_beams": 2}, "num_beams=2: beam search follows the model alone; set temperature=0"),
        ({"num_beams": 2, "temperature": 0.0, "num_samples": 3}, "num_samples=3: 2 beams give no more"),
    ],
)
def test_parameters_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SamplingParams(**values)  # type: ignore[arg-type]
