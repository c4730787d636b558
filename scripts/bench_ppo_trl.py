"""The other side of bench_ppo.py: TRL 1.12's PPOTrainer, run by the interpreter of an environment of its own.

python scripts/bench_ppo_trl.py ORDER.json      prints {"seconds": [seconds of each update]}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from trl.experimental.ppo import PPOConfig, PPOTrainer


class Clock(TrainerCallback):
    def __init__(self) -> None:
        self.times = [time.monotonic()]

    def on_step_end(self, *args, **kwargs) -> None:
        self.times.append(time.monotonic())


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(order["threads"])
    tokenizer = AutoTokenizer.from_pretrained(order["policy"], padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(order["policy"], dtype=torch.float32)
    reference = AutoModelForCausalLM.from_pretrained(order["policy"], dtype=torch.float32)
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(order["reward"], num_labels=1, dtype=torch.float32)
        for _ in range(2)
    )
    config = PPOConfig(
        output_dir=order["work"],
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
        per_device_train_batch_size=order["micro_batch_size"],
        gradient_accumulation_steps=order["episodes"] // order["micro_batch_size"],
        num_mini_batches=1,
        local_rollout_forward_batch_size=order["rollout_batch"],
        num_ppo_epochs=order["ppo_epochs"],
        total_episodes=order["episodes"] * order["updates"],
        response_length=order["max_new_tokens"],
        stop_token="eos" if order["ends"] else None,
        temperature=1.0,
        missing_eos_penalty=1.0,
        learning_rate=1e-6,
        kl_coef=0.05,
        num_sample_generations=0,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        seed=0,
    )
    rows = Dataset.from_dict({"input_ids": order["prompts"]})
    clock = Clock()
    trainer = PPOTrainer(
        config, tokenizer, policy, reference, reward, rows, value, eval_dataset=rows.select(range(1)), callbacks=[clock]
    )
    clock.times = [time.monotonic()]
    trainer.train()
    seconds = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
    print("SECONDS " + json.dumps(seconds))


if __name__ == "__main__":
    main()
