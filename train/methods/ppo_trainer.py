"""PPO's updates on `transformers.Trainer`: its optimizer, schedule, clipping, engines and checkpoints; our rollouts.

N response tokens of a micro-batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from posttrain.train.config.ppo import KlConfig, PpoConfig
from posttrain.train.engine.arguments import schedule_options
from posttrain.train.maths.policy_losses import clipped_policy_loss, clipped_value_loss, kl_estimates
from posttrain.train.methods.ppo_episodes import finish_episodes
from posttrain.train.rollouts.collect import Rollout
from posttrain.train.rollouts.episodes import Episode, collate_episodes
from posttrain.train.rollouts.phases import PhaseTrainer

_WEIGHTS = "trained.safetensors"


class PpoTrainer(PhaseTrainer):
    """Trains an `ActorCritic`."""

    def __init__(self, *, config: PpoConfig, **theirs: Any) -> None:
        """``theirs`` are the arguments of `PhaseTrainer`."""
        super().__init__(rollouts=config, passes=config.ppo_epochs, where="train.ppo", **theirs)
        self.config = config
        self.loss_is_scaled_for_ga = True  # by the tokens of the whole step
        self._metrics: dict[str, dict[str, list[float]]] = {"train": {}, "eval": {}}
        self.kl_coef = config.kl.coef

    def trained_policy(self) -> Any:
        """Return the policy without its critic."""
        return super().trained_policy().policy

    def collect(self) -> Rollout:
        """Return the next rollout, under a coefficient adapted to the KL of the last one."""
        kl_coef = self.kl_coef
        if self.episodes:
            kl_coef = adapted_kl_coef(kl_coef, self.last_rollout["objective/kl"], len(self.episodes), self.config.kl)
        finish = partial(finish_episodes, config=self.config, kl_coef=kl_coef)
        model = self.sampling_model()
        rest = self.rest_sampling_model
        rollout = self.collector.collect(self.phase, model.policy, finish, self.stop, model, rest)
        self.kl_coef = kl_coef  # not before: a rollout that is stopped is done again
        rollout.metrics["objective/kl_coef"] = kl_coef
        return rollout

    def collate(self, episodes: Sequence[Episode], step_tokens: int) -> dict[str, Tensor]:
        """Return a micro-batch of a step that has so many response tokens over all ranks."""
        return collate_episodes(episodes, self.pad_token_id, step_tokens)

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
        policy_N, value_N, clipped_N, value_clipped_N, entropies_N = others
        self.note_move(logps_N - inputs["logps"], entropies_N)
        for name, values_N in {
            "policy/clipfrac": clipped_N.double(),
            "loss/policy": policy_N,
            "loss/value": value_N,
            "val/clipfrac": value_clipped_N.double(),
        }.items():
            self.sums.add("train", name, values_N.double().sum(), len(logps_N))

    # Optimizer: the critic may learn at a rate of its own, and alone at first.

    def create_optimizer(self, model: Any = None) -> Any:
        """Return AdamW with the critic's parameters, and those that do not decay, in groups of their own."""
        if getattr(self, "optimizer", None) is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            rate = self.config.critic.learning_rate or self.args.learning_rate
            decayed = set(self.get_decay_parameter_names(self.model))  # not those of norms, nor biases
            groups: dict[tuple[bool, bool], list[Tensor]] = defaultdict(list)
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    groups[name.startswith("critic."), name in decayed].append(parameter)
            self.optimizer = cls(
                [
                    {"params": parameters, "is_critic": is_critic, "weight_decay": self.args.weight_decay * decays}
                    | ({"lr": rate} if is_critic else {})
                    for (is_critic, decays), parameters in groups.items()
                ],
                **options,
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule: the policy's begins when the critic has warmed up, and its rate is zero until then."""
        if getattr(self, "lr_scheduler", None) is None:
            optimizer = self.optimizer if optimizer is None else optimizer
            alone = min(self.config.critic.warmup_steps, num_training_steps)
            of_critic = self._schedule(optimizer, num_training_steps)
            of_policy = self._schedule(optimizer, num_training_steps - alone)

            def after_warmup(step: int) -> float:
                return of_policy(step - alone) if step >= alone else 0.0

            rates = [of_critic if group["is_critic"] else after_warmup for group in optimizer.param_groups]
            self.lr_scheduler = LambdaLR(optimizer, rates)
        return self.lr_scheduler

    def _schedule(self, optimizer: Any, steps: int) -> Callable[[int], float]:
        """Return the configured schedule over so many steps, as a factor of the rate by step."""
        warmup = round(self.config.optimizer.warmup_fraction * steps)
        scheduler = get_scheduler(
            self.args.lr_scheduler_type,
            optimizer,
            warmup,
            max(steps, 1),
            schedule_options(self.config.optimizer, steps) or None,
        )
        factor: Callable[[int], float] = scheduler.lr_lambdas[0]
        return factor

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """Run one micro-batch; the first in which the policy learns finds its optimizer as new."""
        if self.state.global_step == self.config.critic.warmup_steps > 0:
            forget_steps(self.optimizer, lambda group: not group["is_critic"])
        return super().training_step(model, inputs, *args, **kwargs)

    # Checkpoints: the weights that are trained, and where the algorithm stands.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        assert output_dir is not None
        directory = Path(output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().contiguous() for name, p in self.model.named_parameters() if p.requires_grad}
        safetensors.torch.save_file(trained, directory / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.is_fsdp_enabled:  # its shards are in files of their own
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = safetensors.torch.load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])

    def phase_state(self) -> dict[str, Any]:
        """Return where the algorithm stands, the coefficient of the KL included."""
        return {**super().phase_state(), "kl_coef": self.kl_coef}

    def take_up(self, state: dict[str, Any]) -> None:
        """Stand where `phase_state` said."""
        super().take_up(state)
        self.kl_coef = state["kl_coef"]


def forget_steps(optimizer: Any, of_group: Callable[[dict[str, Any]], bool]) -> None:
    """Let Adam begin anew for some parameter groups whose gradients were all zero so far.

    Its moments are zero then, but each step made their bias corrections weaker: the first real updates would be as
    large as several times the rate (Kingma and Ba 2015, sec. 3).
    """
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer  # the engine's wrapper
    for group in optimizer.param_groups:
        if of_group(group):
            if "step" in group:
                group["step"] = 0
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.zeros_like(state["step"]) if isinstance(state["step"], Tensor) else 0


def adapted_kl_coef(coef: float, kl: float, episodes: int, config: KlConfig) -> float:
    """Return the coefficient after a rollout whose mean KL per response was ``kl`` (Ziegler et al. 2019, eq. 3)."""
    if config.target is None:
        return coef
    error = min(max(kl / config.target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / config.horizon)
