"""Memory of a training stage under a setting: the model that learns, and the models and caches beside it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from posttrain.plan.figure import Figure, figure
from posttrain.plan.memory import AdapterKind, Dtype, MemoryEstimate, estimate_memory, head_bytes
from posttrain.plan.model import Head, ModelShape, count_adapter, count_parameters, kv_bytes
from posttrain.plan.optimizers import OptimizerKind
from posttrain.plan.parts import Options, part_figures


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
    reward_models: int = 1
    """How many there are of it, all alike."""
    verifier: ModelShape | None = None
    """Of the verifier, which is whole on every process too."""


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
    optimizer: OptimizerKind = "adamw"

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

    def figures(self, setting: Setting) -> list[Figure]:
        """Return the parts of the peak by formula; those of a critic after the policy's."""
        learns = self._estimate(self.shape, self.head, setting, setting.adapter)
        told = self._told(self.head, setting, setting.adapter, own_trunk=not self.shape.blocks)
        made = part_figures(self.shape, learns, told)
        rollouts = self.rollouts
        if rollouts is None:
            return made
        made = [item for item in made if item.name != "head"] + self._beside(setting, rollouts)
        if rollouts.critic is None:
            return made
        told = self._told("score", setting, "full", own_trunk=not rollouts.critic.blocks)
        critic = part_figures(rollouts.critic, self._estimate(rollouts.critic, "score", setting, "full"), told)
        return [*made, *(dataclasses.replace(item, name=f"{item.name} of the critic") for item in critic)]

    def _beside(self, setting: Setting, rollouts: Rollouts) -> list[Figure]:
        size, trained = _size(setting.dtype), 1 if setting.adapter == "full" else 0
        return [
            figure(
                "head",
                "B",
                "chosen · vocabulary · size + 4 · hidden · vocabulary · trained",
                "logits of the response tokens of a micro-batch, and the float32 gradient of the head's weights",
                chosen=setting.micro_batch * rollouts.response_tokens,
                vocabulary=self.shape.vocab_size,
                hidden=self.shape.hidden_size,
                trained=trained,
                size=size,
            ),
            figure(
                "frozen",
                "B",
                "parameters · size",
                "reference, reward model, and where weights are in parts a whole copy that samples",
                parameters=self._frozen(setting, rollouts) // size,
                size=size,
            ),
            figure(
                "cache",
                "B",
                "batch · sequence",
                "keys and values of responses that are sampled at once; gone when the updates begin",
                batch=rollouts.batch,
                sequence=kv_bytes(self.shape, self.row_tokens, size),
            ),
        ]

    def adapter_parameters(self, kind: AdapterKind) -> int | None:
        """Return the parameters of the adapter; None where every weight is trained."""
        return None if kind == "full" else count_adapter(self.shape, self.rank, self.target_modules)

    def _estimate(self, shape: ModelShape, head: Head, setting: Setting, adapter: AdapterKind) -> MemoryEstimate:
        return estimate_memory(shape, **vars(self._told(head, setting, adapter, own_trunk=not shape.blocks)))

    def _told(self, head: Head, setting: Setting, adapter: AdapterKind, own_trunk: bool) -> Options:
        return Options(
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
            own_trunk=self.on_cpu and own_trunk,
            optimizer=self.optimizer,
            fresh=self.processes == 1 and setting.zero is None and setting.micro_batch == self.share,
        )

    def _frozen(self, setting: Setting, rollouts: Rollouts) -> int:
        """Return what models take that are not trained, in a rollout.

        Where weights are spread over processes, a copy of the policy and its critic samples, then one model after the
        other scores: each is whole in its turn, and what is not trained is in parts meanwhile.
        """
        policy = count_parameters(self.shape, self.head)
        frozen = [policy] if rollouts.reference and setting.adapter == "full" else []
        for judge, models in ((rollouts.reward, rollouts.reward_models), (rollouts.verifier, 1)):
            if judge is not None:
                frozen += models * [count_parameters(judge, "score")]
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
