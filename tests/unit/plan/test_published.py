"""Sizes of published models against the figures that their makers gave; sources stand beside the numbers."""

import pytest

from posttrain.plan.families import FAMILIES
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.model import count_active, count_multiplied, count_parameters, kv_bytes_per_token

GIB = 1 << 30

TOTAL = [  # model, billions of parameters, where that is said
    ("meta-llama/Llama-2-13b-hf", 13.016, "safetensors index of the model page"),
    ("meta-llama/Llama-2-70b-hf", 68.977, "safetensors index of the model page"),
    ("meta-llama/Llama-3.2-1B", 1.236, "model card: 1.23 B"),
    ("meta-llama/Llama-3.2-3B", 3.213, "model card: 3.21 B"),
    ("meta-llama/Llama-3.1-405B", 405.85, "model page: 406 B"),
    ("meta-llama/Llama-4-Scout-17B-16E", 107.8, "model card: 109 B with the vision tower of 0.9 B"),
    ("meta-llama/Llama-4-Maverick-17B-128E", 400.7, "model card: 400 B"),
    ("Qwen/Qwen2.5-7B", 7.616, "model card: 7.61 B"),
    ("Qwen/Qwen2.5-72B", 72.71, "model card: 72.7 B"),
    ("Qwen/Qwen3-8B", 8.19, "model card: 8.2 B"),
    ("Qwen/Qwen3-32B", 32.76, "model card: 32.8 B"),
    ("Qwen/Qwen3-30B-A3B", 30.53, "model card: 30.5 B"),
    ("Qwen/Qwen3-235B-A22B", 235.1, "model card: 235 B"),
    ("Qwen/Qwen3-Next-80B-A3B-Instruct", 79.67, "model card: 80 B"),
    ("google/gemma-2-2b", 2.614, "model page: 2.61 B"),
    ("google/gemma-2-9b", 9.242, "model page: 9.24 B"),
    ("google/gemma-2-27b", 27.23, "model page: 27.2 B"),
    ("google/gemma-3-1b-pt", 1.0, "technical report, table 1: 302 M + 698 M"),
    ("google/gemma-3-4b-pt", 3.884, "technical report, table 1: 675 M + 3,209 M"),
    ("google/gemma-3-12b-pt", 11.77, "technical report, table 1: 1,012 M + 10,759 M"),
    ("google/gemma-3-27b-pt", 27.0, "technical report, table 1: 1,416 M + 25,600 M"),
    ("mistralai/Mistral-7B-v0.1", 7.242, "model page: 7.24 B"),
    ("mistralai/Mixtral-8x7B-v0.1", 46.7, "Mixtral of Experts, sec. 2: 47 B; announcement: 46.7 B"),
    ("mistralai/Mixtral-8x22B-v0.1", 140.6, "announcement: 141 B"),
    ("microsoft/Phi-3-mini-4k-instruct", 3.82, "model card: 3.8 B"),
    ("microsoft/phi-4", 14.66, "model page: 14.7 B"),
    ("allenai/OLMo-2-1124-7B", 7.299, "model page: 7.3 B"),
    ("allenai/OLMo-2-0325-32B", 32.23, "model page: 32.2 B"),
    ("openai/gpt-oss-20b", 20.91, "model card, table 1: 20.91 B"),
    ("openai/gpt-oss-120b", 116.83, "model card, table 1: 116.83 B"),
    ("deepseek-ai/DeepSeek-V3", 671.0, "technical report, sec. 4.2: 671 B"),
    ("ibm-granite/granite-3.1-8b-instruct", 8.17, "model page: 8.17 B"),
    ("HuggingFaceTB/SmolLM3-3B", 3.08, "model page: 3.08 B"),
    ("tiiuae/Falcon-H1-0.5B-Base", 0.521, "model page: 0.5 B, 521 M"),
    ("tiiuae/Falcon-H1-7B-Base", 7.59, "model page: 7.59 B"),
    ("state-spaces/mamba2-2.7b", 2.7, "name of the model"),
    ("mistralai/Mamba-Codestral-7B-v0.1", 7.285, "announcement: 7,285,403,648"),
]

