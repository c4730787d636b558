"""An adapter in PEFT's format is merged into the model that it names, or refused in one line before that is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from build_artifacts import build_model
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from posttrain.models.published_adapter import base_of, is_adapter_folder, merged_with_base, trained_rows
from posttrain.stage.errors import UsageError

KNOWN = 320
"""Tokens of the model."""
IDS_BT = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("published"))


def publish(folder: Path, model: Path, more_tokens: int = 0, **options: Any) -> tuple[Path, Any]:
    """Write an adapter as peft does, and return its folder and what it computes."""
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(model)
    if more_tokens:
        base.resize_token_embeddings(KNOWN + more_tokens, mean_resizing=False)
    settings: dict[str, Any] = {"target_modules": ["q_proj"], "init_lora_weights": False, "task_type": "CAUSAL_LM"}
    adapted = get_peft_model(base, LoraConfig(**{**settings, **options})).eval()
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": f"../{model.name}"}))
    return folder, adapted


@torch.no_grad()
def logits(model: Any, ids_BT: Tensor) -> Tensor:
    return model.eval()(ids_BT, use_cache=False).logits


@pytest.mark.parametrize(
    ("more", "options"),
    [
        (0, {}),
        (3, {"modules_to_save": ["embed_tokens", "lm_head"]}),
        (2, {"trainable_token_indices": {"embed_tokens": [KNOWN, KNOWN + 1], "lm_head": [KNOWN, KNOWN + 1]}}),
    ],
)
def test_it_is_merged_with_the_embeddings_that_it_brings(model: Path, more: int, options: dict[str, Any]) -> None:
    folder, adapted = publish(model.with_name(f"adapter{more}"), model, more, **options)
    assert is_adapter_folder(folder) and not is_adapter_folder(model)
    base = base_of(folder)
    assert base.resolve() == model.resolve()
    merged = merged_with_base(folder, base, trust_remote_code=False)
    assert merged.get_input_embeddings().weight.shape[0] == KNOWN + more
    ids_BT = torch.cat([IDS_BT, torch.tensor([[KNOWN + more - 1]])], 1)
    torch.testing.assert_close(logits(merged, ids_BT), logits(adapted, ids_BT), atol=1e-5, rtol=1e-5)
    assert trained_rows(folder) == ({KNOWN, KNOWN + 1} if more == 2 else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3; only LORA is merged here"),
        ({"task_type": "SEQ_CLS"}, "task_type SEQ_CLS, not for a language model"),
        ({"base_model_name_or_path": "../gone"}, r"base_model_name_or_path is '../gone', and no such folder"),
        ({"base_model_name_or_path": None}, r"base_model_name_or_path is '', and no such folder"),
        ({"base_model_name_or_path": "org/never-seen"}, r"an adapter on org/never-seen: not in the local cache"),
        ({"base_model_name_or_path": "../four-bit"}, "four-bit are quantised, so nothing can be merged"),
        ({"base_model_name_or_path": "../refused"}, "refused is an adapter, too"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_a_model_is_read(
    model: Path, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = model.with_name("refused")
    if not folder.is_dir():
        publish(folder, model)
        model.with_name("four-bit").mkdir()
        quantised = {"quantization_config": {"load_in_4bit": True}}
        (model.with_name("four-bit") / "config.json").write_text(json.dumps(quantised))
    config = json.loads((folder / "adapter_config.json").read_text())
    changed = folder.with_name("changed")
    changed.mkdir(exist_ok=True)
    (changed / "adapter_config.json").write_text(json.dumps({**config, **change}))
    (changed / "adapter_model.safetensors").touch()
    with pytest.raises(UsageError, match=message):
        base_of(changed)


def test_pickled_weights_and_another_base_are_refused(model: Path) -> None:
    folder, _ = publish(model.with_name("odd"), model)
    other = build_model(model.parents[1], name="other-0001", shape={"hidden_size": 64})
    with pytest.raises(UsageError, match=r"the adapter does not fit .*other-0001"):
        merged_with_base(folder, other, trust_remote_code=False)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(UsageError, match=r"no adapter_model.safetensors; pickled weights are never opened"):
        base_of(folder)
