"""Training in phases: a rollout, then optimizer steps over its mini-batches, then the next rollout.

The data loader is the algorithm: it samples and scores a rollout whenever it has handed out the mini-batches of the
last one, so that a step never sees anything but batches. Training can be resumed at any step: a checkpoint holds the
episodes that are still in use.

N response tokens of a micro-batch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.stage.errors import PosttrainError, StoppedError
from posttrain.train.checkpoints.protocol import checkpoint_steps
from posttrain.train.config.rollout import RolloutConfig
from posttrain.train.engine.trainer import GO_ON, StageTrainer
from posttrain.train.rollouts.collect import Collector, Rollout
from posttrain.train.rollouts.episodes import Episode, load_episodes, mini_batches, save_episodes
from posttrain.train.rollouts.precision import cast_once
from posttrain.train.rollouts.samples import SampleLog
from posttrain.train.rollouts.whole_copy import Resting

_STATE, _EPISODES = "phase.json", "episodes.safetensors"


class CollapseError(PosttrainError):
    """An alarm went off: the policy has left the region in which its rewards mean anything."""


class PhaseTrainer(StageTrainer):
    """What trainers that learn from their own responses have in common; they define `collect` and `collate`."""

    def __init__(
        self,
        *,
        rollouts: RolloutConfig,
        passes: int,
        collector: Collector,
        samples: SampleLog,
        pad_token_id: int,
        where: str,
        copy: Any | None,
        **theirs: Any,
    ) -> None:
        """``theirs`` are the arguments of `StageTrainer`.

        ``passes`` is the number of passes over a rollout, ``where`` the configuration path of the stage, for messages,
        and ``copy`` what `whole_copy` made of the model.
        """
        super().__init__(**theirs)
        self.rollouts = rollouts
        self.passes = passes
        self.collector = collector
        self.samples = samples
        self.pad_token_id = pad_token_id
        self.where = where
        self.copy = copy
        self._resting = Resting(copy, self.model) if copy is not None else None
        self.phase = 0
        """Rollouts begun."""
        self.handed_out = 0
        """Mini-batches of the present rollout that updates have used."""
        self.episodes: list[Episode] = []
        self.first_length: float | None = None
        self.last_rollout: dict[str, float] = {}
        self._moved = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        """Sum over the tokens of the last step of how far the policy moved, and their number; of this rank."""

    def collect(self) -> Rollout:
        """Return the next rollout."""
        raise NotImplementedError

    def collate(self, episodes: Sequence[Episode], step_tokens: int) -> dict[str, Tensor]:
        """Return a micro-batch of a step that has so many response tokens over all ranks."""
        raise NotImplementedError

    def trained_policy(self) -> Any:
        """Return the policy, out of what an engine wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    # Rollouts and mini-batches.

    def get_train_dataloader(self) -> Any:
        """Return this rank's micro-batches, an endless stream."""
        return _Loader(self)

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of one step after the other, with a rollout whenever one is used up."""
        config, world, rank = self.rollouts, self.plan.world_size, self.args.process_index
        total = self.passes * config.mini_batches
        while True:
            if self._moved_too_far():
                self.handed_out = total
            if not self.episodes or self.handed_out >= total:
                self._roll_out()
            epoch, number = divmod(self.handed_out, config.mini_batches)
            seed = [self.args.seed, self.phase, epoch]
            parts = mini_batches(self.episodes, config.global_batch_size, seed, world, self.plan.accumulation)[number]
            step_tokens = sum(len(self.episodes[index].response_ids) for part in parts for index in part)
            self.handed_out += 1
            for part in parts[rank::world]:
                yield self.collate([self.episodes[index] for index in part], step_tokens)

    def sampling_model(self) -> Any:
        """Return the model as a rank can run it alone."""
        if self._resting is None:
            return self.model
        self._resting.refresh(self.model)
        return self.copy

    def rest_sampling_model(self) -> None:
        """Free what is only there to sample and to value; nothing where that is the model itself."""
        if self._resting is not None:
            self._resting.rest()

    def _roll_out(self) -> None:
        try:
            with self._forward_precision():
                rollout = self.collect()
        except StoppedError as stopped:
            step, last = self.state.global_step, self.plan.max_steps
            how = self._keep(step) if step else "nothing was to be saved yet; the same command starts again"
            raise StoppedError(f"{stopped}, after step {step} of {last}; {how}") from None
        finally:
            self.rest_sampling_model()
        self.begin_phase(rollout)
        self._sound_alarms(rollout.metrics)
        self.samples.show(self.phase, self.state.global_step, rollout.episodes)

    def _forward_precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which a rank computes as it does in training; a whole copy has that precision itself."""
        stack = contextlib.ExitStack()
        if self.copy is None and self.accelerator.native_amp and self.args.bf16:
            stack.enter_context(cast_once(self.model, torch.bfloat16))
            stack.enter_context(self.accelerator.autocast())
        return stack

    def begin_phase(self, rollout: Rollout) -> None:
        """Take the mini-batches of a rollout next, and log what it was like."""
        self.phase, self.handed_out, self.episodes = self.phase + 1, 0, rollout.episodes
        self.last_rollout = rollout.metrics
        self._moved = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for name, value in rollout.metrics.items():
            self.sums.add("train", name, value, 1.0)

    def _keep(self, step: int) -> str:
        """Save a checkpoint of where the step before this rollout ended, unless it is there; returns how to go on."""
        if step not in checkpoint_steps(Path(self.args.output_dir)):
            self._save_checkpoint(self.model, None)
        return GO_ON

    def _sound_alarms(self, metrics: dict[str, float]) -> None:
        alarms = self.rollouts.alarms
        if self.first_length is None:
            self.first_length = metrics["response/length"]
        growth = metrics["response/length"] / self.first_length
        checks = [
            ("max_kl", metrics.get("objective/kl", 0.0), alarms.max_kl, 1),
            ("min_entropy", metrics["objective/entropy"], alarms.min_entropy, -1),
            ("max_length_growth", growth, alarms.max_length_growth, 1),
        ]
        for name, value, limit, sign in checks:
            if limit is not None and sign * value > sign * limit:
                raise CollapseError(
                    f"rollout {self.phase} at step {self.state.global_step}: {value:.4g} is beyond "
                    f"{self.where}.alarms.{name}={limit}; earlier checkpoints are kept. Lower optimizer.learning_rate "
                    "or the passes over a rollout, or strengthen the pull to the reference"
                )

    def _moved_too_far(self) -> bool:
        """Return whether the last step moved the policy beyond what the configuration allows; the same on all ranks."""
        limit = self.rollouts.early_stop_kl
        if limit is None or self.handed_out == 0:
            return False
        if dist.is_initialized():
            dist.all_reduce(self._moved)
        total, count = self._moved.tolist()
        self._moved = torch.zeros_like(self._moved)
        return bool(count) and total / count > limit

    def note_move(self, difference_N: Tensor, entropies_N: Tensor, counted_N: Tensor | None = None) -> None:
        """Log how far the policy is from the one that sampled, by the log-ratios of a micro-batch's tokens.

        Arrays may have any shape; ``counted_N`` says which of them are tokens, None that all are.
        """
        ratio_N = difference_N.exp()
        approx_kl_N = ratio_N - 1 - difference_N
        counts_N = torch.ones_like(difference_N) if counted_N is None else counted_N
        count = len(difference_N) if counted_N is None else counted_N.sum()
        self._moved[0] += (approx_kl_N * counts_N).double().sum()
        self._moved[1] += count
        for name, values_N in {
            "policy/approxkl": approx_kl_N,
            "policy/entropy": entropies_N,
            "policy/ratio": ratio_N,
        }.items():
            self.sums.add("train", name, (values_N * counts_N).double().sum(), count)
        if self.handed_out == 1:  # nothing has moved yet: what differs is how the two compute
            self.sums.add("train", "policy/rollout_difference", (difference_N.abs() * counts_N).double().sum(), count)

    # Checkpoints: where the algorithm stands.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if dist.is_initialized():  # the first rank's file stands for all of them
            dist.all_reduce(self._moved)
            self._moved /= self.plan.world_size
        super()._save_checkpoint(model, trial)

    def phase_state(self) -> dict[str, Any]:
        """Return where the algorithm stands, the episodes apart, as plain values."""
        return {
            "phase": self.phase,
            "handed_out": self.handed_out,
            "last_rollout": self.last_rollout,
            "first_length": self.first_length,
            "moved": self._moved.tolist(),
        }

    def take_up(self, state: dict[str, Any]) -> None:
        """Stand where `phase_state` said."""
        self.phase, self.handed_out = state["phase"], state["handed_out"]
        self.first_length, self.last_rollout = state["first_length"], state["last_rollout"]
        self._moved = torch.tensor(state["moved"], dtype=torch.float64, device=self.args.device)

    def save_state(self, directory: Path) -> None:
        """Add what a checkpoint needs besides weights, optimizer and random states; on the first rank."""
        super().save_state(directory)
        (directory / _STATE).write_text(json.dumps(self.phase_state()), encoding="utf-8")
        save_episodes(directory / _EPISODES, self.episodes)

    def load_state(self, checkpoint: Path) -> None:
        """Take up where a checkpoint stands."""
        super().load_state(checkpoint)
        self.take_up(json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))
        self.episodes = load_episodes(checkpoint / _EPISODES)


class _Loader:
    """What `transformers.Trainer` takes for a data loader."""

    def __init__(self, trainer: PhaseTrainer) -> None:
        self._trainer = trainer
        self.batch_size = trainer.plan.micro_batch_size

    def __len__(self) -> int:
        return self._trainer.plan.max_steps * self._trainer.plan.accumulation

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._trainer.micro_batches()