ACTIVE = [
    ("mistralai/Mixtral-8x7B-v0.1", 12.9, "announcement: 12.9 B"),
    ("mistralai/Mixtral-8x22B-v0.1", 39.0, "announcement: 39 B"),
    ("meta-llama/Llama-4-Scout-17B-16E", 17.17, "model card: 17 B"),
    ("Qwen/Qwen3-235B-A22B", 22.2, "model card: 22 B"),
    ("Qwen/Qwen3-30B-A3B", 3.35, "technical report: 3 B"),
]

KV_TOKENS = [  # model, GPUs that share the heads, GiB for the cache, tokens that fit
    ("meta-llama/Llama-3.1-8B", 1, 3.81, 31_232, "vLLM, log of the start"),
    ("Qwen/Qwen3-235B-A22B", 4, 8.11, 178_880, "vLLM, log of the start, tensor parallelism of 4"),
]


@pytest.mark.parametrize(("name", "billions", "source"), TOTAL)
def test_total_parameters(name: str, billions: float, source: str) -> None:
    assert count_parameters(KNOWN_SHAPES[name]) == pytest.approx(billions * 1e9, rel=0.01), source


@pytest.mark.parametrize(("name", "billions", "source"), ACTIVE)
def test_active_parameters(name: str, billions: float, source: str) -> None:
    assert count_active(KNOWN_SHAPES[name]) == pytest.approx(billions * 1e9, rel=0.01), source


@pytest.mark.parametrize(("name", "billions"), [("openai/gpt-oss-20b", 3.61), ("openai/gpt-oss-120b", 5.13)])
def test_active_parameters_of_gpt_oss_leave_the_embedding_out(name: str, billions: float) -> None:
    """Model card, table 1, whose footnote counts the unembedding alone."""
    assert count_multiplied(KNOWN_SHAPES[name]) == pytest.approx(billions * 1e9, rel=0.01)


def test_deepseek_v3_counts_its_embedding_once_in_37_billion() -> None:
    """Technical report, sec. 4.2: 37 B activated; both embeddings are in our 37.55 B."""
    shape = KNOWN_SHAPES["deepseek-ai/DeepSeek-V3"]
    assert count_multiplied(shape) == pytest.approx(37e9, abs=0.5e9)
    assert count_active(shape) == 37_552_282_624
    assert kv_bytes_per_token(shape) == 70_272  # 61 · (512 + 64) · 2


@pytest.mark.parametrize(("name", "gpus", "gib", "tokens", "source"), KV_TOKENS)
def test_tokens_that_a_cache_holds(name: str, gpus: int, gib: float, tokens: int, source: str) -> None:
    held = gib * GIB / kv_bytes_per_token(KNOWN_SHAPES[name], cards=gpus)
    assert held == pytest.approx(tokens, rel=0.02), source


def test_llama_3_weighs_what_torchtune_and_vllm_say() -> None:
    assert 2 * count_parameters(KNOWN_SHAPES["meta-llama/Meta-Llama-3-8B"]) / GIB == pytest.approx(14.957, rel=1e-3)


def test_every_known_model_has_a_shape_and_every_family_a_model() -> None:
    shapes = {name: KNOWN_SHAPES[name] for name in KNOWN_SHAPES}
    assert len(shapes) == len(KNOWN_SHAPES)
    assert all(count_parameters(shape) >= count_active(shape) > 0 for shape in shapes.values())
    from posttrain.plan import known

    named = {family.removesuffix(" tied") for family in known._DENSE} | {row[0] for row in known._OTHERS.values()}
    assert named == set(FAMILIES)
    with pytest.raises(KeyError):
        KNOWN_SHAPES["nobody/nothing"]
