"""Policies by what they gained and how far they drifted for it: the rows of a report, and its figures' points."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.evaluate.measure.drift_scores import (
    SampledResponse,
    compare_responses,
    read_responses,
    summarise_responses,
)
from posttrain.evaluate.page.lineage import PARENT_MODEL, Lineage, Node
from posttrain.sample.choose.ensemble import combined
from posttrain.sample.config.ensemble import EnsembleConfig

REFERENCE = "reference"
"""Name of the input that a drift artifact measures the distance to."""
REWARD = "reward"
"""Name of the input of training that rewards, and beginning of those of an ensemble."""
REWARD_MODEL = "reward_model"
"""The same of a drift artifact."""
WAY_NAMES = {"mean": "mean", "worst": "worst", "uncertainty": "mean less variance"}
METHOD_NAMES = {
    "train.base": "base model",
    "train.sft": "SFT",
    "train.dpo": "DPO",
    "train.kto": "KTO",
    "train.ppo": "PPO",
    "train.rloo": "RLOO",
    "train.grpo": "GRPO",
}


@dataclasses.dataclass(frozen=True)
class Drift:
    """One policy, measured against its reference."""

    label: str
    model: str
    """Node id of the policy."""
    reference: str
    """Node id of the reference."""
    reference_label: str
    method: str
    """The kind of training that made the policy."""
    figures: dict[str, Any]
    """`summarise_responses` of its responses."""
    change: dict[str, Any] | None
    """`compare_responses` with those of the reference itself; None without them, and for the reference."""

    @property
    def is_origin(self) -> bool:
        """Whether the policy is its own reference: the point that others start from."""
        return self.model == self.reference

    def as_dict(self) -> dict[str, Any]:
        """Return what the report's summary keeps."""
        return {
            "model": Path(self.model).name,
            "reference": Path(self.reference).name,
            "method": self.method,
            "figures": self.figures,
            "change": self.change,
        }


def drifts_of(lineage: Lineage, confidence: float, resamples: int, seed: int) -> list[Drift]:
    """Return the policies that the drift artifacts of a lineage are about.

    They stand by reference, the reference itself first, then by method, then in order of KL. Changes are against what
    the reference itself said, where an artifact with it as both `model` and `reference` is there.
    """
    labels = lineage.labels()
    nodes = lineage.of_kind("drift")
    responses = {node.id: read_responses(_directory(node)) for node in nodes}
    origins = {
        node.parents[REFERENCE]: responses[node.id] for node in nodes if node.parents[PARENT_MODEL] == _reference(node)
    }
    models = [node.parents[PARENT_MODEL] for node in nodes]
    found = []
    for node, model in zip(nodes, models, strict=True):
        proxied = _proxied(lineage.nodes[model], node)
        own, reference = proxied(responses[node.id]), _reference(node)
        change = None
        if reference in origins and model != reference:
            change = compare_responses(proxied(origins[reference]), own, confidence, resamples, seed)
        found.append(
            Drift(
                label=labels[model] if models.count(model) == 1 else f"{labels[model]} ({labels[node.id]})",
                model=model,
                reference=reference,
                reference_label=labels[reference],
                method=_method(lineage.nodes[model]),
                figures=summarise_responses(own, confidence, resamples, seed),
                change=change,
            )
        )
    return sorted(found, key=lambda d: (d.reference, not d.is_origin, d.method, d.figures["kl"]["value"], d.label))


def _directory(node: Node) -> Path:
    assert node.directory is not None
    return node.directory


def _reference(node: Node) -> str:
    return node.parents[REFERENCE]


def _method(model: Node) -> str:
    if model.manifest is None:
        return model.stage
    method = METHOD_NAMES.get(model.manifest.run, model.manifest.run)
    judges = _judges(model, REWARD)
    return f"{method}, {WAY_NAMES[_ensemble(model).combine]} of {len(judges)}" if len(judges) > 1 else method


def _judges(node: Node, name: str) -> list[str]:
    """Return the node ids of the reward models that a stage was given, in the order of their names."""
    return [node.parents[key] for key in sorted(node.parents) if key == name or key.startswith(f"{name}_")]


def _ensemble(model: Node) -> EnsembleConfig:
    """Return how the reward models of a stage became one."""
    terms = model.manifest.config.get("rewards", []) if model.manifest is not None else []
    return next((EnsembleConfig(**term["ensemble"]) for term in terms if term.get("ensemble")), EnsembleConfig())


def _proxied(model: Node, drift: Node) -> Callable[[list[SampledResponse]], list[SampledResponse]]:
    """Return what gives responses the reward that a policy was trained on, out of those in a drift artifact.

    They are left without one where the policy has learnt from none, or from one that was not asked.
    """
    asked, trained_on = _judges(drift, REWARD_MODEL), _judges(model, REWARD)
    if not trained_on or not {*trained_on} <= {*asked}:
        return lambda responses: responses
    places, ensemble = [asked.index(one) for one in trained_on], _ensemble(model)

    def proxied(responses: list[SampledResponse]) -> list[SampledResponse]:
        if any(one.rewards is None or len(one.rewards) != len(asked) for one in responses):
            return responses
        rewards_MN = np.array([one.rewards for one in responses]).T[places]
        together = combined(rewards_MN, ensemble.combine, ensemble.penalty).tolist()
        return [one._replace(proxy=reward) for one, reward in zip(responses, together, strict=True)]

    return proxied


def by_reference(drifts: Sequence[Drift]) -> dict[str, list[Drift]]:
    """Return the policies by the label of their reference, in the order given."""
    found: dict[str, list[Drift]] = {}
    for drift in drifts:
        found.setdefault(drift.reference_label, []).append(drift)
    return found
