"""What a model needs to answer, against numbers written out."""

from typing import Any

import pytest

from posttrain.pipeline.cli import main
from posttrain.plan.cards import CARDS, Card
from posttrain.plan.config.questions import ModelQuestion
from posttrain.plan.figure import Figure
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.model import count_parameters, count_read, kv_bytes
from posttrain.plan.serving import longest_context, serving_figures
from posttrain.stage.schema import build

GIB = 1 << 30
LLAMA_2_13B = KNOWN_SHAPES["meta-llama/Llama-2-13b-hf"]
LLAMA_8B = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]
MIXTRAL = KNOWN_SHAPES["mistralai/Mixtral-8x7B-v0.1"]


def _figures(model: str, card: Card | None = None, **knobs: Any) -> dict[str, Figure]:
    asked = build(ModelQuestion, {"model": model, **knobs}, "")
    shape = KNOWN_SHAPES[model]
    return {item.name: item for item in serving_figures(shape, asked, card or CARDS[asked.card])}


def test_the_cache_of_a_batch() -> None:
    """32 sequences of 2,048 tokens of Llama-2-13B take 53,687,091,200 bytes."""
    assert 32 * kv_bytes(LLAMA_2_13B, 2048) == 53_687_091_200


def test_bandwidth_utilisation_of_a_7b_model() -> None:
    """Databricks 2023: 7 B in 16 bits at 100 tokens/s on 2 TB/s is 70 %."""
    card = Card("x", 1e15, 2e12, 80 * GIB, 1, 1)
    figures = _figures("meta-llama/Llama-2-7b-hf", card, throughput=100, context=1)
    assert figures["MBU of the throughput"].value == pytest.approx(0.7, rel=0.06)  # it has 6.7 B, less an embedding


def test_what_fits_beside_the_weights() -> None:
    figures = _figures("meta-llama/Llama-3.1-8B", context=8192, memory_share=0.9)
    room = 0.9 * 80 * GIB - 2 * count_parameters(LLAMA_8B)
    assert figures["memory for the cache"].value == pytest.approx(room)
    assert figures["largest batch"].value == room // (8192 * 131_072)
    assert figures["longest context"].value == room // 131_072


def test_a_model_that_does_not_fit_has_no_batch() -> None:
    figures = _figures("meta-llama/Llama-3.1-70B")
    assert figures["memory for the cache"].value < 0
    assert (figures["largest batch"].value, figures["longest context"].value) == (0, 0)
    assert _figures("meta-llama/Llama-3.1-70B", cards=4)["largest batch"].value > 0


def test_the_longest_context_of_windows_and_recurrences() -> None:
    gemma = KNOWN_SHAPES["google/gemma-3-1b-pt"]
    longest = longest_context(gemma, 1e9, 2)
    assert kv_bytes(gemma, longest) <= 1e9 < kv_bytes(gemma, longest + 1)
    assert longest_context(KNOWN_SHAPES["state-spaces/mamba2-2.7b"], 1e9, 2, most=12345) == 12345


def test_one_token_reads_its_experts_and_many_tokens_read_all() -> None:
    experts = 32 * 3 * 4096 * 14336
    embedding = 32000 * 4096
    assert count_read(MIXTRAL, 1) == pytest.approx(count_parameters(MIXTRAL) - embedding - 6 * experts)
    assert count_read(MIXTRAL, 1000) == pytest.approx(count_parameters(MIXTRAL) - embedding)
    two = count_parameters(MIXTRAL) - embedding - 8 * (6 / 8) ** 2 * experts
    assert count_read(MIXTRAL, 2) == pytest.approx(two)


def test_decoding_is_bound_by_bandwidth_until_arithmetic_binds() -> None:
    small, large = (_figures("meta-llama/Llama-3.1-8B", batch=batch, context=1) for batch in (1, 4096))
    read = 2 * (count_parameters(LLAMA_8B) - 128256 * 4096)
    assert small["decode step, at least"].value == pytest.approx(read / 3.35e12, rel=1e-3)
    assert large["decode step, at least"].value == pytest.approx(4096 * read / 989.4e12, rel=1e-3)
    assert small["batch where arithmetic binds"].value == pytest.approx(989.4 / 3.35)


def test_four_bits_leave_the_embeddings_alone() -> None:
    weights = _figures("meta-llama/Llama-3.1-8B", dtype="nf4")["weights in int4"].value
    embeddings = 2 * 128256 * 4096
    assert weights == pytest.approx((count_parameters(LLAMA_8B) - embeddings) * (0.5 + 2 / 128) + 2 * embeddings)


def test_what_tokens_cost() -> None:
    figures = _figures("meta-llama/Llama-3.1-8B", throughput=1000, price=3.6, cards=2, best_of=4, premium={"bn": 2.5})
    million = 2 * 3.6 / 3600 / 1000 * 1e6
    assert figures["cost of a million tokens"].value == pytest.approx(million)
    assert figures["the same text in bn"].value == pytest.approx(2.5 * million)
    assert figures["the same, best of N"].value == pytest.approx(4 * million)


@pytest.mark.parametrize("command", ["model model=Llama-3.1-8B,Mixtral-8x7B-v0.1 card=h100x2", "pretrain budget=1e21"])
def test_the_command_prints_every_figure_and_explains_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *command.split()]) == 0
    table = capsys.readouterr().out
    assert main(["plan", *command.split(), "--explain"]) == 0
    explained = capsys.readouterr().out
    for word in ("parameters", "cost"):
        assert word in table and word in explained
    joined = " ".join(explained.split())  # a source may be broken over two lines
    assert " = " in joined and " et al. " in joined


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("model", "error: model: field required"),
        ("model model=Qwen3-9B", "error: model: 'Qwen3-9B': neither a known model nor a folder with a config.json"),
        ("model model=Qwen3-8B card=h101", "error: card: 'h101': no such card; did you mean 'h100'?"),
        ("model model=Qwen3-8B batch=0", "error: batch: 0: input should be greater than or equal to 1"),
        ("model Qwen3-8B", "error: plan model: 'Qwen3-8B' is not KEY=VALUE; write it as model=Qwen/Qwen3-8B"),
        ("modle model=Qwen3-8B", "error: plan modle: no such question; did you mean 'model'?"),
        (
            "model model=Qwen3-8B cards=5",
            "error: cards=5: the 32 heads of Qwen3-8B do not divide by it; take one of 1, 2",
        ),
        ("model model=Qwen3-8B --rows x=3", "error: --rows: `plan model` is of one model and has no recipe; leave it"),
        ("model model=Qwen3-8B --card h101", "error: card: 'h101': no such card; did you mean 'h100'?"),
        ("pretrain bugdet=1", "error: bugdet: unknown key; did you mean 'budget'?"),
        ("pretrain budget=lots", "error: budget: 'lots': input should be a valid number"),
    ],
)
def test_bad_input_is_one_line(command: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *command.split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(says)
