"""PPO's updates on `transformers.Trainer`: its optimizer, schedule, clipping, engines and checkpoints; our rollouts.

The data loader is the algorithm: it samples and scores a rollout whenever it has handed out the mini-batches of the
last one, so that a step never sees anything but batches. Training can be resumed at any step: a checkpoint holds the
episodes that are still in use.

N response tokens of a micro-batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from posttrain.stage.errors import PosttrainError
from posttrain.train.episodes import Episode, collate_episodes, load_episodes, mini_batches, save_episodes
from posttrain.train.losses import clipped_policy_loss, clipped_value_loss, kl_estimates
from posttrain.train.ppo_config import KlConfig, PpoConfig
from posttrain.train.rollout import RolloutWorker
from posttrain.train.trainer import StageTrainer

log = logging.getLogger(__name__)

_STATE, _EPISODES, _WEIGHTS = "ppo.json", "episodes.safetensors", "trained.safetensors"


class CollapseError(PosttrainError):
    """An alarm went off: the policy has left the region in which its rewards mean anything."""


class PpoTrainer(StageTrainer):
    """Trains an `ActorCritic`."""

    def prepare(self, config: PpoConfig, worker: RolloutWorker, pad_token_id: int) -> None:
        """Give the trainer what the constructor does not take; call it once, after `attach`."""
        self.config = config
        self.worker = worker
        self.pad_token_id = pad_token_id
        self.loss_is_scaled_for_ga = True  # by the tokens of the whole step
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.phase = 0
        """Rollouts begun."""
        self.handed_out = 0
        """Mini-batches of the present rollout that updates have used."""
        self.episodes: list[Episode] = []
        self.kl_coef = config.kl.coef
        self.first_length: float | None = None
        self.last_rollout: dict[str, float] = {}
        self._moved = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        """Sum over the tokens of the last step of how far the policy moved, and their number; of this rank."""

    # Rollouts and mini-batches.

    def get_train_dataloader(self) -> Any:
        """Return this rank's micro-batches, an endless stream."""
        return _Loader(self)

    def micro_batches(self) -> Iterator[dict[str, Tensor]]:
        """Yield the micro-batches of one step after the other, with a rollout whenever one is used up."""
        config, world, rank = self.config, self.plan.world_size, self.args.process_index
        total = config.ppo_epochs * config.mini_batches
        while True:
            if not self.episodes or self.handed_out >= total or self._moved_too_far():
                self._roll_out()
            epoch, number = divmod(self.handed_out, config.mini_batches)
            seed = [self.args.seed, self.phase, epoch]
            parts = mini_batches(self.episodes, config.global_batch_size, seed, world, self.plan.accumulation)[number]
            step_tokens = sum(len(self.episodes[index].response_ids) for part in parts for index in part)
            self.handed_out += 1
            for part in parts[rank::world]:
                yield collate_episodes([self.episodes[index] for index in part], self.pad_token_id, step_tokens)

    def _roll_out(self) -> None:
        if self.episodes:
            self.kl_coef = adapted_kl_coef(
                self.kl_coef, self.last_rollout["objective/kl"], len(self.episodes), self.config.kl
            )
        rollout = self.worker.collect(self.phase, self.model, self.model.policy, self.kl_coef)
        self.phase, self.handed_out, self.episodes = self.phase + 1, 0, rollout.episodes
        self.last_rollout = rollout.metrics
        self._moved = torch.zeros_like(self._moved)
        one = torch.ones((), dtype=torch.float64)
        for name, value in {**rollout.metrics, "objective/kl_coef": self.kl_coef}.items():
            self.sums.add("train", name, one * value, 1.0)
        self._sound_alarms(rollout.metrics)
        self.worker.show(self.phase, self.state.global_step, rollout.episodes)

    def _sound_alarms(self, metrics: dict[str, float]) -> None:
        alarms = self.config.alarms
        if self.first_length is None:
            self.first_length = metrics["response/length"]
        growth = metrics["response/length"] / self.first_length
        checks = [
            ("max_kl", metrics["objective/kl"], alarms.max_kl, 1),
            ("min_entropy", metrics["objective/entropy"], alarms.min_entropy, -1),
            ("max_length_growth", growth, alarms.max_length_growth, 1),
        ]
        for name, value, limit, sign in checks:
            if limit is not None and sign * value > sign * limit:
                raise CollapseError(
                    f"rollout {self.phase} at step {self.state.global_step}: {value:.4g} is beyond "
                    f"train.ppo.alarms.{name}={limit}; earlier checkpoints are kept. Lower optimizer.learning_rate or "
                    "ppo_epochs, or raise kl.coef"
                )

    def _moved_too_far(self) -> bool:
        """Return whether the last step moved the policy beyond what the configuration allows; the same on all ranks."""
        limit = self.config.early_stop_kl
        if limit is None or self.handed_out == 0:
            return False
        if dist.is_initialized():
            dist.all_reduce(self._moved)
        total, count = self._moved.tolist()
        self._moved = torch.zeros_like(self._moved)
        return bool(count) and total / count > limit

    # The update.

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the losses of a micro-batch's tokens, summed and divided by the tokens of the whole step."""
        config = self.config
        logps_N, entropies_N, values_N = model(
            input_ids=inputs["input_ids"], chosen=inputs["chosen"], temperature=config.temperature
        )
        policy_N, clipped_N = clipped_policy_loss(
            logps_N, inputs["logps"], inputs["advantages"], config.clip_range, config.dual_clip
        )
        value_N, value_clipped_N = clipped_value_loss(
            values_N, inputs["values"], inputs["returns"], config.critic.clip_range
        )
        if config.entropy_coef:
            policy_N = policy_N - config.entropy_coef * entropies_N
        if config.kl.place == "loss":
            policy_N = policy_N + self.kl_coef * kl_estimates(logps_N, inputs["reference_logps"], config.kl.estimator)
        if self.state.global_step < config.critic.warmup_steps:
            policy_N = policy_N * 0.0
        loss = (policy_N.sum() + config.critic.loss_coef * value_N.sum()) / inputs["step_tokens"]
        self._note(logps_N.detach(), inputs, policy_N, value_N, clipped_N, value_clipped_N, entropies_N)
        return loss * self.plan.world_size  # engines average over ranks

    def _note(self, logps_N: Tensor, inputs: dict[str, Any], *others: Tensor) -> None:
        """Add a micro-batch to the metrics, none of which is synchronised before it is logged."""
        difference_N = logps_N - inputs["logps"]
        ratio_N = difference_N.exp()
        approx_kl_N = ratio_N - 1 - difference_N
        self._moved[0] += approx_kl_N.double().sum()
        self._moved[1] += len(logps_N)
        policy_N, value_N, clipped_N, value_clipped_N, entropies_N = others
        count = len(logps_N)
        for name, values_N in {
            "policy/approxkl": approx_kl_N,
            "policy/clipfrac": clipped_N.double(),
            "policy/entropy": entropies_N,
            "policy/ratio": ratio_N,
            "loss/policy": policy_N,
            "loss/value": value_N,
            "val/clipfrac": value_clipped_N.double(),
        }.items():
            self.sums.add("train", name, values_N.double().sum(), count)
        if self.handed_out == 1:  # nothing has moved yet: what differs is how the two compute
            self.sums.add("train", "policy/rollout_difference", difference_N.abs().double().sum(), count)

    # Optimizer: the critic may learn at a rate of its own, and alone at first.

    def create_optimizer(self, model: Any = None) -> Any:
        """Return AdamW with the critic's parameters in a group of their own."""
        if getattr(self, "optimizer", None) is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate = self.config.critic.learning_rate or self.args.learning_rate
            trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            of_critic = [p for n, p in trained if n.startswith("critic.")]
            of_policy = [p for n, p in trained if not n.startswith("critic.")]
            groups = [
                {"params": of_policy, "weight_decay": self.args.weight_decay},
                {"params": of_critic, "weight_decay": self.args.weight_decay, "lr": rate},
            ]
            self.optimizer = cls(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule; the policy's rate is zero while the critic warms up."""
        if getattr(self, "lr_scheduler", None) is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            usual = get_scheduler(
                self.args.lr_scheduler_type,
                optimizer,
                self.args.get_warmup_steps(num_training_steps),
                num_training_steps,
            ).lr_lambdas[0]
            warmup = self.config.critic.warmup_steps
            self.lr_scheduler = LambdaLR(optimizer, [lambda step: usual(step) if step >= warmup else 0.0, usual])
        return self.lr_scheduler

    # Checkpoints: the weights that are trained, and where the algorithm stands.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
        safetensors.torch.save_file(trained, directory / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        saved = safetensors.torch.load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if dist.is_initialized():  # the first rank's file stands for all of them
            dist.all_reduce(self._moved)
            self._moved /= self.plan.world_size
        super()._save_checkpoint(model, trial)

    def save_state(self, directory: Path) -> None:
        """Add what a checkpoint needs besides weights, optimizer and random states; on the first rank."""
        super().save_state(directory)
        state = {
            "phase": self.phase,
            "handed_out": self.handed_out,
            "kl_coef": self.kl_coef,
            "last_rollout": self.last_rollout,
            "first_length": self.first_length,
            "moved": self._moved.tolist(),
        }
        (directory / _STATE).write_text(json.dumps(state), encoding="utf-8")
        save_episodes(directory / _EPISODES, self.episodes)

    def load_state(self, checkpoint: Path) -> None:
        """Take up where a checkpoint stands."""
        super().load_state(checkpoint)
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        self.phase, self.handed_out = state["phase"], state["handed_out"]
        self.kl_coef, self.first_length = state["kl_coef"], state["first_length"]
        self.last_rollout = state["last_rollout"]
        self._moved = torch.tensor(state["moved"], dtype=torch.float64, device=self.args.device)
        self.episodes = load_episodes(checkpoint / _EPISODES)


class _Loader:
    """What `transformers.Trainer` takes for a data loader."""

    def __init__(self, trainer: PpoTrainer) -> None:
        self._trainer = trainer
        self.batch_size = trainer.plan.micro_batch_size

    def __len__(self) -> int:
        return self._trainer.plan.max_steps * self._trainer.plan.accumulation

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self._trainer.micro_batches()


def adapted_kl_coef(coef: float, kl: float, episodes: int, config: KlConfig) -> float:
    """Return the coefficient after a rollout whose mean KL per response was ``kl`` (Ziegler et al. 2019, eq. 3)."""
    if config.target is None:
        return coef
    error = min(max(kl / config.target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / config.horizon)
