"""Memory of a training stage under a setting: the model that learns, and the models and caches beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from posttrain.plan.memory import AdapterKind, Dtype, MemoryEstimate, estimate_memory, head_bytes
from posttrain.plan.model import Head, ModelShape, count_adapter, count_parameters, kv_bytes


@dataclasses.dataclass(frozen=True)
class Setting:
    """What of a stage may change so that it fits."""

    micro_batch: int
    checkpointing: bool
    adapter: AdapterKind
    dtype: Dtype
    zero: int | None
    """Stage of ZeRO; 3 is also FSDP, None one process or DDP."""
    offload: bool = False


@dataclasses.dataclass(frozen=True)
class Rollouts:
    """What sampling adds to a stage."""

    response_tokens: int
    """Most tokens of a response."""
    batch: int
    """Responses that one process samples at once."""
    reference: bool
    """A frozen copy of the start, unless an adapter can be switched off instead."""
    reward: ModelShape | None = None
    """Of the reward model, which is whole on every process."""
    critic: ModelShape | None = None
    """Trained whole beside the policy, whatever the policy's adapter is."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What the memory of a training stage follows from, beside its setting."""

    shape: ModelShape
    head: Head
    row_tokens: int
    """Most tokens of a row: of a prompt with all its responses, or with each of them where it is not shared."""
    processes: int
    rank: int = 16
    target_modules: str | Sequence[str] = "all-linear"
    rollouts: Rollouts | None = None
    share: int | None = None
    """Rows of a global batch that a process has; None is not known."""
    on_cpu: bool = False

    def memory(self, setting: Setting) -> MemoryEstimate:
        """Return the peak of one process."""
        learns = self._estimate(self.shape, self.head, setting, setting.adapter)
        if self.rollouts is None:
            return learns
        parts = dataclasses.replace(
            learns,
            head=head_bytes(
                self.shape,
                setting.micro_batch * self.row_tokens,
                setting.dtype,
                trained=setting.adapter == "full",
                chosen=setting.micro_batch * self.rollouts.response_tokens,
            ),
            frozen=self._frozen(setting, self.rollouts),
            cache=self._cache(setting, self.rollouts),
        )
        if self.rollouts.critic is None:
            return parts
        critic = self._estimate(self.rollouts.critic, "score", setting, "full")
        added = ("parameters", "trainable", "weights", "gradients", "optimizer", "activations")
        return dataclasses.replace(parts, **{name: getattr(parts, name) + getattr(critic, name) for name in added})

    def adapter_parameters(self, kind: AdapterKind) -> int | None:
        """Return the parameters of the adapter; None where every weight is trained."""
        return None if kind == "full" else count_adapter(self.shape, self.rank, self.target_modules)

    def _estimate(self, shape: ModelShape, head: Head, setting: Setting, adapter: AdapterKind) -> MemoryEstimate:
        return estimate_memory(
            shape,
            tokens=setting.micro_batch * self.row_tokens,
            head=head,
            adapter=adapter,
            rank=self.rank,
            target_modules=self.target_modules,
            dtype=setting.dtype,
            gradient_checkpointing=setting.checkpointing,
            num_processes=self.processes,
            zero_stage=setting.zero,
            offload=setting.offload,
            kernels=not self.on_cpu,
            own_trunk=self.on_cpu and not shape.blocks,
            fresh=self.processes == 1 and setting.zero is None and setting.micro_batch == self.share,
        )

    def _frozen(self, setting: Setting, rollouts: Rollouts) -> int:
        """Return what models take that are not trained, in a rollout.

        Where weights are spread over processes, a copy of the policy and its critic samples, then one model after the
        other scores: each is whole in its turn, and what is not trained is in parts meanwhile.
        """
        policy = count_parameters(self.shape, self.head)
        frozen = [policy] if rollouts.reference and setting.adapter == "full" else []
        if rollouts.reward is not None:
            frozen.append(count_parameters(rollouts.reward, "score"))
        if setting.zero != 3:
            return sum(frozen) * _size(setting.dtype)
        critic = count_parameters(rollouts.critic, "score") if rollouts.critic is not None else 0
        if self.processes == 1:
            return (sum(frozen) + policy + critic) * _size(setting.dtype)
        in_parts = sum(frozen) + (policy if setting.adapter != "full" else 0)
        return (max(policy + critic, *frozen, 0) + in_parts // self.processes) * _size(setting.dtype)

    def _cache(self, setting: Setting, rollouts: Rollouts) -> int:
        return round(rollouts.batch * kv_bytes(self.shape, self.row_tokens, _size(setting.dtype)))


def _size(dtype: Dtype) -> int:
    return 2 if dtype == "bfloat16" else 4
