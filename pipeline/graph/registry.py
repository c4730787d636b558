"""The stage types: which module runs each, what it consumes and what it makes."""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any


@dataclasses.dataclass(frozen=True)
class Input:
    """One named input of a stage type."""

    kinds: tuple[str, ...]
    required: bool = True
    many: bool = False
    """Whether there may be more of them, under names that begin with its own and an underscore."""


@dataclasses.dataclass(frozen=True)
class StageType:
    """What the engine must know of a stage before it imports its module."""

    run: str
    """Name in the configuration, such as ``train.sft``; the module is ``posttrain.<run>``."""
    config_class: str
    """Schema, in the module of the folder's ``config`` that has the stage's name."""
    kind: str
    """Kind of the artifact that it makes."""
    inputs: dict[str, Input] = dataclasses.field(default_factory=dict)
    any_inputs: tuple[str, ...] = ()
    """Kinds that it takes under names of the user's choice."""
    accelerate: bool = False
    """Whether `accelerate launch` starts it, on one or many processes."""
    shares: bool = False
    """Whether many processes may share its rows out, each with a whole model, where training has as many."""
    device: bool = False
    """Whether it computes on the accelerator, and so shares it with other such stages."""
    device_with: str | None = None
    """The input with which it does so; without it, it does not."""

    def input(self, name: str) -> Input | None:
        """Return what it takes under a name; None where it takes nothing."""
        if name in self.inputs:
            return self.inputs[name]
        several = (one for key, one in self.inputs.items() if one.many and name.startswith(f"{key}_"))
        return next(several, Input(self.any_inputs) if self.any_inputs else None)

    @property
    def module(self) -> str:
        """Dotted name of the module that runs the stage."""
        return f"posttrain.{self.run}"

    def schema(self) -> type[Any]:
        """Return the configuration class; importing it imports no torch."""
        folder, _, name = self.run.partition(".")
        schema: type[Any] = getattr(importlib.import_module(f"posttrain.{folder}.config.{name}"), self.config_class)
        return schema


def _trained(run: str, config_class: str, kind: str, **more: Input) -> StageType:
    inputs = {"model": Input(("model",)), "data": Input(("tokens",)), **more}
    return StageType(run, config_class, kind, inputs, accelerate=True, device=True)


_REWARDED = {
    "reward": Input(("reward_model",), required=False, many=True),
    "verifier": Input(("reward_model",), required=False),
}
_TYPES = (
    StageType("data.demo", "DemoConfig", "sources"),
    StageType("data.spoil", "SpoilConfig", "sources", {"sources": Input(("sources",))}),
    StageType("data.openings", "OpeningsConfig", "sources"),
    StageType("data.safety", "SafetyConfig", "sources"),
    StageType("data.owners", "OwnersConfig", "sources"),
    StageType(
        "data.curate",
        "CurateConfig",
        "dataset",
        {"sources": Input(("sources",), required=False)},
        any_inputs=("dataset",),
    ),
    StageType(
        "data.retrieve", "RetrieveConfig", "dataset", {"corpus": Input(("dataset",)), "data": Input(("dataset",))}
    ),
    StageType("data.contrast", "ContrastConfig", "dataset", {"data": Input(("dataset",))}),
    StageType("data.tokenize", "TokenizeConfig", "tokens", {"data": Input(("dataset",)), "model": Input(("model",))}),
    StageType(
        "sample.rank",
        "RankConfig",
        "sources",
        {"model": Input(("model",)), "prompts": Input(("dataset",))},
        device=True,
        shares=True,
    ),
    StageType(
        "sample.generate",
        "GenerateConfig",
        "sources",
        {
            "model": Input(("model",)),
            "prompts": Input(("dataset",)),
            "reward_model": Input(("reward_model",), required=False),
        },
        device=True,
        shares=True,
    ),
    StageType("train.base", "BaseConfig", "model", {"data": Input(("dataset",), required=False)}),
    _trained("train.sft", "SftConfig", "model"),
    _trained("train.reward", "RewardConfig", "reward_model"),
    _trained("train.reference", "ReferenceConfig", "reference_logps"),
    _trained("train.dpo", "DpoConfig", "model", reference=Input(("reference_logps",))),
    _trained("train.kto", "KtoConfig", "model", reference=Input(("reference_logps",))),
    _trained("train.ppo", "PpoConfig", "model", **_REWARDED),
    _trained("train.rloo", "RlooConfig", "model", **_REWARDED),
    _trained("train.grpo", "GrpoConfig", "model", **_REWARDED),
    StageType(
        "evaluate.policy",
        "PolicyEvaluationConfig",
        "scores",
        {
            "model": Input(("model",)),
            "data": Input(("tokens",), required=False),
            "items": Input(("dataset",), required=False),
        },
        device=True,
        shares=True,
    ),
    StageType(
        "evaluate.reward",
        "RewardEvaluationConfig",
        "scores",
        {"model": Input(("reward_model",), many=True), "data": Input(("tokens",))},
        device=True,
    ),
    StageType(
        "evaluate.best_of_n",
        "BestOfNConfig",
        "selection",
        {
            "model": Input(("model",)),
            "reward_model": Input(("reward_model",), many=True),
            "items": Input(("dataset",)),
        },
        device=True,
        shares=True,
    ),
    StageType(
        "evaluate.drift",
        "DriftConfig",
        "drift",
        {
            "model": Input(("model",)),
            "reference": Input(("model",)),
            "items": Input(("dataset",)),
            "reward_model": Input(("reward_model",), required=False, many=True),
        },
        device=True,
    ),
    StageType(
        "evaluate.judge",
        "JudgeConfig",
        "judgement",
        {
            "before": Input(("scores",), required=False),
            "after": Input(("scores",), required=False),
            "human": Input(("dataset",), required=False),
            "judge": Input(("model",), required=False),
        },
        device_with="judge",
    ),
    StageType(
        "evaluate.gate",
        "GateConfig",
        "verdict",
        {
            "before": Input(("scores", "drift")),
            "after": Input(("scores", "drift")),
            "drift": Input(("drift",), required=False),
        },
    ),
    StageType("evaluate.data", "DataPageConfig", "data_page", any_inputs=("dataset",)),
    StageType(
        "evaluate.report",
        "ReportConfig",
        "report",
        any_inputs=(
            *("scores", "drift", "selection", "judgement", "verdict", "model", "reward_model"),
            *("dataset", "tokens", "data_page"),
        ),
    ),
)

STAGE_TYPES: dict[str, StageType] = {stage_type.run: stage_type for stage_type in _TYPES}
