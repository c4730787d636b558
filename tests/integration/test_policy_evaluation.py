"""What `evaluate.policy` can be asked for: several samples, a system turn, examples, and to go on where it was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_demonstrations, build_model, commit_artifact
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from posttrain.data.messages import Message
from posttrain.data.records import EvaluationItem, write_dataset
from posttrain.evaluate import policy
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.measure.answering import asked
from posttrain.evaluate.measure.heldout import row_losses
from posttrain.evaluate.measure.item_scores import read_items
from posttrain.models.load import load_policy
from posttrain.models.processes import Rank
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import NonFiniteLossError, PosttrainError, UsageError
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

WORDS = ["red", "blue", "one", "two", "three", "four", "five", "six", "seven", "cat", "dog", "bird"]


def item(number: int, split: Any = "eval", **changed: Any) -> EvaluationItem:
    prompt = [Message(role="user", content=" ".join(WORDS[number % 5 : number % 5 + 3]))]
    fields: dict[str, Any] = {"id": f"item/{number}", "source": "s", "task": "t", "language": "en", "split": split}
    fields |= {"prompt": prompt, "reference": "red|blue", "scorer": "choice", "group": str(number // 2)}
    return EvaluationItem(**(fields | changed))


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        self.demonstrations = build_demonstrations(root, self.model)
        shown = [item(100 + n, "train", ideal=f"It is {WORDS[n]}.") for n in range(2)]
        self.items = [item(n) for n in range(10)]
        directory = root / "artifacts" / "items-0001"
        directory.mkdir(parents=True)
        write_dataset(directory, [*self.items, *shown], EvaluationItem)
        self.dataset = commit_artifact(directory, "dataset", "items")

    def run(self, output: Path, model: Path | None = None, data: Path | None = None, **knobs: Any) -> StageResult:
        output.mkdir()
        work = output.with_name(f"{output.name}-work")
        work.mkdir(exist_ok=True)
        spec = StageSpec("e", "evaluate", "t", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
        inputs = {"model": model or self.model} | ({"data": data} if data else {"items": self.dataset})
        context = Context(spec, inputs, output, work, NullTracker(), main_process=True)
        return policy.run(PolicyEvaluationConfig(max_new_tokens=4, **knobs), context)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("policy"))


def broken(model: Path, root: Path) -> Path:
    """Return a copy of a model whose last layer norm is not a number."""
    directory = root / "artifacts" / "broken-0001"
    directory.mkdir(parents=True)
    for path in model.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_model_whose_logits_are_no_numbers_is_an_error(bench: Bench, tmp_path: Path) -> None:
    model = broken(bench.model, tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"prompt \d: the model's logits are not finite after 0 tokens"):
        bench.run(tmp_path / "items", model)
    with pytest.raises(NonFiniteLossError, match=r"held-out row \d: loss nan"):
        bench.run(tmp_path / "loss", model, bench.demonstrations)


class Largest(TorchDispatchMode):
    """Notes the most elements of a tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.numel())
        return made


def test_held_out_loss_never_holds_the_logits_of_a_whole_batch(bench: Bench, tmp_path: Path) -> None:
    model = load_policy(bench.model).eval()
    vocabulary = model.get_output_embeddings().weight.shape[0]
    rows = [[(7 * n + place) % vocabulary for place in range(100)] for n in range(128)]
    with Largest() as largest:
        losses = row_losses(Rank(), tmp_path, model, rows, rows, batch_size=128)
    assert losses is not None
    assert sum(row.tokens for row in losses) == 128 * 99
    assert largest.elements < 128 * 99 * vocabulary / 4


def test_several_samples_have_pass_at_k_and_a_majority(bench: Bench, tmp_path: Path) -> None:
    result = bench.run(tmp_path / "out", num_samples=4, temperature=1.0, batch_size=8)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))
    scored = read_items(tmp_path / "out")
    assert all(one.samples and one.scores and len(one.samples) == 4 for one in scored)
    assert all(one.correct == pytest.approx(sum(one.scores or []) / 4) for one in scored)
    curve = summary["samples"]["curve"]
    assert [point["k"] for point in curve] == [1, 2, 4]
    assert curve[0]["pass"]["value"] == pytest.approx(sum(one.correct for one in scored) / 10)
    assert curve[-1]["pass"]["value"] == sum(any(one.scores or []) for one in scored) / 10
    assert result.metrics["pass_at_4"] == curve[-1]["pass"]["value"]
    again = bench.run(tmp_path / "again", num_samples=4, temperature=1.0, batch_size=3)
    assert again.metrics == result.metrics and read_items(tmp_path / "again") == scored
    with pytest.raises(ValueError, match="num_samples=2: at temperature=0 they are all alike"):
        PolicyEvaluationConfig(num_samples=2)


def test_a_system_turn_and_examples_stand_before_the_item(bench: Bench, tmp_path: Path) -> None:
    own = item(1, prompt=[Message(role="system", content="mine"), Message(role="user", content="cat")])
    shown = [item(100, ideal="It is red."), item(101), item(102, language="de")]
    first, second = asked([item(0), own], shown, "be brief", 2)
    assert [turn["role"] for turn in first.messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [turn["content"] for turn in first.messages[0:5:2]] == ["be brief", "It is red.", "red|blue"]
    assert second.messages[0]["content"] == "mine" and len(second.messages) == 6
    with pytest.raises(UsageError, match=r"few_shot=3: 2 training items of t \(en\)"):
        bench.run(tmp_path / "few", few_shot=3)
    plain, led = bench.run(tmp_path / "plain"), bench.run(tmp_path / "led", few_shot=2, system="red dog")
    assert (plain.metrics["items"], led.metrics["items"]) == (10, 10)
    said = [[one.response for one in read_items(tmp_path / name)] for name in ("plain", "led")]
    assert said[0] != said[1]


def test_a_function_of_the_users_own_judges(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "def brevity(messages, answer, reference):\n    return 1 / (1 + len(answer))\n"
    (tmp_path / "my_judges.py").write_text(module + "def wild(*given):\n    return 7\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    bench.run(tmp_path / "out", function="my_judges:brevity")
    assert all(one.correct == pytest.approx(1 / (1 + len(one.response))) for one in read_items(tmp_path / "out"))
    with pytest.raises(PosttrainError, match=r"7\.0 for item item/0; return a number from 0 to 1"):
        bench.run(tmp_path / "wild", function="my_judges:wild")


def test_the_table_of_items_holds_the_question_behind_each(bench: Bench, tmp_path: Path) -> None:
    bench.run(tmp_path / "out")
    rows = pq.read_table(tmp_path / "out" / "items.parquet").to_pylist()
    assert [row["group"] for row in rows] == [str(n // 2) for n in range(10)]
    assert rows[0]["samples"] is None
