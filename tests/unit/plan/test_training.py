"""Training one model: parts by formula, tensor parallelism, engines side by side, what is left to the host."""

import itertools
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from posttrain.pipeline.cli import main
from posttrain.plan.cards import CARDS
from posttrain.plan.config.questions import TrainQuestion
from posttrain.plan.families import shape_from_config
from posttrain.plan.figure import Figure
from posttrain.plan.footprint import Rollouts, Setting, Training
from posttrain.plan.known import KNOWN_SHAPES
from posttrain.plan.memory import activation_bytes_per_token, estimate_memory
from posttrain.plan.model import ModelShape, count_parameters, kv_bytes_per_token
from posttrain.plan.parts import Options, part_figures
from posttrain.plan.training import engines_of, estimated, most_rows, training_figures
from posttrain.stage.schema import build

GIB = 1 << 30
LLAMA = KNOWN_SHAPES["meta-llama/Llama-3.1-8B"]
PARAMETERS, NORMS = 8_030_261_248, 65 * 4096
SMALL = shape_from_config(
    {
        "model_type": "llama",
        "vocab_size": 640,
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 3,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    },
    "config",
)


def _asked(model: str = "Llama-3.1-8B", **knobs: Any) -> TrainQuestion:
    return build(TrainQuestion, {"model": model, "card": "h100x8", **knobs}, "")


def _figures(shape: ModelShape = LLAMA, engine: Any = "zero3", **knobs: Any) -> dict[str, Figure]:
    asked = _asked(**knobs)
    return {item.name: item for item in training_figures(shape, asked, engine, CARDS[asked.card])}


ADAPTERS, DTYPES, FLAGS = ("full", "lora", "qlora"), ("float32", "bfloat16"), (False, True)
ENGINES = ((1, None, False), (4, None, False), (4, 1, False), (4, 2, False), (4, 2, True), (4, 3, False), (4, 3, True))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize(("processes", "zero", "offload"), ENGINES)
@pytest.mark.parametrize("tensor", [1, 4])
def test_the_formula_of_a_part_gives_what_is_planned(
    optimizer: Any, processes: int, zero: int | None, offload: bool, tensor: int
) -> None:
    ways = itertools.product(ADAPTERS if tensor == 1 else ("full",), DTYPES, ("lm", "score"), FLAGS, FLAGS)
    for adapter, dtype, head, checkpointing, kernels in ways:
        told = Options(
            tokens=1000,
            head=head,  # type: ignore[arg-type]
            adapter=adapter,  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
            gradient_checkpointing=checkpointing,
            num_processes=processes,
            zero_stage=zero,
            offload=offload,
            kernels=kernels,
            own_trunk=not kernels,
            optimizer=optimizer,
            tensor=tensor,
            sequence_parallel=tensor > 1 and kernels,
        )
        estimate = estimate_memory(SMALL, **vars(told))
        for part in part_figures(SMALL, estimate, told):
            assert part.value == pytest.approx(getattr(estimate, part.name), abs=3), (part.name, told)


@pytest.mark.parametrize("critic", [None, SMALL])
@pytest.mark.parametrize("zero", [None, 3])
def test_the_parts_of_ppo_are_all_that_it_holds(critic: ModelShape | None, zero: int | None) -> None:
    rollouts = Rollouts(64, 16, True, SMALL, critic)
    training = Training(SMALL, "lm", 256, 4, rollouts=rollouts, optimizer="adafactor")
    setting = Setting(4, False, "full", "bfloat16", zero)
    made, memory = training.figures(setting), training.memory(setting)
    for name in ("weights", "gradients", "optimizer", "activations", "head", "frozen", "cache"):
        parts = [item.value for item in made if item.name in (name, f"{name} of the critic")]
        assert sum(parts) == pytest.approx(getattr(memory, name), abs=4), name


def test_mixed_precision_takes_18_bytes_a_parameter() -> None:
    """transformers' documentation, "Model training anatomy": 6 of weights, 4 of gradients, 8 of AdamW."""
    made = _figures(engine="ddp", card="h100")
    assert sum(made[name].value for name in ("weights", "gradients", "optimizer")) == 18 * PARAMETERS


def test_a_model_of_65_b_learns_on_48_gb_in_4_bits() -> None:
    """Dettmers et al. 2023, QLoRA: 65 B parameters on one card of 48 GB; Llama-2-70B and rank 16 here."""
    knobs = {"adapter": "qlora", "rank": 16, "length": 512, "gradient_checkpointing": True, "card": "l40s"}
    made = _figures(KNOWN_SHAPES["meta-llama/Llama-2-70b-hf"], "ddp", **knobs)
    assert 0.75 < made["share of the card"].value < 1
    assert made["memory of a card"].value < 48e9


def test_cards_that_share_a_layer_hold_all_of_it_together() -> None:
    one, eight = (_figures(engine="zero1", cards=1, tensor=tensor) for tensor in (1, 8))
    assert 8 * eight["weights"].value == one["weights"].value + 7 * 2 * NORMS
    assert eight["head"].value < one["head"].value / 2


@pytest.mark.parametrize("sequence_parallel", [False, True])
def test_what_lies_between_layers_is_shared_too_with_sequence_parallelism(sequence_parallel: bool) -> None:
    options: dict[str, Any] = {"dtype": "bfloat16", "deepspeed": True}
    one = activation_bytes_per_token(LLAMA, **options)
    eight = activation_bytes_per_token(LLAMA, tensor=8, sequence_parallel=sequence_parallel, **options)
    between = 32 * (16 * 4096 + 8)
    assert eight == (one / 8 if sequence_parallel else between + (one - between) / 8)


