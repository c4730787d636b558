"""Sampling through real servers: `transformers serve` on a tiny model, and vLLM where there is one.

vLLM lives in an environment of its own; VLLM_PYTHON names its interpreter.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
import torch
from build_artifacts import ENVIRONMENT, build_model, build_prompts, commit_artifact, run_stage
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.models.load import load_policy
from posttrain.pipeline.commands.generate import generate_command, sampling_knobs
from posttrain.sample import respond
from posttrain.sample.backends.server import ServerSampler
from posttrain.sample.choose.select import best_of_n, by_logprob, first_valid
from posttrain.sample.config.asking import Asking
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.train.export import export

TEXTS = ("red blue", "one two three four five six seven", "the dog runs here")
START_SECONDS = 600


class Served:
    """A model, our own sampler of it, and one through the server that serves it."""

    def __init__(self, folder: Path, sampler: Sampler, server: ServerSampler) -> None:
        self.folder, self.ours, self.server = folder, sampler, server
        self.prompts: list[list[int]] = [sampler.tokenizer(text).input_ids for text in TEXTS]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")[-3000:]
        try:
            if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx2.TransportError:
            time.sleep(0.5)
    raise AssertionError(f"no server within {START_SECONDS} s\n{log.read_text(errors='replace')[-3000:]}")


def serve(command: list[str], environment: dict[str, str], url: str, log: Path) -> Iterator[None]:
    with log.open("wb") as file:
        everything = {**os.environ, **ENVIRONMENT, **environment}
        process = subprocess.Popen(command, env=everything, stdout=file, stderr=file, start_new_session=True)
        try:
            wait_until_healthy(url, process, log)
            yield
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # vLLM waits for its workers, which may still be starting
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


@pytest.fixture(scope="module")
def transformers_serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    pytest.importorskip("fastapi", reason="transformers serve needs posttrain[serve]")
    root = tmp_path_factory.mktemp("transformers")
    artifact = build_model(root)
    export(artifact, root / "model", merge=False)
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(root / "model")]
    command += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    for _ in serve(command, {}, f"http://127.0.0.1:{port}", root / "log"):
        tokenizer = load_tokenizer(artifact)
        server = ServerSampler(f"http://127.0.0.1:{port}", str(root / "model"), tokenizer, "transformers")
        yield Served(root / "model", Sampler(load_policy(artifact).eval(), tokenizer), server)


def test_greedy_text_through_transformers_serve_is_our_own(transformers_serve: Served) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    ours = transformers_serve.ours.generate(transformers_serve.prompts, params)
    theirs = transformers_serve.server.generate(transformers_serve.prompts, params)
    assert [own[0].text for own in theirs] == [own[0].text for own in ours]
    assert [own[0].finish_reason for own in theirs] == [own[0].finish_reason for own in ours]


def test_a_seed_gives_the_same_samples_again(transformers_serve: Served) -> None:
    prompts, server = transformers_serve.prompts, transformers_serve.server
    params = SamplingParams(max_tokens=8, num_samples=3, seed=7, top_k=50, min_p=0.001, repetition_penalty=1.1)
    first = [[sample.text for sample in own] for own in server.generate(prompts, params)]
    again = [[sample.text for sample in own] for own in server.generate(prompts[::-1], params)][::-1]
    other = server.generate(prompts, SamplingParams(max_tokens=8, num_samples=3, seed=70))
    assert first == again != [[sample.text for sample in own] for own in other]
    assert len({text for own in first for text in own}) == 9


def test_the_knobs_reach_the_server(transformers_serve: Served) -> None:
    greedy = transformers_serve.ours.generate(transformers_serve.prompts, SamplingParams(temperature=0, max_tokens=6))
    for params in (SamplingParams(top_k=1, max_tokens=6), SamplingParams(top_p=1e-6, max_tokens=6)):
        found = transformers_serve.server.generate(transformers_serve.prompts, params)
        assert [own[0].text for own in found] == [own[0].text for own in greedy]
    until_stop = greedy[0][0].token_ids[:3]
    params = SamplingParams(temperature=0, max_tokens=6, stop_token_ids=(until_stop[-1],))
    ((stopped,),) = transformers_serve.server.generate(transformers_serve.prompts[:1], params)
    assert stopped.finish_reason == "stop"
    assert stopped.text == transformers_serve.ours.tokenizer.decode(until_stop)


def test_generate_asks_a_server_what_it_speaks_and_calls_its_model_as_serve_does(
    transformers_serve: Served, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for server in (transformers_serve.server.url, None):  # without one, the published folder's weights are loaded
        asking = Asking(prompt="the dog", server=server)
        knobs = sampling_knobs("general", ["temperature=0", "max_tokens=12"])
        monkeypatch.setattr(sys, "argv", generate_command(transformers_serve.folder, knobs, asking)[2:])
        assert respond.main() == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""


def test_an_accepted_sample_cancels_the_others(transformers_serve: Served) -> None:
    params = SamplingParams(max_tokens=6, num_samples=5)
    (attempt,) = first_valid(transformers_serve.server, transformers_serve.prompts[:1], params, lambda i, sample: True)
    assert (attempt.sample is not None, attempt.rounds, attempt.samples) == (True, 1, 5)
    (samples,) = transformers_serve.server.generate(
        transformers_serve.prompts[:1], params, accept=lambda i, sample: True
    )
    assert [sample.finish_reason for sample in samples].count("aborted") == 4


def test_what_transformers_serve_cannot_do_is_refused(transformers_serve: Served) -> None:
    server, prompts = transformers_serve.server, transformers_serve.prompts
    refused = [
        (SamplingParams(logit_bias={5: 1.0}), "passes over it in silence"),
        (SamplingParams(temperature=0, num_beams=2), "no beam search"),
    ]
    for params, message in refused:
        with pytest.raises(UsageError, match=message):
            server.generate(prompts, params)
    with pytest.raises(ValueError, match="without log-probabilities"):
        best_of_n(server, prompts, SamplingParams(max_tokens=4, num_samples=2), by_logprob)
    with pytest.raises(UsageError, match="does not survive decoding"):
        server.generate([[ord("r"), ord("e")]], SamplingParams(max_tokens=4))
    with pytest.raises(UsageError, match="restart it on the new folder"):
        server.update_weights(transformers_serve.folder, transformers_serve.ours.model)


def test_a_server_that_refuses_is_quoted_and_one_that_is_not_there_is_named(transformers_serve: Served) -> None:
    tokenizer = transformers_serve.ours.tokenizer
    other = ServerSampler(transformers_serve.server.url, "another model", tokenizer, "transformers")
    with pytest.raises(PosttrainError, match=r"HTTP 400: .*pinned to"):
        other.generate(transformers_serve.prompts, SamplingParams(max_tokens=4))
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(UsageError, match=f"{url}: no server answers"):
        ServerSampler(url, "policy", tokenizer).generate([[1]], SamplingParams(max_tokens=4))


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    python = os.environ.get("VLLM_PYTHON")
    if python is None:
        pytest.skip("VLLM_PYTHON names no interpreter with vLLM")
    root = tmp_path_factory.mktemp("vllm")
    artifact = build_model(root)
    export(artifact, root / "model", merge=False)
    # vLLM's attention wants heads of 32 at least.
    wider = LlamaConfig.from_pretrained(artifact, hidden_size=128, head_dim=32, num_key_value_heads=4)
    torch.manual_seed(0)
    model = LlamaForCausalLM(wider).eval()
    model.save_pretrained(root / "model")
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(root / "model")]
    command += ["--served-model-name", "policy", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "128"]
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    for _ in serve(command, environment, f"http://127.0.0.1:{port}", root / "log"):
        tokenizer = load_tokenizer(artifact)
        server = ServerSampler(f"http://127.0.0.1:{port}", "policy", tokenizer)
        yield Served(root / "model", Sampler(model, tokenizer), server)


def test_greedy_samples_of_vllm_are_our_own(vllm: Served) -> None:
    params = SamplingParams(temperature=0, max_tokens=24)
    for (ours,), (theirs,) in zip(
        vllm.ours.generate(vllm.prompts, params), vllm.server.generate(vllm.prompts, params), strict=True
    ):
        assert (theirs.token_ids, theirs.finish_reason) == (ours.token_ids, ours.finish_reason)
        assert ours.text.startswith(theirs.text)  # vLLM keeps half a character at the end to itself
        assert theirs.logprobs == pytest.approx(ours.logprobs, abs=1e-4)


def test_vllm_gives_the_models_own_logprobs_whatever_the_knobs(vllm: Served) -> None:
    knobs = SamplingParams(temperature=0.5, top_k=40, repetition_penalty=1.2, max_tokens=10, num_samples=2, seed=3)
    samples = vllm.server.generate(vllm.prompts, knobs)
    again = vllm.server.generate(vllm.prompts[::-1], knobs)[::-1]
    for prompt, own, repeated in zip(vllm.prompts, samples, again, strict=True):
        for sample in own:
            ids = torch.tensor([prompt + sample.token_ids])
            logprobs = vllm.ours.model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            ours = logprobs.gather(1, ids[0, len(prompt) :, None])[:, 0]
            assert sample.logprobs == pytest.approx(ours.tolist(), abs=1e-4)
            assert sample.sampling_logprobs == []
        assert [sample.token_ids for sample in own] == [sample.token_ids for sample in repeated]


def test_vllm_takes_new_weights_or_we_say_that_it_did_not(vllm: Served, tmp_path: Path) -> None:
    new = LlamaForCausalLM.from_pretrained(vllm.folder)
    with torch.no_grad():
        for weights in new.model.layers.parameters():
            weights.mul_(1.5)
    folder = shutil.copytree(vllm.folder, tmp_path / "new")
    new.save_pretrained(folder)
    assert vllm.server.update_weights(folder, new.eval()) < 1e-3
    with pytest.raises(PosttrainError, match="old weights are in use"):
        vllm.server.update_weights(folder, vllm.ours.model)
    assert vllm.server.update_weights(vllm.folder, vllm.ours.model) < 1e-3


def test_ppo_samples_through_vllm_with_new_weights_in_every_rollout(vllm: Served, tmp_path: Path) -> None:
    """Large steps move the policy far; the server's log-probabilities are ours in each rollout nevertheless."""
    model = tmp_path / "artifacts" / "wide-0001"
    shutil.copytree(vllm.folder, model)
    commit_artifact(model, "model", "base")
    knobs = {"rollout_batch_size": 16, "global_batch_size": 8, "ppo_epochs": 2, "max_steps": 12, "max_new_tokens": 12}
    knobs |= {"optimizer__learning_rate": 1e-2, "log_steps": 1, "critic__kind": "policy", "early_stop_kl": 10.0}
    knobs |= {"backend": "vllm", "server": vllm.server.url, "rewards": "[{kind: regex, pattern: e}]"}
    inputs = {"model": model, "data": build_prompts(tmp_path, model)}
    run_stage("train.ppo", tmp_path / "artifacts" / "ppo-0001", inputs, **knobs)
    lines = (tmp_path / "artifacts" / "ppo-0001" / "logs" / "metrics.jsonl").read_text().splitlines()
    rollouts = [row for row in map(json.loads, lines) if "policy/sampler_difference" in row]
    assert len(rollouts) == 3
    assert max(row["policy/sampler_difference"] for row in rollouts) < 1e-3
    assert all(row["policy/importance"] == pytest.approx(1, abs=1e-3) for row in rollouts)
    assert abs(rollouts[-1]["objective/kl"]) > 0.1
    vllm.server.update_weights(vllm.folder, vllm.ours.model)
