"""Small real artifacts for tests: a Llama with random weights, its tokenizer, and tokens made from a seed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import load_tokenizer, prepare_tokenizer, tokenizer_digest
from posttrain.data.messages import Conversation
from posttrain.models.load import NEW_TOKENS
from posttrain.stage.artifact import MANIFEST, Manifest, Parent, commit, read_manifest

WORDS = [
    "red",
    "blue",
    "green",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "cat",
    "dog",
    "bird",
    "runs",
    "sings",
    "sleeps",
    "here",
    "there",
    "now",
    "then",
]
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}


def commit_artifact(
    directory: Path, kind: str, stage: str, parents: dict[str, Path] | None = None, **facts: Any
) -> Path:
    """Commit what stands in ``directory`` as an artifact in its place; ``parents`` are artifacts by input."""
    made = {name: (read_manifest(path), path.name) for name, path in (parents or {}).items()}
    temporary = directory.with_name(f".{directory.name}.incomplete")
    directory.rename(temporary)
    manifest = Manifest(
        kind=kind,
        stage=stage,
        run=f"test.{stage}",
        key=directory.name.rpartition("-")[2].ljust(64, "0"),
        digest="",
        files={},
        parents={name: Parent(of.kind, of.digest, folder) for name, (of, folder) in made.items()},
        config={},
        code_digest="",
        seed=0,
        metrics={},
        headline="",
        tokens=0,
        wall_seconds=0.0,
        created="2026-01-01T00:00:00Z",
        packages={},
        hardware={},
        licenses=[],
        facts=facts,
    )
    commit(temporary, directory, manifest)
    return directory


def recommitted(directory: Path) -> Path:
    """Commit an artifact once more, as it is now that a test has edited it; it has no parents then."""
    manifest = read_manifest(directory)
    (directory / MANIFEST).unlink()
    return commit_artifact(directory, manifest.kind, manifest.stage, **manifest.facts)


def build_model(
    root: Path,
    seed: int = 0,
    name: str = "base-0001",
    attention_dropout: float = 0.1,
    vocab_size: int = 400,
    template: str = "chatml",
    eos_token: str | None = None,
    shape: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    new_tokens: bool = False,
) -> Path:
    """Commit a two-layer Llama with a byte-level BPE tokenizer and our chat template, or another one.

    ``shape`` are fields of `LlamaConfig` for a larger one. With ``new_tokens`` the template's are said to be new to it.
    Attention dropout is on, so that resuming exactly needs the random state.
    """
    directory = root / "artifacts" / name
    directory.mkdir(parents=True)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    bpe.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    prepare_tokenizer(tokenizer, template, "<|pad|>", eos_token)
    tokenizer.save_pretrained(str(directory))
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        attention_dropout=attention_dropout,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        **{**sizes, "num_key_value_heads": 2, "max_position_embeddings": 128, **(shape or {})},
    )
    LlamaForCausalLM(config).to(dtype).save_pretrained(str(directory))
    if new_tokens:
        ids = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
        (directory / NEW_TOKENS).write_text(json.dumps({"ids": ids}))
    return commit_artifact(directory, "model", "base")


def build_reward_model(root: Path, model: Path, seed: int = 0, name: str = "reward-0001") -> Path:
    """Commit a reward model with a model's shape and tokenizer, and random weights."""
    directory = root / "artifacts" / name
    load_tokenizer(model).save_pretrained(str(directory))
    config = AutoConfig.from_pretrained(model, num_labels=1)
    config.reward_mean, config.reward_std = 0.25, 0.5
    torch.manual_seed(seed)
    classifier = LlamaForSequenceClassification(config)
    torch.nn.init.normal_(classifier.score.weight)
    classifier.save_pretrained(str(directory))
    return commit_artifact(directory, "reward_model", "reward")


def _sentence(generator: random.Random, low: int, high: int) -> str:
    return " ".join(generator.choices(WORDS, k=generator.randint(low, high)))


