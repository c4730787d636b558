"""Training's cost against what papers report: FLOPs, hours, utilisation, activations, the best size for a budget."""

import pytest

from posttrain.plan.cards import CARDS
from posttrain.plan.config.questions import PretrainQuestion
from posttrain.plan.figure import Figure
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.megatron import card_hours, megatron_activation_bytes, utilisation
from posttrain.plan.memory import state_bytes
from posttrain.plan.model import ModelShape, count_active, training_flops_per_token
from posttrain.plan.pretraining import LAWS, cheapest_in_life, pretraining_figures
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build

A100, H100 = CARDS["a100"].flops, CARDS["h100"].flops
LLAMA_3_8B = KNOWN_SHAPES["meta-llama/Meta-Llama-3-8B"]


def _figures(shape: ModelShape | None = None, **knobs: object) -> dict[str, Figure]:
    asked = build(PretrainQuestion, {"card": "h100", **knobs}, "")
    return {item.name: item for item in pretraining_figures(asked, shape, CARDS[asked.card])}


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_states_of_zero_figure_1(stage: int, gigabytes: float) -> None:
    """Rajbhandari et al. 2020, fig. 1: 7.5 B parameters on 64 cards."""
    states = sum(state_bytes(7_500_000_000, "bfloat16", 64, stage))
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.02 if stage == 3 else 0.01)  # 1.875, printed as 1.9


@pytest.mark.parametrize(("context", "gib"), [(1, 4.25), (4, 17), (16, 68), (64, 272), (128, 544)])
def test_activations_of_llama_3_by_korthikanti(context: int, gib: float) -> None:
    """34 bytes per feature, layer and token, scores never kept."""
    tokens = context * 1024
    assert megatron_activation_bytes(LLAMA_3_8B, tokens, tokens) == gib * (1 << 30)


