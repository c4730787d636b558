"""An exported folder names its base so that it can be found, and answers as the artifact does, token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import WORDS, build_model, commit_artifact
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.models.adapters import merged
from posttrain.models.load import BASE_FILE, load_policy, load_reward_model
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.artifact import read_manifest
from posttrain.stage.files import write_json_atomic
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import AdapterConfig
from posttrain.train.export import export, path_to_base
from posttrain.train.nets.policy import trainable_policy
from posttrain.train.nets.reward_head import classifier_from_policy

ADAPTER = AdapterConfig(kind="lora", rank=4)


def moved(policy: Any) -> Any:
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return policy


def adapter_of(base: Path, kind: str = "model") -> Path:
    """Commit an adapter on ``base`` that computes something else, as a training stage would."""
    directory = base.with_name(f"{kind}_on_{base.name}")
    torch.manual_seed(0)
    base_file: dict[str, Any] = {"base": base.name, "digest": read_manifest(base).digest}
    if kind == "model":
        trained = trainable_policy(base, ADAPTER, "float32", "sdpa", Distributed(), "train.sft")
    else:
        trained = classifier_from_policy(base, ADAPTER, "float32", "sdpa", Distributed(), 2, 0)
        base_file |= {"reward_mean": 0.0, "reward_std": 1.0, "pad_token_id": 2}
    moved(trained).save_pretrained(str(directory))
    load_tokenizer(base).save_pretrained(str(directory))
    write_json_atomic(directory / BASE_FILE, base_file)
    return commit_artifact(directory, kind, "train", {"model": base})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(
        tmp_path_factory.mktemp("export"), new_tokens=True, dtype=torch.bfloat16, shape={"initializer_range": 0.1}
    )


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return adapter_of(base)


@pytest.mark.parametrize("form", ["base", "adapter", "merged"])
def test_it_answers_as_the_artifact_does(
    form: str, base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = base if form == "base" else adapter
    export(artifact, tmp_path / "out", merge=form == "merged")
    monkeypatch.chdir(tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert stated["eos_token_id"] == load_tokenizer(base).eos_token_id
    tokenizer = AutoTokenizer.from_pretrained(".")
    assert tokenizer.chat_template == load_tokenizer(base).chat_template
    model = AutoModelForCausalLM.from_pretrained(".", dtype=torch.float32).eval()
    policy: Any = load_policy(artifact)
    if form == "merged":
        assert AutoModelForCausalLM.from_pretrained(".").dtype == torch.bfloat16
        policy = merged(load_policy(artifact))
        for parameter in policy.parameters():  # not what is no weight, such as the frequencies of positions
            parameter.data = parameter.data.bfloat16().float()
    prompts = [[{"role": "user", "content": " ".join(WORDS[n : n + 4])}] for n in range(20)]
    ids = [tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"] for prompt in prompts]
    samples = Sampler(policy.eval(), load_tokenizer(artifact)).generate(
        ids, SamplingParams(max_tokens=12, temperature=0.0)
    )
    answers = []
    for prompt, (sample,) in zip(ids, samples, strict=True):
        found = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :].tolist()
        assert found == list(sample.token_ids)
        answers.append(tuple(found))
    assert len(set(answers)) > 5


def test_a_base_is_named_by_its_hub_id_or_by_a_path_from_the_folder(base: Path, adapter: Path, tmp_path: Path) -> None:
    assert "its base is ../" in export(adapter, tmp_path / "out", merge=False)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert (tmp_path / "out" / config["base_model_name_or_path"]).resolve() == base.resolve()
    for as_published in (True, False):
        facts = {"hub_name": "org/model", "commit": "0123abc", "as_published": as_published}
        directory = build_model(tmp_path / str(as_published), name="hub-0001")
        directory.joinpath("manifest.json").unlink()
        on_hub = adapter_of(commit_artifact(directory, "model", "base", **facts))
        note = export(on_hub, tmp_path / f"out-{as_published}", merge=False)
        config = json.loads((tmp_path / f"out-{as_published}" / "adapter_config.json").read_text())
        named = (config["base_model_name_or_path"], config["revision"]) == ("org/model", "0123abc")
        assert (named, note == "") == (as_published, as_published)


def test_a_path_is_absolute_where_nothing_is_in_common() -> None:
    assert path_to_base(Path("/store/artifacts/base-1"), Path("/store/out"))[0] == "../artifacts/base-1"
    name, note = path_to_base(Path("/store/artifacts/base-1"), Path("/home/out"))
    assert name == "/store/artifacts/base-1" and "on this machine alone" in note


@pytest.mark.parametrize("merge", [True, False])
def test_a_reward_model_is_exported_without_a_false_alarm(
    merge: bool, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    reward = base.with_name(f"reward_model_on_{base.name}")
    reward = reward if reward.is_dir() else adapter_of(base, "reward_model")
    caplog.clear()
    capfd.readouterr()
    export(reward, tmp_path / "out", merge=merge)
    head = load_reward_model(reward).score.modules_to_save["default"].weight
    shown = "".join(capfd.readouterr()) + caplog.text
    assert "MISSING" not in shown and "UNEXPECTED" not in shown and "newly" not in shown
    if merge:
        weights = load_file(tmp_path / "out" / "model.safetensors")
        torch.testing.assert_close(weights["score.weight"].float(), head.float(), atol=1e-2, rtol=1e-2)
