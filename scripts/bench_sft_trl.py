"""Trains with TRL's SFTTrainer as `bench_sft.py` orders it; prints seconds, tokens and losses of its steps.

python scripts/bench_sft_trl.py ORDER.json
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import trl
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoTokenizer, LlamaForCausalLM, TrainerCallback


class Clock(TrainerCallback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


class InOrder(trl.SFTTrainer):
    """Takes rows in the order in which they are given, and counts the tokens that are no padding."""

    tokens = 0

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        """Run a micro-batch."""
        mask = inputs.get("attention_mask")
        self.tokens += int(mask.sum()) if mask is not None else inputs["input_ids"].numel()
        return super().training_step(model, inputs, *rest)


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(order["threads"])
    clock, packed = Clock(), order["packing"]
    config = trl.SFTConfig(
        output_dir=order["work"],
        per_device_train_batch_size=1 if packed else order["micro_batch_size"],
        gradient_accumulation_steps=order["packs"] if packed else order["rows"] // order["micro_batch_size"],
        max_steps=order["steps"],
        learning_rate=order["learning_rate"],
        lr_scheduler_type="constant",
        packing=packed,
        max_length=order["pack_length"] if packed else None,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model=LlamaForCausalLM.from_pretrained(order["model"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(order["data"]),
        processing_class=AutoTokenizer.from_pretrained(order["model"]),
        callbacks=[clock],
    )
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    found = {"seconds": seconds, "tokens": trainer.tokens / order["steps"], "losses": losses}
    print("FOUND", json.dumps(found))


if __name__ == "__main__":
    main()