def test_scores_that_korthikanti_saves() -> None:
    """Korthikanti et al. 2022, sec. 5: 5 a s / h is 80 for GPT-3 and 64 for MT-NLG, beside the 34 that stay."""
    for hidden, heads, share in ((12288, 96, 80), (20480, 128, 64)):
        shape = ModelShape(51200, hidden, 4 * hidden, 96, heads, heads, hidden // heads)
        kinds = [megatron_activation_bytes(shape, 2048, 2048, kind) for kind in ("none", "selective", "full")]  # type: ignore[arg-type]
        assert kinds[0] / kinds[1] == pytest.approx((34 + share) / 34)
        assert kinds[1] / kinds[2] == 17
    assert megatron_activation_bytes(shape, 2048, 2048, "none", 8) == kinds[0] / 8


def test_flops_of_llama_3_405b() -> None:
    """Grattafiori et al. 2024, sec. 1: 3.8e25 on 15.6 T tokens, without attention."""
    figures = _figures(parameters=count_active(KNOWN_SHAPES["meta-llama/Llama-3.1-405B"]), tokens=15.6e12)
    assert figures["FLOPs"].value == pytest.approx(3.8e25, rel=0.01)


def test_mfu_of_palm() -> None:
    """Chowdhery et al. 2022, app. B: 238.3 k tokens/s on 6144 TPU v4 is 46.2 %, the whole square counted."""
    per_token = 6 * 540.35e9 + 12 * 118 * 48 * 256 * 2048
    assert utilisation(238.3e3, per_token, 6144 * CARDS["tpu-v4"].flops) == pytest.approx(0.462, rel=0.002)


@pytest.mark.parametrize(("causal", "share"), [(False, 0.337), (True, 0.300)])
def test_mfu_of_llama_3_8b_on_eight_h100(causal: bool, share: float) -> None:
    """torchtitan with FSDP2: 5,762 tokens/s a card at a context of 8,192."""
    flops = training_flops_per_token(LLAMA_3_8B, 8192, causal=causal)
    assert utilisation(5762, flops, H100) == pytest.approx(share, rel=0.005)


@pytest.mark.parametrize(
    ("parameters", "trillions", "hours"),
    [(6.7e9, 1.0, 82_432), (13e9, 1.0, 135_168), (32.5e9, 1.4, 530_432), (65.2e9, 1.4, 1_022_362)],
)
def test_hours_of_llama_1(parameters: float, trillions: float, hours: float) -> None:
    """Touvron et al. 2023, table 15, at the 380 tokens/s a card that sec. 2.4 gives for 65 B."""
    mfu = utilisation(380, 6 * 65.2e9, A100)
    assert card_hours(6 * parameters * trillions * 1e12, A100, mfu) == pytest.approx(hours, rel=0.15)


def test_hours_of_deepseek_v3() -> None:
    """Technical report, table 1: 2.664 M H800 hours for 14.8 T tokens; at the MFU that is assumed."""
    shape = KNOWN_SHAPES["deepseek-ai/DeepSeek-V3"]
    assert _figures(shape, card="h800", tokens=14.8e12, model="DeepSeek-V3")["card-hours"].value == pytest.approx(
        2.664e6, rel=0.15
    )


def test_chinchilla_itself() -> None:
    """Hoffmann et al. 2022: 5.76e23 FLOPs, Gopher's, buy 70 B parameters on 1.4 T tokens."""
    figures = _figures(budget=5.76e23)
    assert figures["parameters, 20 tokens each"].value == pytest.approx(70e9, rel=0.02)
    assert figures["tokens, 20 a parameter"].value == pytest.approx(1.4e12, rel=0.02)


@pytest.mark.parametrize(("law", "ratio"), [("hoffmann_rounded", 92.6), ("hoffmann", 59.1), ("epoch", 18.4)])
def test_the_fitted_laws_differ_in_tokens_a_parameter(law: str, ratio: float) -> None:
    figures = _figures(budget=5.76e23, law=law)
    assert figures["tokens a parameter, fitted law"].value == pytest.approx(ratio, rel=0.002)
    spent = 6 * figures["parameters, fitted law"].value * figures["tokens, fitted law"].value
    assert spent == pytest.approx(5.76e23)


@pytest.mark.parametrize("name", LAWS)
def test_the_optimum_of_a_law_is_one(name: str) -> None:
    law = LAWS[name]
    parameters, tokens = law.optimum(1e22)
    least = law.loss(parameters, tokens)
    for factor in (0.8, 0.97, 1.03, 1.25):
        assert law.loss(parameters * factor, tokens / factor) > least


def test_a_model_that_is_used_a_lot_is_smaller_and_trains_longer() -> None:
    law = LAWS["epoch"]
    parameters, tokens = law.optimum(1e23)
    loss = law.loss(parameters, tokens)
    used = cheapest_in_life(law, loss, 5e12, parameters)
    assert used[0] < parameters and used[1] > tokens
    assert law.loss(*used) == pytest.approx(loss)
    unused = cheapest_in_life(law, loss, 0.0, parameters)
    assert unused[0] == pytest.approx(parameters, rel=0.01)
    figures = _figures(budget=1e23, inference_tokens=5e12)
    assert figures["FLOPs of a life, at least"].value < figures["FLOPs of a life, as planned"].value


def test_repeated_tokens_are_worth_less() -> None:
    figures = _figures(parameters=1e9, tokens=40e9, unique_tokens=10e9)
    worth = figures["tokens that repetition is worth"].value
    assert 0.9 * 40e9 < worth < 40e9  # up to four epochs cost next to nothing (Muennighoff et al. 2023)
    assert _figures(parameters=1e9, tokens=1e13, unique_tokens=10e9)[
        "tokens that repetition is worth"
    ].value == pytest.approx(10e9 * (1 + 15.39))
    assert "epochs" not in _figures(parameters=1e9, tokens=5e9, unique_tokens=10e9)


def test_a_question_has_one_size() -> None:
    with pytest.raises(UsageError, match=r"give exactly one of model, parameters and budget \(given: none\)"):
        build(PretrainQuestion, {}, "")
    with pytest.raises(UsageError, match="budget or tokens"):
        build(PretrainQuestion, {"budget": 1e20, "tokens": 1e9}, "")
