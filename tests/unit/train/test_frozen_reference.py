"""The reference beside a policy: what training started from, however far the policy has moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import build_model
from torch import Tensor

from posttrain.models.load import BASE_FILE, load_policy
from posttrain.stage.artifact import read_manifest
from posttrain.stage.files import write_json_atomic
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import AdapterConfig
from posttrain.train.nets.frozen_reference import reference_of
from posttrain.train.nets.policy import trainable_policy

IDS_BT = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("reference"), new_tokens=True)


@pytest.fixture(scope="module")
def adapted(model: Path) -> Path:
    """An adapter artifact that computes something else than its backbone."""
    directory = model.with_name("adapted-0001")
    policy = moved(load(model, "lora"))
    policy.save_pretrained(str(directory))
    write_json_atomic(directory / BASE_FILE, {"base": model.name, "digest": read_manifest(model).digest})
    return directory


def load(source: Path, kind: Any) -> Any:
    adapter = AdapterConfig(kind=kind, rank=4)
    return trainable_policy(source, adapter, "float32", "sdpa", Distributed(), "train.ppo").eval()


def moved(policy: Any) -> Any:
    """The policy after a step that changes what it computes."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return policy


@torch.no_grad()
def logits(model: Any) -> Tensor:
    return model(IDS_BT, use_cache=False).logits


@pytest.mark.parametrize(
    ("source", "kind"), [("model", "full"), ("model", "lora"), ("adapted", "lora"), ("adapted", "full")]
)
def test_the_reference_stays_where_training_started(source: str, kind: Any, request: pytest.FixtureRequest) -> None:
    start: Path = request.getfixturevalue(source)
    policy = load(start, kind)
    reference = reference_of(start, kind, "float32", "sdpa", torch.device("cpu"), Distributed())
    beside = reference.for_policy(policy)
    own = logits(moved(policy))
    with beside() as frozen:
        found = logits(frozen)
    torch.testing.assert_close(found, logits(load_policy(start).eval()), atol=1e-5, rtol=0)
    assert (found - own).abs().max() > 0.01
    torch.testing.assert_close(logits(policy), own, atol=0, rtol=0)


def test_a_policy_is_saved_without_its_reference(adapted: Path) -> None:
    policy = load(adapted, "lora")
    reference = reference_of(adapted, "lora", "float32", "sdpa", torch.device("cpu"), Distributed())
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    beside = reference.for_policy(policy)
    with beside():
        pass
    reference.release(policy)
    assert list(policy.peft_config) == ["default"]
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == trained
