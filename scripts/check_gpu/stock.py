"""Trains with a stock trainer of TRL as `beside.py` orders it, and prints the seconds of each step as the last line.

python scripts/check_gpu/stock.py ORDER.json
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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback


class Clock(TrainerCallback):
    """Notes when each step has ended, on the GPU too."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note the time."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    clock, method = Clock(), order["method"]
    common = {
        "output_dir": order["work"],
        "per_device_train_batch_size": order["micro_batch_size"],
        "gradient_accumulation_steps": order["global_batch_size"] // order["micro_batch_size"],
        "max_steps": order["max_steps"],
        "learning_rate": 1e-6,
        "bf16": True,
        "activation_checkpointing": False,
        "gradient_checkpointing": False,
        "max_length": order["max_length"],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    config, trainer = {
        "sft": (trl.SFTConfig, trl.SFTTrainer),
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
    }[method]
    own = {"packing": True} if method == "sft" else {"precompute_ref_log_probs": True, "beta": 0.1}
    model = AutoModelForCausalLM.from_pretrained(order["model"], dtype=torch.float32)
    trainer(
        model=model,
        args=config(**common, **own),
        train_dataset=Dataset.from_list(order["rows"]),
        processing_class=AutoTokenizer.from_pretrained(order["model"]),
        callbacks=[clock],
    ).train()
    seconds = [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]
    print("SECONDS", json.dumps(seconds))


if __name__ == "__main__":
    main()