def write_tokens(directory: Path, model: Path, record_type: str, rows: dict[str, list[dict[str, Any]]]) -> Path:
    """Commit rows of token ids by split as tokens that a model's tokenizer made."""
    tokenizer = load_tokenizer(model)
    directory.mkdir(parents=True)
    for split, of_split in rows.items():
        pq.write_table(pa.Table.from_pylist(of_split, schema=SCHEMAS[record_type]), directory / f"{split}.parquet")
    facts = {
        "record_type": record_type,
        "max_length": 128,
        "loss_on": "completion",
        "template_sha256": template_digest(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }
    (directory / "tokens.json").write_text(json.dumps(facts))
    return commit_artifact(directory, "tokens", directory.name.partition("-")[0])


_IDS = pa.list_(pa.int32())
_COMMON = [("id", pa.string()), ("source", pa.string()), ("language", pa.string()), ("task", pa.string())]
SCHEMAS = {
    "prompt": pa.schema(
        [*_COMMON, ("prompt_ids", _IDS), *((name, pa.string()) for name in ("conversation", "reference", "scorer"))]
    ),
    "demonstration": pa.schema([*_COMMON, ("input_ids", _IDS), ("labels", _IDS)]),
    "comparison": pa.schema([*_COMMON, ("prompt_ids", _IDS), ("responses_ids", pa.list_(_IDS)), ("ranks", _IDS)]),
    "unpaired": pa.schema([*_COMMON, ("prompt_ids", _IDS), ("response_ids", _IDS), ("label", pa.bool_())]),
}


def build_demonstrations(root: Path, model: Path, count: int = 48, seed: int = 0, name: str = "demos-0001") -> Path:
    """Commit tokens of demonstrations of varied length; an eighth of them are held out."""
    tokenizer, generator = load_tokenizer(model), random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for number in range(count):
        prompt = tokenizer(
            f"<|im_start|>user\n{_sentence(generator, 2, 8)}<|im_end|>\n<|im_start|>assistant\n"
        ).input_ids
        answer = tokenizer(f"{_sentence(generator, 1, 10)}<|im_end|>").input_ids
        row = {"id": f"demo/{number}", "source": "demo", "language": "en", "task": "words"}
        row |= {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}
        rows["eval" if number % 8 == 7 else "train"].append(row)
    return write_tokens(root / "artifacts" / name, model, "demonstration", rows)


def build_comparisons(root: Path, model: Path, count: int = 32, seed: int = 0, name: str = "groups-0001") -> Path:
    """Commit tokens of ranked groups with K from 2 to 4; shorter responses are better."""
    tokenizer, generator = load_tokenizer(model), random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for number in range(count):
        prompt = tokenizer(
            f"<|im_start|>user\n{_sentence(generator, 2, 6)}<|im_end|>\n<|im_start|>assistant\n"
        ).input_ids
        answers = [
            tokenizer(f"{_sentence(generator, 1 + 4 * k, 3 + 4 * k)}<|im_end|>").input_ids
            for k in range(generator.randint(2, 4))
        ]
        order = generator.sample(range(len(answers)), len(answers))
        row = {"id": f"group/{number}", "source": "groups", "language": "en", "task": "words", "prompt_ids": prompt}
        row |= {"responses_ids": [answers[k] for k in order], "ranks": [k + 1 for k in order]}
        rows["eval" if number % 8 == 7 else "train"].append(row)
    return write_tokens(root / "artifacts" / name, model, "comparison", rows)


def build_unpaired(root: Path, model: Path, count: int = 48, seed: int = 0, name: str = "labelled-0001") -> Path:
    """Commit tokens of unpaired preferences; long responses are desirable. An eighth is held out."""
    tokenizer, generator = load_tokenizer(model), random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for number in range(count):
        prompt = f"<|im_start|>user\n{_sentence(generator, 2, 6)}<|im_end|>\n<|im_start|>assistant\n"
        label = generator.random() < 0.5
        answer = _sentence(generator, *((5, 8) if label else (1, 3)))
        row = {"id": f"labelled/{number}", "source": "labelled", "language": "en", "task": "words", "label": label}
        row |= {"prompt_ids": tokenizer(prompt).input_ids, "response_ids": tokenizer(f"{answer}<|im_end|>").input_ids}
        rows["eval" if number % 8 == 7 else "train"].append(row)
    return write_tokens(root / "artifacts" / name, model, "unpaired", rows)


def build_prompts(
    root: Path,
    model: Path,
    count: int = 24,
    seed: int = 0,
    name: str = "prompts-0001",
    words: int = 6,
    reference: str | None = None,
    scorer: str | None = None,
) -> Path:
    """Commit tokens of prompts of two to ``words`` words, for rollouts."""
    tokenizer, generator = load_tokenizer(model), random.Random(seed)
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "eval": []}
    for number in range(count):
        text = _sentence(generator, 2, words)
        prompt = tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids
        row = {"id": f"prompt/{number}", "source": "prompts", "language": "en", "task": "words", "prompt_ids": prompt}
        asked = Conversation([{"role": "user", "content": text}])
        row |= {"conversation": asked.to_json(), "reference": reference, "scorer": scorer}
        rows["train"].append(row)
    return write_tokens(root / "artifacts" / name, model, "prompt", rows)


def stage_command(module: str, output: Path, inputs: dict[str, Path], **knobs: Any) -> list[str]:
    """Return the command that runs a stage by hand in one process."""
    arguments = [f"inputs.{name}={path}" for name, path in inputs.items()]
    arguments += [f"output={output}", "tracking.wandb=disabled"]
    arguments += [f"{name.replace('__', '.')}={value}" for name, value in knobs.items()]
    return [sys.executable, "-m", f"posttrain.{module}", *arguments]


def run_stage(
    module: str, output: Path, inputs: dict[str, Path], expect: int = 0, **knobs: Any
) -> subprocess.CompletedProcess[str]:
    """Run a stage by hand in one process and check its exit code."""
    command = stage_command(module, output, inputs, **knobs)
    done = subprocess.run(command, env={**os.environ, **ENVIRONMENT}, capture_output=True, text=True, check=False)
    assert done.returncode == expect, f"exit {done.returncode}, wanted {expect}\n{done.stderr[-4000:]}"
    return done
