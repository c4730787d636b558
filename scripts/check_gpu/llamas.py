"""Random Llamas, their tokenizers and tokens as committed artifacts."""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lenders  # noqa: F401
import torch
from bench_ppo import word_tokenizer
from build_artifacts import build_reward_model, commit_artifact, write_tokens
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation
from posttrain.stage.artifact import is_artifact

Row = dict[str, Any]
SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "0.5B": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 28, "num_attention_heads": 16},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}
"""Fields of `LlamaConfig`; a quarter of the heads have keys and values of their own."""


@dataclasses.dataclass(frozen=True)
class Bench:
    """A random model and the tokens of a script, made once."""

    root: Path
    size: str
    vocabulary: int

    def path(self, name: str) -> Path:
        """Return where the artifact of that name stands."""
        return self.root / "artifacts" / name

    def model(self) -> Path:
        """Return a model of the size, stored in bfloat16."""
        path = self.path(f"model{self.size.replace('.', '_')}-0001")
        if stands(path):
            return path
        tokenizer = word_tokenizer(self.vocabulary)
        fields = SIZES[self.size]
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=4096,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            num_key_value_heads=fields["num_attention_heads"] // 4,
            **fields,
        )
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            model = LlamaForCausalLM(config)
        model.to(torch.bfloat16).save_pretrained(path)
        del model
        torch.cuda.empty_cache()  # what follows has the GPU to itself
        tokenizer.save_pretrained(path)
        return commit_artifact(path, "model", "base")

    def reward_model(self) -> Path:
        """Return a reward model of the same shape."""
        path = self.path("reward-0001")
        return path if stands(path) else build_reward_model(self.root, self.model())

    def tokenizer(self) -> Any:
        """Return the model's tokenizer."""
        return load_tokenizer(self.model())

    def words(self, generator: random.Random, count: int) -> list[int]:
        """Return random tokens, special ones apart."""
        return [generator.randrange(10, self.vocabulary - 10) for _ in range(count)]

    def rows_of_words(self, count: int, length: int) -> list[list[int]]:
        """Return rows of random tokens, the same ones each time."""
        generator = random.Random(0)
        return [self.words(generator, length) for _ in range(count)]

    def demonstrations(self, count: int, length: int) -> Path:
        """Return demonstrations of one length, trained on every token."""
        rows = [{"input_ids": ids, "labels": ids} for ids in self.rows_of_words(count, length)]
        return self._tokens("demonstration", rows)

    def comparisons(self, count: int, prompt: int, response: int) -> Path:
        """Return pairs of responses."""
        generator = random.Random(0)
        rows = [
            {"prompt_ids": self.words(generator, prompt), "ranks": [1, 2]}
            | {"responses_ids": [[*self.words(generator, response - 1), self.vocabulary - 2] for _ in range(2)]}
            for _ in range(count)
        ]
        return self._tokens("comparison", rows)

    def prompts(self, count: int, length: int) -> Path:
        """Return prompts for rollouts."""
        asked = Conversation([{"role": "user", "content": "words"}])
        more = {"conversation": asked.to_json(), "reference": None, "scorer": None}
        return self._tokens("prompt", [{"prompt_ids": ids, **more} for ids in self.rows_of_words(count, length)])

    def _tokens(self, record_type: str, rows: Sequence[Row]) -> Path:
        path = self.path(f"{record_type}s{self.size.replace('.', '_')}-0001")
        if stands(path):
            return path
        common = {"source": "random", "language": "und", "task": "words"}
        train = [{"id": f"{record_type}/{number}", **common, **row} for number, row in enumerate(rows)]
        return write_tokens(path, self.model(), record_type, {"train": train, "eval": []})


def stands(path: Path) -> bool:
    """Return whether an artifact is there; what a part that was cut off left in its place is removed."""
    if is_artifact(path):
        return True
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(path.with_name(f".{path.name}.incomplete"), ignore_errors=True)
    return False