def test_heads_of_keys_and_values_are_copied_to_further_cards() -> None:
    qwen, deepseek = KNOWN_SHAPES["Qwen/Qwen3-235B-A22B"], KNOWN_SHAPES["deepseek-ai/DeepSeek-V3"]
    assert [kv_bytes_per_token(qwen, cards=cards) for cards in (1, 4, 8)] == [192_512, 48_128, 48_128]
    assert kv_bytes_per_token(deepseek, cards=8) == 70_272  # one narrow state for all heads
    assert kv_bytes_per_token(LLAMA, cards=8) == 131_072 / 8


def test_the_most_rows_fit_and_one_more_does_not() -> None:
    asked = _asked(engine="zero2", length=1024)
    most = most_rows(LLAMA, asked, "zero2", CARDS["h100"])
    sizes = [estimated(LLAMA, asked, "zero2", rows).total for rows in (most, most + 1)]
    assert most > 1 and sizes[0] <= 0.92 * CARDS["h100"].memory < sizes[1]
    assert most_rows(LLAMA, asked, "ddp", CARDS["h100"]) == 0


def test_what_a_card_does_not_hold_is_on_the_host() -> None:
    made = _figures(engine="zero3_cpu_offload", tokens=1e9)
    assert made["memory of the host"].value == (2 + 2 + 4 + 8) * PARAMETERS
    assert (made["gradients"].value, made["optimizer"].value) == (0, 0)
    there = _figures(engine="zero3", tokens=1e9)
    assert made["time"].value == pytest.approx(3 * there["time"].value)
    assert "memory of the host" not in there


def test_recomputation_takes_time_and_is_no_model_flop() -> None:
    kept, again = (_figures(engine="zero2", gradient_checkpointing=flag) for flag in FLAGS)
    assert kept["FLOPs a token"].value == again["FLOPs a token"].value
    assert kept["tokens/s"].value == pytest.approx(again["tokens/s"].value * 4 / 3)
    assert again["activations"].value < 0.3 * kept["activations"].value


def test_engines_stand_side_by_side_where_none_is_named() -> None:
    assert engines_of(_asked()) == ["ddp", "zero1", "zero2", "zero3", "zero3_cpu_offload"]
    assert engines_of(_asked(adapter="qlora")) == ["ddp", "zero1", "zero2"]
    assert engines_of(_asked(engine="fsdp2")) == ["fsdp2"]
    totals = [_figures(engine=engine)["memory of a card"].value for engine in engines_of(_asked())]
    assert totals == sorted(totals, reverse=True)
    assert count_parameters(LLAMA) == PARAMETERS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("tensor=3", "error: tensor=3 does not divide cards=8; give a divisor of it"),
        ("tensor=8 adapter=lora", "error: tensor=8 is planned for adapter=full alone; give tensor=1"),
        (
            "card=h100x64 tensor=64",
            "error: tensor=64: the 32 heads of Llama-3.1-8B do not divide by it; take one of 1, 2",
        ),
        ("engine=zero3 adapter=qlora", "error: engine=zero3 cannot spread 4-bit weights; give ddp or zero2, or"),
        ("engine=zero4", "error: engine: 'zero4': input should be 'ddp', 'zero1'"),
        ("optimiser=adamw", "error: optimiser: unknown key; did you mean 'optimizer'?"),
    ],
)
def test_bad_input_is_one_line(words: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "train", "model=Llama-3.1-8B", "card=h100x8", *words.split()]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(says)


def test_the_command_shows_engines_and_explains_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "train", "model=Llama-3.1-8B", "card=h100x8", "tokens=1e9"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "zero3_cpu_offload" in table and "memory of the host" in table and "cost" in table
    assert main([*words, "engine=zero2", "--explain"]) == 0
    assert "trainable · bytes / processes = 8,030,261,248 · 2 / 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("train model=Llama-3.1-8B card=h100x8", ("zero3_cpu_offload", "optimizer", "cost of 1.00 G tokens")),
        ("model model=Qwen3-8B,Mixtral-8x7B-v0.1 card=h100x2", ("Mixtral-8x7B-v0.1", "cache", "cost of a million")),
        ("pretrain budget=1e21", ("loss for 1e+21 FLOPs", "cost of 20 tokens a parameter")),
        ("recipe=smoke", ("reward", "weights", "cost of the pipeline with other base models")),
    ],
)
def test_a_picture_shows_parts_and_costs(
    words: str, shown: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.svg"
    assert main(["plan", *words.split(), "--plot", str(file)]) == 0
    made = file.read_text(encoding="utf-8")
    ElementTree.fromstring(made)
    assert all(word in made for word in shown) and "mathdefault" not in made
    assert capsys.readouterr().out


@pytest.mark.parametrize(("question", "knob"), [("model", "kv_dtype"), ("train", "tensor"), ("pretrain", "budget")])
def test_what_a_question_can_be_told_is_listed(question: str, knob: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", question, "--knobs"]) == 0
    listed = capsys.readouterr().out
    assert f" {knob} " in listed and " card " in listed and "None" not in listed.split("what it is")[0]
    assert main(["plan", "recipe=demo", "--knobs"]) == 2
    assert "those of model, train, pretrain" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["train model=Qwen3-8B", "recipe=smoke"])
def test_a_picture_needs_a_place(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, says in (("plan.png", "a picture is .svg or .html"), ("none/plan.svg", "no folder")):
        assert main(["plan", *words.split(), "--plot", str(tmp_path / name)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith("error: --plot ") and says in line
