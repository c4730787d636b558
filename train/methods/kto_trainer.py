"""Updates of Kahneman-Tversky optimisation, with one reference point for all micro-batches and ranks of a step.

B rows of a micro-batch, T positions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from posttrain.models.load import evaluating
from posttrain.stage import heartbeat
from posttrain.train.engine.first_step import require_fused_log_probs
from posttrain.train.engine.metrics import RatioSums
from posttrain.train.engine.trainer import StageTrainer
from posttrain.train.maths.unpaired_loss import reference_point

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of log-ratios, which rows are desirable, and the reference point, the loss of each row."""
MARGIN = ("rewards/margins", "rewards/chosen", "rewards/rejected")
"""The margin's name, and what it is the difference of; TRL's names for desirable and undesirable rows."""


class LabelSums(RatioSums):
    """Ratios of rows by label; a label that no row had is left out, and the margin is there when none is."""

    def take(self, mode: str) -> dict[str, float]:
        """Return every ratio over all ranks, and start again from nothing."""
        found = {name: value for name, value in super().take(mode).items() if not math.isnan(value)}
        name, chosen, rejected = MARGIN
        if chosen in found and rejected in found:
            found[name] = found[chosen] - found[rejected]
        return found


class KtoTrainer(StageTrainer):
    """Trains a policy with a fused output layer on what `collate_unpaired` makes.

    The reference point is the mean log-ratio of the mismatched responses of the whole global batch, or of the whole
    held-out split in an evaluation. It is computed before the first micro-batch of a step, so the micro-batch and the
    number of processes change nothing.
    """

    def __init__(self, *, loss: Loss, beta: float, **theirs: Any) -> None:
        """``theirs`` are the arguments of `StageTrainer`; ``beta`` scales the rewards that are logged."""
        super().__init__(**theirs)
        self.loss, self.beta = loss, beta
        self.points: dict[str, Tensor] = {}
        """The reference point of the present step, and of the present evaluation."""
        self.sums = LabelSums(self.args.device)
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.can_return_loss = True  # or an evaluation would look for labels

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check that the fused output layer is the model's own."""
        require_fused_log_probs(model, inputs["input_ids"], "train.kto")

    # The reference point.

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """Return the micro-batches of the next step, for which the reference point is found."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            started = time.monotonic()
            self._find_point("train", batches)
            self._run_seconds += time.monotonic() - started
        return batches, items

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate on the held-out split, for which the reference point is found first."""
        self._find_point("eval", self.get_eval_dataloader())
        metrics: dict[str, float] = super().evaluate(*args, **kwargs)
        return metrics

    @torch.no_grad()
    def _find_point(self, mode: str, batches: Iterable[dict[str, Tensor]]) -> None:
        """Set the reference point to the mean log-ratio of mismatched responses over all ranks, but no less than 0."""
        found = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with evaluating(self.model_wrapped), self.compute_loss_context_manager():
            for batch in batches:
                if mode == "eval":
                    self.obey_stop_in_evaluation()
                else:
                    heartbeat.beat("reference point", self.state.global_step, self.plan.max_steps)
                inputs = self._prepare_input(batch)
                logps_B = self._outputs(self.model_wrapped, inputs, "mismatched_").log_probs.sum(-1)
                ratios_B = (logps_B - inputs["ref_mismatched_logps"]) * inputs["counted"]
                found += torch.stack([ratios_B.sum(), inputs["counted"].sum()]).double()
        total, count = self.accelerator.reduce(found, reduction="sum")
        self.points[mode] = reference_point(total, count)
        self.sums.add(mode, "kl", self.points[mode], 1)

    def _outputs(self, model: Any, inputs: dict[str, Tensor], prefix: str = "") -> Any:
        mask = inputs.get(f"{prefix}attention_mask")
        return model(
            input_ids=inputs[f"{prefix or 'input_'}ids"],
            labels=inputs[f"{prefix}targets"],
            use_cache=False,
            fused_lm_head=True,
            **({} if mask is None else {"attention_mask": mask}),
        )

    # The update.

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean loss of a micro-batch's rows, and count rewards and log-probabilities by label."""
        mode, counted_B = ("train" if model.training else "eval"), inputs["counted"]
        outputs = self._outputs(model, inputs)
        logps_B = outputs.log_probs.sum(-1)
        ratios_B = logps_B - inputs["ref_logps"]
        losses_B = self.loss(ratios_B, inputs["desirable"], self.points[mode]) * counted_B
        for side, among_B in (("chosen", inputs["desirable"]), ("rejected", ~inputs["desirable"])):
            rows_B = among_B & counted_B
            self.sums.add(mode, f"rewards/{side}", self.beta * ratios_B[rows_B].double().sum(), rows_B.sum())
            self.sums.add(mode, f"logps/{side}", logps_B[rows_B].double().sum(), rows_B.sum())
        trained_BT = (inputs["targets"][:, 1:] >= 0) & counted_B[:, None]
        self.sums.add(mode, "entropy", (outputs.entropy * trained_BT).sum(), trained_BT.sum())
        if mode == "eval":
            self.sums.add(mode, "loss", losses_B.sum(), counted_B.sum())
        loss = losses_B.sum() / counted_B.sum().clamp(min=1)
        if mode == "train":
            loss = loss * self.plan.weight(len(losses_B))
        return (loss, {}) if return_outputs else loss
