"""Updates of direct preference optimisation; losses and metrics cost no synchronisation before they are logged.

P pairs of a micro-batch, B their responses, chosen ones first, T positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from trl.trainer.utils import FusedCausalLMOutput

from posttrain.data.records import IGNORED
from posttrain.models.shared_prompts import along_tree
from posttrain.train.engine.first_step import require_fused_log_probs, require_shared_log_probs
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.maths.pair_losses import PairOptions, PairScores, pair_losses
from posttrain.train.nets.policy import balance_coefficient


class DpoTrainer(StageTrainer):
    """Trains a policy with a fused output layer on pairs whose reference log-probabilities come with the rows."""

    loss_is_scaled_for_ga = False

    def __init__(self, *, weight_of: Mapping[str, float], options: PairOptions, weighted: bool, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`.

        ``weight_of`` are the losses; ``weighted`` multiplies them by how likely the policy itself was to give the pair.
        """
        super().__init__(**theirs)
        self.weight_of, self.options, self.weighted = weight_of, options, weighted
        self.balance = balance_coefficient(self.model)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.can_return_loss = True  # or an evaluation would look for labels

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that the fused output layer is the model's own, and that responses which share a prompt keep apart."""
        if "groups" in inputs:
            row = inputs["row_ids"], inputs["row_labels"], inputs["groups"]
            require_shared_log_probs(model, row, partial(scores_of_row, model, inputs), "train.dpo", self.args.bf16)
        require_fused_log_probs(model, inputs["input_ids"], "train.dpo")

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of a micro-batch's pairs, and count rewards and log-probabilities."""
        mode, counted_P = ("train" if model.training else "eval"), inputs["counted"]
        asked = {"output_router_logits": True} if self.balance else {}
        outputs = scores_of_responses(model, inputs) if "groups" in inputs else scores_of_pairs(model, inputs, **asked)
        trained_BT = inputs["completion_mask"][:, 1:].bool()
        scores = pair_scores(outputs, trained_BT, inputs, self.weighted)
        if mode == "eval":  # fillers are among held-out rows alone
            scores, trained_BT = scores.only(counted_P), trained_BT & counted_P.repeat(2)[:, None]
        losses_P = pair_losses(scores, self.weight_of, self.options)
        loss = losses_P.sum() / max(len(losses_P), 1)
        if mode == "train":
            loss = loss * self.plan.weight(len(losses_P))
        if self.balance and outputs.aux_loss is not None:
            loss = loss + self.balance * outputs.aux_loss
            self.sums.add(mode, "aux_loss", outputs.aux_loss, 1)
        if mode == "eval":
            self.sums.add(mode, "loss", loss * len(losses_P), len(losses_P))
        self._note(mode, scores, outputs, trained_BT)
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def _note(self, mode: str, scores: PairScores, outputs: Any, trained_BT: Tensor) -> None:
        """Add a micro-batch to the metrics."""
        pairs = len(scores.chosen)
        chosen_P = self.options.beta * (scores.chosen - scores.ref_chosen)
        rejected_P = self.options.beta * (scores.rejected - scores.ref_rejected)
        for name, values_P in {
            "rewards/chosen": chosen_P,
            "rewards/rejected": rejected_P,
            "rewards/accuracies": chosen_P > rejected_P,
            "rewards/margins": chosen_P - rejected_P,
            "logps/chosen": scores.chosen,
            "logps/rejected": scores.rejected,
        }.items():
            self.sums.add(mode, name, values_P.double().sum(), pairs)
        self.sums.add(mode, "entropy", (outputs.entropy * trained_BT).sum(), trained_BT.sum())
        top1_PT, _ = (outputs.is_top1.bool() & trained_BT).chunk(2)
        self.sums.add(mode, "mean_token_accuracy", top1_PT.sum(), trained_BT.chunk(2)[0].sum())
        if outputs.mean_logits is not None:
            logits_BT = outputs.mean_logits * trained_BT
            for side, logits_PT, trained_PT in zip(
                ("chosen", "rejected"), logits_BT.chunk(2), trained_BT.chunk(2), strict=True
            ):
                self.sums.add(mode, f"logits/{side}", logits_PT.sum(), trained_PT.sum())


def scores_of_pairs(model: Any, inputs: dict[str, Any], **asked: Any) -> Any:
    """Return what the fused output layer gives for the responses of `collate_pairs`."""
    labels_BT = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, IGNORED)
    mask = {name: inputs[name] for name in ("attention_mask",) if name in inputs}
    return model(input_ids=inputs["input_ids"], labels=labels_BT, use_cache=False, fused_lm_head=True, **mask, **asked)


def scores_of_row(model: Any, inputs: dict[str, Any]) -> Any:
    """Return what the fused output layer gives for every token but the first of a row of shared prompts."""
    told = along_tree(getattr(model, "module", model), inputs["groups"], inputs["row_ids"].device)
    labels_1T = inputs["row_labels"]
    return model(input_ids=inputs["row_ids"], labels=labels_1T, use_cache=False, fused_lm_head=True, **told)


def scores_of_responses(model: Any, inputs: dict[str, Any]) -> FusedCausalLMOutput:
    """Return the scores of `collate_shared_pairs`'s responses as `scores_of_pairs` lays them out.

    They are nought where a response has no token.
    """
    outputs, trained_BT = scores_of_row(model, inputs), inputs["completion_mask"][:, 1:].bool()
    of_responses = {}
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
        scores_1T = getattr(outputs, name)
        if scores_1T is not None:
            of_responses[name] = scores_1T[0][inputs["place"]].masked_fill(~trained_BT, 0)
    return FusedCausalLMOutput(**of_responses)


def pair_scores(outputs: Any, trained_BT: Tensor, inputs: dict[str, Any], weighted: bool) -> PairScores:
    """Return the sums over each response's tokens, beside those of the reference."""
    chosen_P, rejected_P = outputs.log_probs.sum(1).chunk(2)
    tokens_B = trained_BT.sum(1)
    chosen_tokens_P, rejected_tokens_P = tokens_B.chunk(2)
    weights_P = None
    if weighted:
        with torch.no_grad():
            aligned_BT = (outputs.log_probs - outputs.log_sum_sq_probs) * trained_BT
            first_P, second_P = (aligned_BT.sum(1) / tokens_B.clamp(min=1)).exp().chunk(2)
            weights_P = first_P * second_P
    return PairScores(
        chosen_P,
        rejected_P,
        inputs["ref_chosen_logps"],
        inputs["ref_rejected_logps"],
        chosen_tokens_P,
        rejected_tokens_P,
        weights_P,
    )
