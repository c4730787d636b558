"""Suites of `evaluate.policy`: parts that are asked in ways of their own, options by likelihood, servers, kills."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from build_artifacts import build_demonstrations, build_model, commit_artifact
from safetensors.torch import load_file, save_file

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation, Message
from posttrain.data.records import EvaluationItem, write_dataset
from posttrain.evaluate import policy
from posttrain.evaluate.config.policy import PolicyEvaluationConfig
from posttrain.evaluate.measure.item_scores import ScoredItem, read_items
from posttrain.models.load import load_policy
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.schema import build
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker

WORDS = ["red", "blue", "one", "two", "three", "four", "five", "six", "seven", "cat", "dog", "bird"]
SCORERS = {"colours": "choice", "animals": "exact", "sums": "number"}


def item(number: int, split: Any = "eval") -> EvaluationItem:
    task = list(SCORERS)[number % 3]
    says = f"{WORDS[number % 12]} {WORDS[number // 12]} {WORDS[(number + 5) % 7]}"
    provenance = {"id": f"item/{number}", "source": "s", "task": task, "language": "en", "split": split}
    prompt = [Message(role="user", content=says)]
    return EvaluationItem(
        **provenance, prompt=prompt, reference="red|sleeps|one", scorer=SCORERS[task], group=str(number // 2)
    )


class Bench:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = build_model(root)
        directory = root / "artifacts" / "items-0001"
        directory.mkdir(parents=True)
        write_dataset(directory, [*map(item, range(36)), item(36, "train"), item(39, "train")], EvaluationItem)
        self.items = commit_artifact(directory, "dataset", "items")

    def run(self, output: Path, model: Path | None = None, data: Path | None = None, **knobs: Any) -> StageResult:
        output.mkdir(exist_ok=True)
        work = output.with_name(f"{output.name}-work")
        work.mkdir(exist_ok=True)
        spec = StageSpec("e", "evaluate", "t", "0" * 64, "", {}, {}, {}, "", "", "", 0, Distributed(), Tracking())
        inputs = {"model": model or self.model} | ({"data": data} if data else {"items": self.items})
        context = Context(spec, inputs, output, work, NullTracker(), main_process=True)
        config = build(PolicyEvaluationConfig, {"max_new_tokens": 4, "batch_size": 4} | knobs, "evaluate.policy")
        return policy.run(config, context)

    def checkpoint(self, directory: Path, scale: float) -> Path:
        """Return a copy of the model whose last layer norm is another."""
        directory.mkdir()
        for path in self.model.iterdir():
            (directory / path.name).write_bytes(path.read_bytes())
        weights = load_file(directory / "model.safetensors")
        weights["model.norm.weight"] = weights["model.norm.weight"].roll(1) * scale
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        return directory


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("suites"))


def responses(items: list[ScoredItem]) -> dict[str, str]:
    return {one.id: one.response for one in items}


def test_each_part_asks_its_items_in_its_own_way(bench: Bench, tmp_path: Path) -> None:
    drawn = {"scorers": ["number"], "sampling": {"num_samples": 3, "temperature": 1.0}, "max_new_tokens": 2}
    again = {"tasks": ["sums"], "languages": ["en"], "label": "greedy"}
    result = bench.run(
        tmp_path / "suite",
        suite={"drawn": drawn, "again": again, "led": {"tasks": ["colours"], "system": "red dog", "few_shot": 2}},
    )
    bench.run(tmp_path / "plain")
    found, plain = read_items(tmp_path / "suite"), responses(read_items(tmp_path / "plain"))
    assert Counter(one.task for one in found) == {"colours": 12, "animals": 12, "sums": 12, "sums (greedy)": 12}
    assert result.metrics["items"] == 48 and {"pass_at_3", "majority_at_3"} < result.metrics.keys()
    said = responses(found)
    assert all(said[name] == text for name, text in plain.items() if int(name[5:]) % 3 == 1)
    assert all(said[f"{name} (greedy)"] == text for name, text in plain.items() if int(name[5:]) % 3 == 2)
    assert any(said[name] != text for name, text in plain.items() if int(name[5:]) % 3 == 0)
    assert all((len(one.samples or []) == 3) == (one.task == "sums") for one in found)
    labelled = [one for one in found if one.task == "sums (greedy)"]
    assert [one.cluster for one in labelled] == [one.cluster for one in found if one.task == "sums"]


@pytest.mark.parametrize(
    ("suite", "message"),
    [
        (
            {"a": {"tasks": ["sums"]}, "b": {"scorers": ["number"]}},
            r"item item/2 is in two parts; give one of them a l",
        ),
        ({"a": {"tasks": ["sum"]}}, r"suite\.a: none of the 36 items is in it"),
        ({"a": {"scorer": "exat"}}, r"suite\.a\.scorer: item item/0: scorer 'exat': unknown.*did you mean 'exact'"),
        ({"a": {"scorer": "constraints"}}, r"suite\.a\.scorer: item item/0: "),
        ({"a": {"tasks": ["sums"], "few_shot": 2}}, r"suite\.a\.few_shot=2: 0 training items of sums \(en\)"),
        ({"a": {"sampling": {"temperature": 0, "num_samples": 2}}}, r"suite\.a\.sampling: num_samples=2: at temperatu"),
    ],
)
def test_a_suite_that_cannot_be_asked_is_refused(
    bench: Bench, tmp_path: Path, suite: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bench.run(tmp_path / "out", suite=suite)


def logprob(bench: Bench, prompt: list[Message], option: str) -> float:
    """Return the log-probability of an option, one token after the other from the model's own logits."""
    tokenizer, model = load_tokenizer(bench.model), load_policy(bench.model).eval()
    ids = encode_prompts(tokenizer, [Conversation([{"role": "user", "content": prompt[0].content}])])[0]
    total = 0.0
    for token in tokenizer(option, add_special_tokens=False).input_ids:
        with torch.no_grad():
            total += float(model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token])
        ids = [*ids, token]
    return total


