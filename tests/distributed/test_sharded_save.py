"""Whole models are written a layer at a time, as `save_pretrained` would write them."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from build_artifacts import build_model
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2MoeConfig, Qwen2MoeForCausalLM

from posttrain.train.checkpoints.whole_weights import save_whole_model

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 4}


def random_model(family: str) -> Any:
    torch.manual_seed(0)
    if family == "experts":  # fused in memory, one by one in files
        return Qwen2MoeForCausalLM(Qwen2MoeConfig(**SHAPE, **EXPERTS, num_experts_per_tok=2))
    return LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=family == "tied"))


@pytest.mark.parametrize("rounded_to", [None, torch.bfloat16])
@pytest.mark.parametrize("family", ["tied", "untied", "experts"])
def test_one_process_writes_the_bytes_of_save_pretrained(
    tmp_path: Path, family: str, rounded_to: torch.dtype | None
) -> None:
    model = random_model(family)
    copy.deepcopy(model).to(rounded_to or torch.float32).save_pretrained(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    save_whole_model(model, tmp_path / "ours", main_process=True, rounded_to=rounded_to)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes(), name


def save_on_two_ranks(output: Path, family: str, shard_bytes: int) -> int:
    """Write a model that FSDP has spread over two processes; returns what the first held at most, in bytes."""
    output.mkdir()
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid:
            children.append(pid)
            continue
        code = 1
        try:
            dist.init_process_group("gloo", init_method=f"file://{output}.rendezvous", rank=rank, world_size=2)
            model = random_model(family)
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)
            held = save_whole_model(model, output, rank == 0, shard_bytes)
            if rank == 0:
                output.with_suffix(".held").write_text(str(held))
            dist.barrier()
            code = 0
        finally:
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0]
    return int(output.with_suffix(".held").read_text())


@pytest.mark.parametrize("family", ["tied", "untied", "experts"])
def test_the_first_rank_holds_a_shard_and_a_layer_at_most(tmp_path: Path, family: str) -> None:
    whole = random_model(family)
    shard_bytes = 20_000
    held = save_on_two_ranks(tmp_path / "shards", family, shard_bytes)
    layer = max(sum(p.nbytes for p in layer.parameters()) for layer in whole.model.layers)
    largest = max(layer, whole.lm_head.weight.nbytes)
    assert held <= shard_bytes + largest < sum(p.nbytes for p in whole.parameters())
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = {path.name for path in (tmp_path / "shards").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert all(path.stat().st_size < shard_bytes + largest for path in (tmp_path / "shards").glob("*.safetensors"))
    if family == "tied":
        assert "lm_head.weight" not in index["weight_map"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "shards")
    for name, parameter in whole.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter), name


def test_an_artifact_is_what_save_pretrained_writes_of_it(tmp_path: Path) -> None:
    artifact = build_model(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(artifact)
    (tmp_path / "again").mkdir()
    save_whole_model(model, tmp_path / "again", main_process=True)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (artifact / "model.safetensors").read_bytes()
