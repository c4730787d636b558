"""What other tools call the knobs that we have: a table, from which errors take their hints and a page its tables.

A knob of ours stands as it does below the node of a stage type (``optimizer.learning_rate`` of ``train.sft``) or,
without stage types, in the pipeline.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

TOOLS = ("TRL", "transformers", "Axolotl", "LLaMA-Factory", "OpenRLHF", "verl", "torchtune")
"""In the order in which a hint names them; what TRL takes from `transformers.TrainingArguments` is the latter's."""
STAGES = {
    "-": (),
    "TRAINED": tuple(f"train.{name}" for name in ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo")),
    "ROLLED": ("train.ppo", "train.rloo", "train.grpo"),
    "GROUPED": ("train.rloo", "train.grpo"),
}
"""What the table calls several stage types, or none."""
TABLE = """
optimizer.learning_rate @ TRAINED
    transformers: learning_rate | Axolotl: learning_rate | LLaMA-Factory: learning_rate | OpenRLHF: learning_rate
    actor_learning_rate | verl: actor_rollout_ref.actor.optim.lr optim.lr | torchtune: optimizer.lr lr
optimizer.schedule @ TRAINED
    transformers: lr_scheduler_type | Axolotl: lr_scheduler | LLaMA-Factory: lr_scheduler_type | OpenRLHF:
    lr_scheduler | verl: actor_rollout_ref.actor.optim.lr_scheduler_type warmup_style | torchtune:
    lr_scheduler._component_
optimizer.warmup_fraction @ TRAINED # a share of all steps
    transformers: warmup_ratio warmup_steps | Axolotl: warmup_ratio warmup_steps | LLaMA-Factory: warmup_ratio
    warmup_steps | OpenRLHF: lr_warmup_ratio lr_warmup_steps | verl:
    actor_rollout_ref.actor.optim.lr_warmup_steps_ratio lr_warmup_steps_ratio | torchtune:
    lr_scheduler.num_warmup_steps num_warmup_steps
optimizer.weight_decay @ TRAINED
    transformers: weight_decay | Axolotl: weight_decay | LLaMA-Factory: weight_decay | OpenRLHF: l2 | verl:
    actor_rollout_ref.actor.optim.weight_decay | torchtune: optimizer.weight_decay
optimizer.beta1 @ TRAINED
    transformers: adam_beta1 | Axolotl: adam_beta1 | LLaMA-Factory: adam_beta1
optimizer.beta2 @ TRAINED
    transformers: adam_beta2 | Axolotl: adam_beta2 | LLaMA-Factory: adam_beta2
optimizer.max_grad_norm @ TRAINED
    transformers: max_grad_norm | Axolotl: max_grad_norm | LLaMA-Factory: max_grad_norm | OpenRLHF: max_norm | verl:
    actor_rollout_ref.actor.grad_clip grad_clip | torchtune: clip_grad_norm
global_batch_size @ TRAINED # rows of a step over all processes: theirs per device × accumulation × devices
    transformers: gradient_accumulation_steps | Axolotl: gradient_accumulation_steps | LLaMA-Factory:
    gradient_accumulation_steps | OpenRLHF: train_batch_size | verl: actor_rollout_ref.actor.ppo_mini_batch_size
    ppo_mini_batch_size | torchtune: gradient_accumulation_steps
micro_batch_size @ TRAINED # a matter of memory alone; `global_batch_size` is the batch of a step
    transformers: per_device_train_batch_size per_device_batch_size | Axolotl: micro_batch_size | LLaMA-Factory:
    per_device_train_batch_size | OpenRLHF: micro_train_batch_size | verl:
    actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu ppo_micro_batch_size_per_gpu ppo_micro_batch_size |
    torchtune: batch_size
micro_batch_tokens @ train.sft train.reward train.dpo train.kto
    OpenRLHF: max_tokens_per_gpu use_dynamic_batch train_max_tokens_per_gpu | verl:
    actor_rollout_ref.actor.ppo_max_token_len_per_gpu ppo_max_token_len_per_gpu use_dynamic_bsz max_token_len_per_gpu
epochs @ TRAINED
    transformers: num_train_epochs | Axolotl: num_epochs | LLaMA-Factory: num_train_epochs | OpenRLHF: max_epochs
    num_episodes | verl: trainer.total_epochs total_epochs | torchtune: epochs
max_steps @ TRAINED
    transformers: max_steps | Axolotl: max_steps | LLaMA-Factory: max_steps | OpenRLHF: max_samples | verl:
    trainer.total_training_steps total_training_steps | torchtune: max_steps_per_epoch
dtype=bfloat16 @ TRAINED # `hardware=gpu1` sets it for all stages
    transformers: bf16 fp16 torch_dtype | Axolotl: bf16 fp16 | LLaMA-Factory: bf16 fp16 pure_bf16 | OpenRLHF: bf16
    param_dtype | verl: actor_rollout_ref.rollout.dtype | torchtune: dtype
tf32 @ TRAINED
    transformers: tf32 | Axolotl: tf32 | LLaMA-Factory: tf32
gradient_checkpointing @ TRAINED
    transformers: gradient_checkpointing | Axolotl: gradient_checkpointing | LLaMA-Factory: gradient_checkpointing |
    OpenRLHF: gradient_checkpointing | verl: actor_rollout_ref.model.enable_gradient_checkpointing
    enable_gradient_checkpointing | torchtune: enable_activation_checkpointing
attention=flash_attention_2 @ TRAINED
    TRL: attn_implementation | Axolotl: flash_attention sdp_attention | LLaMA-Factory: flash_attn | OpenRLHF:
    flash_attn attn_implementation | verl: actor_rollout_ref.model.attn_implementation
save_steps @ TRAINED
    transformers: save_steps | Axolotl: save_steps saves_per_epoch | LLaMA-Factory: save_steps | OpenRLHF:
    save_steps | verl: trainer.save_freq save_freq
keep_checkpoints @ TRAINED
    transformers: save_total_limit | Axolotl: save_total_limit | LLaMA-Factory: save_total_limit | OpenRLHF:
    max_ckpt_num | verl: trainer.max_actor_ckpt_to_keep max_actor_ckpt_to_keep
log_steps @ TRAINED
    transformers: logging_steps | Axolotl: logging_steps | LLaMA-Factory: logging_steps | OpenRLHF: logging_steps |
    torchtune: log_every_n_steps
eval_steps @ train.sft train.reward train.dpo train.kto
    transformers: eval_steps eval_strategy evaluation_strategy | Axolotl: eval_steps evals_per_epoch |
    LLaMA-Factory: eval_steps eval_strategy | OpenRLHF: eval_steps | verl: trainer.test_freq test_freq
adapter.rank @ TRAINED # `adapter=lora` turns adapters on
    TRL: lora_r | Axolotl: lora_r | LLaMA-Factory: lora_rank | OpenRLHF: lora_rank | verl:
    actor_rollout_ref.model.lora_rank | torchtune: model.lora_rank
adapter.alpha @ TRAINED
    TRL: lora_alpha | Axolotl: lora_alpha | LLaMA-Factory: lora_alpha | OpenRLHF: lora_alpha | verl:
    actor_rollout_ref.model.lora_alpha | torchtune: model.lora_alpha
adapter.dropout @ TRAINED
    TRL: lora_dropout | Axolotl: lora_dropout | LLaMA-Factory: lora_dropout | OpenRLHF: lora_dropout | torchtune:
    model.lora_dropout
adapter.rslora=true @ TRAINED
    TRL: use_rslora | Axolotl: peft_use_rslora | LLaMA-Factory: use_rslora
adapter.dora=true @ TRAINED
    TRL: use_dora | Axolotl: peft_use_dora | LLaMA-Factory: use_dora
best.metric @ train.sft train.reward train.dpo train.kto
    transformers: metric_for_best_model load_best_model_at_end | LLaMA-Factory: metric_for_best_model
    load_best_model_at_end
best.patience @ train.sft train.reward train.dpo train.kto
    Axolotl: early_stopping_patience
neftune_alpha @ train.sft
    transformers: neftune_noise_alpha | Axolotl: neftune_noise_alpha | LLaMA-Factory: neftune_noise_alpha
optimizer.kind @ TRAINED
    transformers: optim | Axolotl: optimizer | LLaMA-Factory: optim
adapter.target_modules @ TRAINED
    TRL: lora_target_modules | Axolotl: lora_target_modules lora_target_linear | LLaMA-Factory: lora_target |
    OpenRLHF: target_modules | verl: actor_rollout_ref.model.target_modules | torchtune: model.lora_attn_modules
packing @ train.sft
    TRL: packing | Axolotl: sample_packing | LLaMA-Factory: packing neat_packing | OpenRLHF: packing_samples |
    torchtune: dataset.packed packed
max_length @ data.tokenize # said once, where rows are tokenized
    TRL: max_length max_seq_length | Axolotl: sequence_len | LLaMA-Factory: cutoff_len | OpenRLHF: max_len
    prompt_max_len | verl: data.max_prompt_length data.max_length max_prompt_length | torchtune:
    tokenizer.max_seq_len max_seq_len
loss_on @ data.tokenize
    TRL: assistant_only_loss completion_only_loss | Axolotl: train_on_inputs roles_to_train | LLaMA-Factory:
    train_on_prompt | torchtune: dataset.train_on_input train_on_input
overlong @ data.tokenize
    TRL: truncation_mode | Axolotl: excess_length_strategy | verl: data.truncation
num_workers @ data.tokenize
    TRL: dataset_num_proc | Axolotl: dataset_processes dataset_num_proc | LLaMA-Factory: preprocessing_num_workers |
    verl: data.filter_overlong_prompts_workers
eval_fraction @ data.curate
    Axolotl: val_set_size | LLaMA-Factory: val_size
beta @ train.dpo train.kto train.rloo train.grpo
    TRL: beta | Axolotl: rl_beta | LLaMA-Factory: pref_beta | OpenRLHF: beta | verl:
    actor_rollout_ref.actor.kl_loss_coef kl_loss_coef | torchtune: loss.beta
loss @ train.dpo train.grpo
    TRL: loss_type | LLaMA-Factory: pref_loss | Axolotl: rl
label_smoothing @ train.dpo
    TRL: label_smoothing | Axolotl: dpo_label_smoothing | LLaMA-Factory: dpo_label_smoothing | OpenRLHF:
    label_smoothing | torchtune: loss.label_smoothing
desirable_weight @ train.kto
    TRL: desirable_weight | LLaMA-Factory: kto_chosen_weight | Axolotl: kto_desirable_weight
undesirable_weight @ train.kto
    TRL: undesirable_weight | LLaMA-Factory: kto_rejected_weight | Axolotl: kto_undesirable_weight
centering_coefficient @ train.reward
    TRL: center_rewards_coefficient | Axolotl: center_rewards_coefficient
margin_per_rank @ train.reward
    OpenRLHF: margin_loss
kl.coef @ train.ppo
    TRL: kl_coef init_kl_coef | OpenRLHF: init_kl_coef | verl: algorithm.kl_ctrl.kl_coef | torchtune: kl_coeff
kl.target @ train.ppo
    LLaMA-Factory: ppo_target | OpenRLHF: kl_target algo.kl.target | verl: algorithm.kl_ctrl.target_kl
kl.horizon @ train.ppo
    OpenRLHF: kl_horizon algo.kl.horizon | verl: algorithm.kl_ctrl.horizon
kl.estimator @ train.ppo
    TRL: kl_estimator | OpenRLHF: kl_estimator | verl: algorithm.kl_penalty
clip_range @ ROLLED
    TRL: cliprange epsilon | OpenRLHF: eps_clip | verl: actor_rollout_ref.actor.clip_ratio clip_ratio | torchtune:
    loss.epsilon
clip_range_high @ GROUPED
    TRL: epsilon_high | OpenRLHF: eps_clip_low_high | verl: actor_rollout_ref.actor.clip_ratio_high clip_ratio_high
critic.clip_range @ train.ppo
    TRL: cliprange_value | OpenRLHF: value_clip | verl: critic.cliprange_value
critic.loss_coef @ train.ppo
    TRL: vf_coef | torchtune: value_coeff loss.value_coeff
critic.learning_rate @ train.ppo
    OpenRLHF: critic_learning_rate | verl: critic.optim.lr
critic.warmup_steps @ train.ppo
    OpenRLHF: freezing_actor_steps | verl: trainer.critic_warmup critic_warmup
gamma @ train.ppo
    TRL: gamma | OpenRLHF: gamma | verl: algorithm.gamma | torchtune: gamma
lam @ train.ppo
    TRL: lam | OpenRLHF: lambd | verl: algorithm.lam | torchtune: lmbda
ppo_epochs @ train.ppo
    TRL: num_ppo_epochs | LLaMA-Factory: ppo_epochs | verl: actor_rollout_ref.actor.ppo_epochs | torchtune:
    ppo_epochs
whiten_rewards @ train.ppo
    TRL: whiten_rewards | LLaMA-Factory: ppo_whiten_rewards | torchtune: whiten_rewards
entropy_coef @ train.ppo
    OpenRLHF: entropy_loss_coef | verl: actor_rollout_ref.actor.entropy_coeff entropy_coeff
num_iterations @ GROUPED
    TRL: num_iterations
scale_rewards @ train.grpo
    TRL: scale_rewards | verl: algorithm.norm_adv_by_std_in_grpo
importance_sampling @ train.grpo
    TRL: importance_sampling_level
rollout_batch_size @ ROLLED # responses, not prompts
    TRL: generation_batch_size | LLaMA-Factory: ppo_buffer_size | OpenRLHF: rollout_batch_size | verl:
    data.train_batch_size train_batch_size
samples_per_prompt @ ROLLED
    TRL: num_generations rloo_k | Axolotl: trl.num_generations | OpenRLHF: n_samples_per_prompt | verl:
    actor_rollout_ref.rollout.n | torchtune: grpo_samples
max_new_tokens @ ROLLED
    TRL: max_completion_length response_length | Axolotl: trl.max_completion_length | LLaMA-Factory: max_new_tokens
    | OpenRLHF: generate_max_len | verl: data.max_response_length max_response_length | torchtune:
    max_generated_tokens
temperature @ ROLLED
    TRL: temperature | OpenRLHF: temperature | verl: actor_rollout_ref.rollout.temperature
rollout_batch @ ROLLED
    TRL: local_rollout_forward_batch_size | OpenRLHF: micro_rollout_batch_size
missing_eos_penalty @ ROLLED
    TRL: missing_eos_penalty | OpenRLHF: overlong_penalty_factor
rewards @ ROLLED
    TRL: reward_funcs | Axolotl: trl.reward_funcs | OpenRLHF: remote_rm_url
backend=vllm @ train.ppo
    TRL: use_vllm | Axolotl: trl.use_vllm | verl: actor_rollout_ref.rollout.name
trust_remote_code @ train.base
    TRL: trust_remote_code | Axolotl: trust_remote_code
chat_template @ train.base
    Axolotl: chat_template | LLaMA-Factory: template | TRL: chat_template_path
max_tokens @ sampling
    transformers: max_new_tokens max_length | TRL: max_completion_length | LLaMA-Factory: max_new_tokens
min_tokens @ sampling
    transformers: min_new_tokens
num_samples @ sampling
    transformers: num_return_sequences | TRL: num_generations
stop @ sampling
    transformers: stop_strings
temperature @ sampling # 0 is greedy
    transformers: do_sample | LLaMA-Factory: do_sample
paths.model @ - # of the recipes `own/…`; train.base.path in others
    TRL: model_name_or_path model_name | Axolotl: base_model | LLaMA-Factory: model_name_or_path | OpenRLHF:
    pretrain | verl: actor_rollout_ref.model.path | torchtune: checkpointer.checkpoint_dir
paths.demonstrations @ - # of the recipes `own/…`
    TRL: dataset_name dataset_path | Axolotl: datasets | LLaMA-Factory: dataset | OpenRLHF: dataset prompt_data |
    verl: data.train_files train_files | torchtune: dataset._component_ dataset.source
root @ -
    transformers: output_dir | Axolotl: output_dir | LLaMA-Factory: output_dir | OpenRLHF: save_path ckpt_path |
    verl: trainer.default_local_dir | torchtune: output_dir
tracking=online @ -
    transformers: report_to | LLaMA-Factory: report_to | Axolotl: wandb_mode use_wandb | OpenRLHF: use_wandb | verl:
    trainer.logger | torchtune: metric_logger._component_
tracking.project @ -
    Axolotl: wandb_project | OpenRLHF: wandb_project | verl: trainer.project_name | torchtune: metric_logger.project
distributed=zero3 @ -
    transformers: deepspeed fsdp fsdp_config | Axolotl: deepspeed fsdp fsdp_config | LLaMA-Factory: deepspeed |
    OpenRLHF: zero_stage ds_zero_stage | verl: actor_rollout_ref.actor.strategy
distributed.num_processes @ -
    verl: trainer.n_gpus_per_node n_gpus_per_node | OpenRLHF: actor_num_gpus_per_node
launcher.slurm.train.nodes @ -
    verl: trainer.nnodes nnodes | OpenRLHF: actor_num_nodes
adapter=lora @ -
    TRL: use_peft | LLaMA-Factory: finetuning_type
adapter=qlora @ -
    TRL: load_in_4bit | Axolotl: load_in_4bit | LLaMA-Factory: quantization_bit | OpenRLHF: load_in_4bit
seed @ -
    transformers: data_seed | verl: data.seed | OpenRLHF: random_seed
launcher.threads_per_process @ -
    transformers: dataloader_num_workers
"""
"""``KNOB=VALUE @ STAGE TYPES # what differs beside the name``, and below it its names by tool, nested ones dotted.

The value is the one that it has here where theirs is only on or off, or is another word.
"""


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A knob of ours and its names elsewhere."""

    knob: str
    value: str
    stages: tuple[str, ...]
    note: str
    names: Mapping[str, tuple[str, ...]]

    def places(self) -> list[str]:
        """Return the knob's keys in the pipeline, one for each stage type that has it."""
        return [f"{stage}.{self.knob}" for stage in self.stages] or [self.knob]


def _rows(table: str) -> Iterator[Foreign]:
    for block in re.split(r"\n(?=\S)", table.strip()):
        head, _, body = block.partition("\n")
        what, _, note = head.partition(" # ")
        knob, _, stages = what.partition(" @ ")
        knob, _, value = knob.partition("=")
        names = (text.partition(":") for text in " ".join(body.split()).split(" | "))
        types = STAGES.get(stages) if stages in STAGES else tuple(stages.split())
        yield Foreign(knob, value, types or (), note, {tool: tuple(text.split()) for tool, _, text in names})


FOREIGN = tuple(_rows(TABLE))


@functools.cache
def _by_name() -> dict[str, list[tuple[Foreign, tuple[str, ...]]]]:
    """Return the rows of every name, each with the tools that use it."""
    found: dict[str, list[tuple[Foreign, tuple[str, ...]]]] = {}
    for row in FOREIGN:
        names = dict.fromkeys(name for of_tool in row.names.values() for name in of_tool)
        for name in names:
            found.setdefault(name, []).append((row, tuple(tool for tool in TOOLS if name in row.names.get(tool, ()))))
    return found


def foreign_hint(key: str, value: Any, stage: str = "", here_only: bool = False, whole_only: bool = False) -> str:
    """Return ``"; lr (torchtune) is train.sft.optimizer.learning_rate here"`` for a key of another tool, or nothing.

    ``key`` is dotted, below the node of ``stage`` or, without one, of the pipeline; of a dictionary, the keys of
    ``value`` belong to it. With ``here_only`` only knobs of that stage count, with ``whole_only`` only names that are
    all that was typed.
    """
    typed = ".".join([key, *_first_keys(value)]).replace("-", "_")
    parts = typed.split(".")
    for start in range(1 if whole_only else len(parts)):
        name = ".".join(parts[start:])
        rows = _by_name().get(name, [])
        of_stage = [(row, tools) for row, tools in rows if stage in row.stages]
        if chosen := of_stage or ([] if here_only else rows):
            row, tools = chosen[0]
            ours = f"{stage}.{row.knob}{_value(row)}" if of_stage else " or ".join(_place(each) for each, _ in chosen)
            return f"; {name} ({', '.join(tools)}) is {ours} here{f' ({row.note})' if row.note else ''}"
    return ""


def _value(row: Foreign) -> str:
    return f"={row.value}" if row.value else ""


def _place(row: Foreign) -> str:
    """Return where a knob is given: of several stage types, the key with the type left open."""
    if len(row.stages) <= 1:
        return f"{row.places()[0]}{_value(row)}"
    folder = row.stages[0].partition(".")[0]
    types = ", ".join(stage.partition(".")[2] for stage in row.stages)
    return f"{folder}.STAGE.{row.knob}{_value(row)} for a STAGE of {types}"


def _first_keys(value: Any) -> Iterator[str]:
    while isinstance(value, dict) and value:
        key = next(iter(value))
        yield str(key)
        value = value[key]