def test_the_likeliest_option_is_the_answer(bench: Bench, tmp_path: Path) -> None:
    either = {"as_is": {"tasks": ["colours"], "scorer": "choice_logprob"}}
    either["per_byte"] = {"tasks": ["colours"], "scorer": "choice_logprob_per_byte", "label": "per byte"}
    bench.run(tmp_path / "out", suite=either)
    found = {one.id: one for one in read_items(tmp_path / "out")}
    for number in (0, 15, 30):
        options = ["red", "sleeps", "one"]
        sums = [logprob(bench, item(number).prompt, option) for option in options]
        bytewise = [total / len(option) for total, option in zip(sums, options, strict=True)]
        for label, scores in (("", sums), (" (per byte)", bytewise)):
            best = options[scores.index(max(scores))]
            one = found[f"item/{number}{label}"]
            assert (one.response, one.correct, one.ended) == (best, float(best == "red"), True)


class Watch:
    """Notes what the sampler is given, and interrupts it before it begins with one of its chunks."""

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self.model, self.left = "", 10**9

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        of_sampler = frame.f_globals.get("__name__") == "posttrain.sample.engine.sampler"
        if event == "call" and frame.f_code.co_name == "generate" and of_sampler:
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
            self.asked.update((self.model, tuple(prompt)) for prompt in frame.f_locals["prompts"])


def test_eight_checkpoints_killed_half_way_are_asked_nothing_twice(bench: Bench, tmp_path: Path) -> None:
    models = {f"c{n}": bench.checkpoint(tmp_path / f"c{n}", 1 + n / 8) for n in range(8)}
    watch = Watch()

    def go_on() -> None:
        for name, model in models.items():
            if not (tmp_path / f"scores-{name}" / "summary.json").exists():  # a whole artifact is not made again
                watch.model = name
                bench.run(tmp_path / f"scores-{name}", model)

    sys.setprofile(watch)
    try:
        watch.left = 18  # of the 40 chunks of 36 items each
        with pytest.raises(KeyboardInterrupt):
            go_on()
        sys.setprofile(None)
        assert len(watch.asked) == 3 * 36 + 3 * 8 and watch.model == "c3"
        watch.left = 10**9
        sys.setprofile(watch)
        go_on()
    finally:
        sys.setprofile(None)
    assert len(watch.asked) == 8 * 36 and set(watch.asked.values()) == {1}
    bench.run(tmp_path / "calm", models["c3"])
    assert read_items(tmp_path / "calm") == read_items(tmp_path / "scores-c3")


@contextmanager
def served(model: Path) -> Iterator[str]:
    """Serve a model as vLLM does, by our own sampler; yields the address."""
    sampler = Sampler(load_policy(model).eval(), load_tokenizer(model))
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with lock:
                ((one,),) = sampler.generate([body["prompt"]], SamplingParams(body["max_tokens"], temperature=0))
            said = {"text": one.text, "finish_reason": one.finish_reason, "token_ids": one.token_ids}
            self._say(200, {"choices": [said | {"logprobs": {"token_logprobs": one.logprobs}}]})

        def do_GET(self) -> None:
            self._say(404, {})

        def _say(self, status: int, body: Any) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_server_gives_the_same_greedy_answers_and_no_other_model_passes(bench: Bench, tmp_path: Path) -> None:
    bench.run(tmp_path / "here")
    other = bench.checkpoint(tmp_path / "other", 3.0)
    with served(bench.model) as url:
        bench.run(tmp_path / "there", server={"url": url})
        assert read_items(tmp_path / "there") == read_items(tmp_path / "here")
        with pytest.raises(PosttrainError, match=r"log-probabilities of '\w+' differ by .* serve this model"):
            bench.run(tmp_path / "wrong", other, server={"url": url})


def test_bits_per_byte_are_those_of_the_text(bench: Bench, tmp_path: Path) -> None:
    data = build_demonstrations(bench.root, bench.model)
    metrics = bench.run(tmp_path / "loss", data=data).metrics
    summary = json.loads((tmp_path / "loss" / "summary.json").read_text(encoding="utf-8"))["loss"]
    nats = sum(own["loss"] * own["tokens"] for own in summary["by_task"].values())
    tokenizer, size = load_tokenizer(bench.model), 0
    for row in pq.read_table(data / "eval.parquet").to_pylist():
        said = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]
        size += len(tokenizer.decode(said).replace(tokenizer.eos_token, "").encode())
    assert metrics["bits_per_byte"] == pytest.approx(nats / 0.6931471805599453 / size)
