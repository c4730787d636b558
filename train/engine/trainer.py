"""What all our trainers add to those they extend: exact data order, crash-safe checkpoints, a NaN guard, one log."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from posttrain.models.load import evaluating
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context
from posttrain.stage.errors import NonFiniteLossError, StoppedError
from posttrain.stage.spec import Distributed
from posttrain.stage.tracking import Tracker
from posttrain.train.checkpoints.elastic import is_universal, seed_rank, separate_steps
from posttrain.train.checkpoints.protocol import commit_checkpoint, read_commit, rotate_checkpoints, staging_directory
from posttrain.train.engine.batching import BatchPlan, StepBatchSampler
from posttrain.train.engine.best import Best
from posttrain.train.engine.metrics import RatioSums, peak_memory
from posttrain.train.engine.optimizers import MUON, muon
from posttrain.train.engine.processes import (
    engine_in_use,
    kept_random_state,
    let_accelerate_shard_on_cpu,
    require_engine,
)
from posttrain.train.engine.signals import StopOnSignal
from posttrain.train.rows.columns import lengths_of

log = logging.getLogger(__name__)

_COUNTERS = "counters.json"
GO_ON = "a checkpoint is saved; run the same command to go on"


class StageTrainer(Trainer):
    """What a stage trains with; also a mixin in front of TRL's: ``class SftTrainer(StageTrainer, trl.SFTTrainer)``."""

    _saving = False

    def __init__(self, *, plan: BatchPlan, context: Context, keep_checkpoints: int, **theirs: Any) -> None:
        """``theirs`` are the arguments of the trainer behind this mixin."""
        super().__init__(**theirs)
        self.plan = plan
        self.tracker: Tracker = context.tracker
        self.distributed: Distributed = context.spec.distributed
        self.keep_checkpoints = keep_checkpoints
        self.sums = RatioSums(self.args.device)
        self.stop = StopOnSignal()
        self.best = Best()
        self.tokens_seen = 0
        self._run_tokens = 0
        self._logged_tokens = 0
        self._run_seconds = 0.0
        self.step_seconds = 0.0
        """Of all micro-batches since this process began."""
        self.step_tokens = 0
        """Tokens of all ranks in them."""
        self._losses: list[Tensor] = []
        self._rows: list[Tensor] = []
        self._tried = False
        self.remove_callback(PrinterCallback)
        self.add_callback(self.stop)

    # Processes: what `transformers` sets up has to be what was asked for.

    def create_accelerator_and_postprocess(self) -> None:
        """Create the accelerator; the one for FSDP needs CPU ranks to look like devices."""
        if self.args.fsdp:
            let_accelerate_shard_on_cpu()
        super().create_accelerator_and_postprocess()
        if self.args.bf16 and self.accelerator.is_fsdp2:  # accelerate's own also rounds gradients and log-probabilities
            # torch 2.13 cannot accumulate gradients in another precision beside frozen parameters
            frozen = any(not parameter.requires_grad for parameter in self.model.parameters())
            policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=None if frozen else torch.float32)
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = policy

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        if resume_from_checkpoint is not None and is_universal(Path(resume_from_checkpoint)):
            self.accelerator.deepspeed_plugin.deepspeed_config["checkpoint"] = {"load_universal": True}
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        require_engine(self.model_wrapped, self.distributed)
        return prepared

    # Data: the order is ours, so that it depends on the seed alone.

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset  # the data stage tokenized it

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return this rank's micro-batches of all steps."""
        rows: Any = self.train_dataset
        sampler = StepBatchSampler(self.plan, lengths_of(rows), self.args.seed, self.args.process_index)
        return DataLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _prepare_input(self, data: Any) -> Any:
        """Move a part of a batch to the device, as it is: `transformers` would round floats to bfloat16 for DeepSpeed.

        Reference log-probabilities and advantages lose all their digits that way.
        """
        if isinstance(data, Mapping):
            return {name: self._prepare_input(part) for name, part in data.items()}
        if isinstance(data, (list, tuple)):
            return [self._prepare_input(part) for part in data]
        return data.to(self.args.device) if isinstance(data, Tensor) else data

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        rows, num_tokens = inputs.pop("row"), inputs.pop("num_tokens")
        if self.model.training:
            self._rows.append(rows)
            self._run_tokens += int(num_tokens)
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        return prepared

    def create_optimizer(self, model: Any = None) -> Any:
        """Return the optimizer; Muon is two of them."""
        if getattr(self, "optimizer", None) is None and self.args.optim_args == MUON:
            args, decayed = self.args, set(self.get_decay_parameter_names(self.model))
            options = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            self.optimizer = muon(self.model, decayed, args.learning_rate, args.weight_decay, options)
        return super().create_optimizer(model)

    # Steps: a loss that is not finite ends the run before it reaches the weights.

    def try_model(self, model: Any, inputs: dict[str, Any]) -> None:
        """Check before the first step, on all ranks, that the model computes what the stage counts on."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch and remember its loss for the check at the step's end."""
        if not self._tried:
            self._tried = True
            with evaluating(model), self.accelerator.autocast():
                self.try_model(model, self._prepare_input(inputs))
        if self.stop.evaluation_owed:
            self._evaluate_undisturbed(None, None)  # stopped once more, it is still owed: the checkpoint says so
            self.stop.evaluation_owed = False
            self.control.should_training_stop |= self.best.exhausted
        started = time.monotonic()
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        self._losses.append(loss)
        elapsed = time.monotonic() - started
        self._run_seconds += elapsed
        self.step_seconds += elapsed
        heartbeat.beat("training", self.state.global_step, self.plan.max_steps)
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        norm = super()._clip_grad_norm(model)
        gradient = self._gradient_norm(norm).to(self._losses[0])
        *losses, finite = torch.isfinite(torch.stack([*self._losses, gradient])).tolist()
        if not (all(losses) and finite):
            raise NonFiniteLossError(self._blame(losses, float(gradient)))
        self._losses.clear()
        self._rows.clear()
        return norm

    def _gradient_norm(self, norm: Any) -> Tensor:
        """Return the norm as a tensor: NaN where DeepSpeed hides one behind -1, or behind a step that it left out."""
        if isinstance(norm, DTensor):
            return norm.full_tensor()
        if isinstance(norm, Tensor):
            return norm
        hidden = norm is not None and (norm < 0 or self.accelerator.optimizer_step_was_skipped)
        return torch.tensor(float("nan") if hidden else norm or 0.0)

    def _blame(self, finite: list[bool], gradient_norm: float) -> str:
        suspects = [rows for rows, ok in zip(self._rows, finite, strict=True) if not ok] or self._rows
        ids = [self.train_dataset[int(row)]["id"] for rows in suspects for row in rows]
        what = "the loss is not finite" if not all(finite) else f"the gradient norm is {gradient_norm}"
        shown = ", ".join(ids[:16]) + (f" and {len(ids) - 16} more" if len(ids) > 16 else "")
        return (
            f"step {self.state.global_step + 1}: {what} in the micro-batch with samples {shown}; no checkpoint of this "
            "state was saved. Look at these rows, or lower optimizer.learning_rate"
        )

    # Evaluation between two steps: a stop request puts it off.

    def _evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        try:
            metrics = self._evaluate_undisturbed(*args, **kwargs)
            self.control.should_save |= self.best.step == self.state.global_step
            self.control.should_training_stop |= self.best.exhausted
            return metrics
        except StoppedError:
            self.sums.take("eval")
            self._metrics["eval"].clear()
            self.stop.obey(self.control, evaluation_owed=True)
            return {}

    def _evaluate_undisturbed(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate and leave the random state as it was, so that it does not matter when that is done."""
        with kept_random_state():  # a data loader draws a seed
            metrics: dict[str, float] = super()._evaluate(*args, **kwargs)
        self.best.note(metrics, self.state.global_step)
        return metrics

    def prediction_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run one batch of an evaluation, unless a rank was asked to stop: then all raise StoppedError."""
        self.obey_stop_in_evaluation()
        return super().prediction_step(*args, **kwargs)

    def obey_stop_in_evaluation(self) -> None:
        """Show a sign of life before a batch of an evaluation, or raise StoppedError on all ranks."""
        if self.stop.any_rank_requested(self.args.device):
            step, last = self.state.global_step, self.plan.max_steps
            raise StoppedError(f"stopped on request in an evaluation at step {step} of {last}; {GO_ON}")
        heartbeat.beat("evaluation")

    # Checkpoints: `transformers` writes into a staging folder; the commit is ours.

    def _get_output_dir(self, trial: Any) -> str:
        directory = Path(self.args.output_dir)
        return str(staging_directory(directory) if self._saving else directory)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint; those of DeepSpeed and FSDP are in files of their own already."""
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        directory, step = Path(self.args.output_dir), self.state.global_step
        heartbeat.beat("saving a checkpoint", step)
        self._count_tokens()
        self._saving = True
        try:
            Trainer._save_checkpoint(self, model, trial)  # past TRL's, which writes a model card each time
        finally:
            self._saving = False
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            staged = staging_directory(directory) / f"checkpoint-{step}"
            self.save_state(staged)
            engine = engine_in_use(self.model_wrapped)
            commit_checkpoint(directory, step, {"engine": engine, "world_size": self.args.world_size})
            rotate_checkpoints(directory, self.keep_checkpoints, self.best.step)
        self.accelerator.wait_for_everyone()

    def save_state(self, directory: Path) -> None:
        """Write what `transformers` does not know of into a checkpoint; on the first rank."""
        counters: dict[str, Any] = {"tokens_seen": self.tokens_seen, "best": self.best.state()}
        counters["evaluation_owed"] = self.stop.evaluation_owed
        (directory / _COUNTERS).write_text(json.dumps(counters), encoding="utf-8")

    def load_state(self, checkpoint: Path) -> None:
        """Take up what `save_state` wrote, and forget what was logged after it."""
        counters = json.loads((checkpoint / _COUNTERS).read_text(encoding="utf-8"))
        self.tokens_seen = counters["tokens_seen"]
        self.stop.evaluation_owed = counters["evaluation_owed"]
        self.best.take_up(counters["best"])
        self.tracker.rewind(int(checkpoint.name.rpartition("-")[2]))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and is_universal(Path(checkpoint)):
            separate_steps(self.model_wrapped.optimizer.optimizer)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        if read_commit(Path(checkpoint))["world_size"] == self.args.world_size:
            super()._load_rng_state(checkpoint)
        else:
            seed_rank(Path(checkpoint), self.args.seed, self.args.process_index, self.state.global_step)

    def load_weights(self, checkpoint: Path) -> None:
        """Take up the weights of a checkpoint, and nothing else of it."""
        self._load_from_checkpoint(str(checkpoint), self.model)

    # Logging: one line a step for people, the same numbers for the tracker.

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add our metrics and TRL's to ``logs`` (in place), print one line, and hand them to the tracker."""
        mode = "train" if self.model.training else "eval"
        prefix = "eval_" if mode == "eval" else ""
        own = self.sums.take(mode)
        inherited = {name: sum(values) / len(values) for name, values in self._metrics[mode].items()}
        self._metrics[mode].clear()
        logs.update({f"{prefix}{name}": value for name, value in {**inherited, **own}.items()})
        logs.pop("num_tokens", None)
        if "train_runtime" in logs:
            return
        if mode == "train":
            logs.update(self._throughput() | peak_memory())
        Trainer.log(self, logs, start_time)
        for name in ("epoch", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_num_tokens"):
            logs.pop(name, None)
        if self.is_world_process_zero():
            step, last = self.state.global_step, self.plan.max_steps
            log.info("step %d/%d  %s", step, last, "  ".join(f"{name} {value:.4g}" for name, value in logs.items()))
            self.tracker.log(logs, step)

    def _count_tokens(self) -> None:
        """Add the tokens of all ranks since the last call to the total."""
        tokens = torch.tensor(self._run_tokens, dtype=torch.float64, device=self.args.device)
        total = int(self.accelerator.reduce(tokens, reduction="sum"))
        self.tokens_seen += total
        self._logged_tokens += total
        self.step_tokens += total
        self._run_tokens = 0

    def _throughput(self) -> dict[str, float]:
        """Return tokens per second over all ranks since the last log, and the total."""
        self._count_tokens()
        rate = self._logged_tokens / self._run_seconds if self._run_seconds else 0.0
        self._logged_tokens, self._run_seconds = 0, 0.0
        return {"tokens_per_second": round(rate, 1), "tokens_seen": self.tokens_seen}
