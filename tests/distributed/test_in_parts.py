"""Frozen weights in parts: the same bits while they are whole, a share of the memory in between."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from posttrain.train.nets.in_parts import InParts

RANKS = 2


def on_ranks(check: Callable[[int], None]) -> None:
    """Run a check on two forked ranks of a group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    children = []
    for rank in range(RANKS):
        if pid := os.fork():
            children.append(pid)
            continue
        code = 1
        try:
            torch.set_num_threads(1)
            dist.init_process_group("gloo", init_method=where, rank=rank, world_size=RANKS)
            check(rank)
            code = 0
        finally:
            os._exit(code)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * RANKS


def held(model: nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())


def test_the_weights_are_whole_inside_and_gone_outside() -> None:
    def check(rank: int) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7, bias=False), nn.LayerNorm(7))  # odd sizes, one tied
        model[1].weight = model[0].weight
        model.append(nn.Linear(7, 1).to(torch.bfloat16)).requires_grad_(False)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        parts = InParts(model.parameters())
        for _ in range(2):
            assert held(model) == 0
            with parts.whole():
                assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
                assert model[1].weight is model[0].weight
        own = sum(part.untyped_storage().nbytes() for _, _, part in parts._held)
        weights = 21 * 4 + 2 * 7 * 4 + 7 * 2 + 2
        assert weights / RANKS <= own < weights / RANKS + 4 * len(parts._held)
        if rank == 0:
            assert parts._held[0][2].tolist() == before["0.weight"].flatten()[:11].tolist()

    on_ranks(check)
