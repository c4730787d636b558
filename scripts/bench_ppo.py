"""Episodes per second and peak memory of PPO beside TRL 1.12's PPOTrainer, on the same models, prompts and numbers.

    python scripts/bench_ppo.py [--cases abc] [--threads 2] [--turns 2] [--environment DIR] [--keep]

A Llama of 6 layers and width 288 with random weights, a reward model and critic of the same trunk, 64 episodes per
update, prompts of 16 to 64 tokens, 4 PPO epochs of one optimizer step each, float32. The two sides run in turns, each
in processes of its own; an update is timed from its rollout to its last step, a process's first is not counted.
TRL 1.12 gets an environment of its own, made on first use. What is worse by more than a tenth than the ratios in
`scripts/baselines/ppo.json` is shown. The bound is the arithmetic that must be done (matrix
products of sampling, scoring and training, counted below) over the rate of a float32 matrix product in the same run.

(a) vocabulary 4096, 64 new tokens; (b) 32,000 and 128; (c) as (b), responses end at about 40 % of the limit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}

import itertools

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from baseline import show
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import load_tokenizer, prepare_tokenizer, tokenizer_digest
from posttrain.data.messages import Conversation
from posttrain.data.records import Prompt
from posttrain.data.tokenize import SCHEMAS
from posttrain.stage.artifact import Manifest, commit

HERE = Path(__file__).resolve().parent
EPISODES, EPOCHS, UPDATES = 64, 4, 3
HIDDEN, LAYERS, INTERMEDIATE = 288, 6, 768
# the quickest of those tried on two cores
OUR_SETTINGS = {"micro_batch_size": 8, "rollout_batch": 64, "scoring_tokens": 4096}
THEIR_SETTINGS = {"micro_batch_size": 16, "rollout_batch": 64}


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    vocab: int
    max_new_tokens: int
    mean_share: float | None
    """Mean length of responses over the limit; None where none ends."""


CASES = {"a": Case("a", 4096, 64, None), "b": Case("b", 32000, 128, None), "c": Case("c", 32000, 128, 0.4)}


def build(root: Path, case: Case) -> dict[str, Any]:
    """Write policy, reward model and prompts as artifacts; returns their places and the prompts' tokens."""
    generator = random.Random(0)
    tokenizer = word_tokenizer(case.vocab)
    torch.manual_seed(0)
    config = small_llama(tokenizer, positions=256)
    config.num_labels = 1
    policy = LlamaForCausalLM(config)
    end_at_random(policy, tokenizer.eos_token_id, case)
    reward = LlamaForSequenceClassification(config)
    reward.config.reward_mean, reward.config.reward_std = 0.0, 1.0
    places = {}
    for name, kind, model in (("policy", "model", policy), ("reward", "reward_model", reward)):
        directory = root / f".{name}"
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
        places[name] = put(root, name, kind)
    tokenizer = load_tokenizer(places["policy"])
    words = range(10, case.vocab)
    prompts = [[generator.choice(words) for _ in range(generator.randint(16, 64))] for _ in range(EPISODES)]
    places["data"] = prompt_tokens(root, tokenizer, prompts)
    return {**places, "prompts": prompts}


def small_llama(tokenizer: Any, positions: int, tied: bool = False) -> LlamaConfig:
    """Return the shape of the model that the benchmarks of training have in common."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=6,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )


def word_tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer with a word for every number below ``vocab``, less the special tokens."""
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(vocab - 3)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    prepare_tokenizer(tokenizer, "chatml", "<|pad|>")
    assert len(tokenizer) == vocab
    return tokenizer


@torch.no_grad()
def end_at_random(policy: LlamaForCausalLM, eos: int, case: Case) -> None:
    """Give EOS a constant probability: the last hidden dimension is a constant that only its output row reads."""
    wanted = 1 / (case.mean_share * case.max_new_tokens) if case.mean_share else 0.0
    policy.model.embed_tokens.weight[:, -1] = 1.0
    for layer in policy.model.layers:
        layer.self_attn.o_proj.weight[-1] = 0
        layer.mlp.down_proj.weight[-1] = 0
    policy.lm_head.weight[:, -1] = 0
    ids = torch.arange(10, 74)[None]
    constant = float(policy.model(input_ids=ids).last_hidden_state[..., -1].mean())
    logit = torch.log(torch.tensor(wanted * case.vocab)) if wanted else torch.tensor(-30.0)
    policy.lm_head.weight[eos] = 0
    policy.lm_head.weight[eos, -1] = logit / constant


def prompt_tokens(root: Path, tokenizer: Any, prompts: list[list[int]]) -> Path:
    directory = root / ".data"
    directory.mkdir()
    asked = Conversation([{"role": "user", "content": "random words"}]).to_json()
    rows = [
        {"id": f"p{n}", "source": "bench", "language": "und", "task": "bench", "prompt_ids": ids}
        | {"conversation": asked, "reference": None, "scorer": None}
        for n, ids in enumerate(prompts)
    ]
    for split, part in (("train", rows), ("eval", [])):
        pq.write_table(pa.Table.from_pylist(part, schema=SCHEMAS[Prompt]), directory / f"{split}.parquet")
    facts = {
        "record_type": "prompt",
        "max_length": 128,
        "template_sha256": template_digest(tokenizer),
        "tokenizer_sha256": tokenizer_digest(tokenizer),
    }
    (directory / "tokens.json").write_text(json.dumps(facts))
    return put(root, "data", "tokens")


def put(root: Path, name: str, kind: str) -> Path:
    """Commit the files of ``.name`` as an artifact."""
    fields = {key: {} for key in ("parents", "config", "metrics", "packages", "hardware", "facts", "files")}
    texts = {"code_digest": "", "headline": "", "created": "", "digest": ""}
    manifest = Manifest(
        kind=kind, stage=name, run=f"bench.{name}", key=name.ljust(64, "0"), seed=0, tokens=0, wall_seconds=0.0,
        licenses=[], **fields, **texts,
    )  # fmt: skip
    commit(root / f".{name}", root / name, manifest)
    return root / name


def ours(root: Path, places: dict[str, Any], case: Case, threads: int, turn: int) -> dict[str, Any]:
    """Run our stage; returns the seconds of each counted update, of its parts, and the peak memory in MB."""
    output = root / f"ours-{turn}"
    knobs = {
        "rollout_batch_size": EPISODES,
        "global_batch_size": EPISODES,
        "ppo_epochs": EPOCHS,
        "epochs": UPDATES,
        "max_new_tokens": case.max_new_tokens,
        "optimizer.learning_rate": 1e-6,
        "log_steps": 1,
        "save_steps": 1000,
        **OUR_SETTINGS,
    }
    inputs = [
        f"inputs.{name}={places[key]}" for name, key in (("model", "policy"), ("data", "data"), ("reward", "reward"))
    ]
    command = [sys.executable, "-m", "posttrain.train.ppo", *inputs, f"output={output}", "tracking.wandb=disabled"]
    peak, _ = run([*command, *(f"{name}={value}" for name, value in knobs.items())], threads)
    rows = [json.loads(line) for line in (output / "logs" / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    ends = [rows[EPOCHS * (update + 1) - 1]["seconds"] for update in range(UPDATES)]
    firsts = [rows[EPOCHS * update] for update in range(1, UPDATES)]
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    parts = {name: statistics.mean(row[f"time/{name}"] for row in firsts) for name in ("rollout", "scoring")}
    lengths = statistics.mean(row["response/length"] for row in firsts)
    return {"seconds": seconds, "peak": peak, "parts": parts, "length": lengths}


def theirs(root: Path, places: dict[str, Any], case: Case, threads: int, turn: int, python: Path) -> dict[str, Any]:
    """Run TRL's trainer in its own environment."""
    order = {
        **{name: str(places[name]) for name in ("policy", "reward")},
        **THEIR_SETTINGS,
        "prompts": places["prompts"],
        "episodes": EPISODES,
        "updates": UPDATES,
        "ppo_epochs": EPOCHS,
        "max_new_tokens": case.max_new_tokens,
        "ends": case.mean_share is not None,
        "threads": threads,
        "work": str(root / f"theirs-{turn}"),
    }
    path = root / "order.json"
    path.write_text(json.dumps(order))
    peak, printed = run([str(python), str(HERE / "bench_ppo_trl.py"), str(path)], threads)
    (line,) = [line for line in printed.splitlines() if line.startswith("SECONDS ")]
    return {"seconds": json.loads(line.removeprefix("SECONDS "))[1:], "peak": peak}


def run(command: list[str], threads: int) -> tuple[float, str]:
    """Run a command to its end; returns its peak memory in MB and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors, stdin=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        output.seek(0), errors.seek(0)
        if status:
            sys.exit(f"{' '.join(command)}\n{errors.read()[-3000:]}")
        return usage.ru_maxrss / 1024, output.read()


def environment_of_trl(directory: Path) -> Path:
    """Return the interpreter of an environment with TRL 1.12, which is made where it is not there yet."""
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
        for requirement in (f"torch=={torch.__version__.partition('+')[0]}", "trl==1.12.0", "transformers==5.23.0"):
            subprocess.run([python, "-m", "pip", "install", "--quiet", requirement], check=True)
    return python


def matmul_rate() -> float:
    """Return the FLOP/s of a float32 matrix product here."""
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        started = time.perf_counter()
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * 2048**3 / best


def must_do(case: Case, prompts: list[list[int]], length: float) -> dict[str, float]:
    """Return the FLOPs of the matrix products of an update, by part; a backward pass is twice its forward.

    Sampling and the reference need trunk and output layer, the latter on response tokens alone; critic and reward model
    the trunk.
    """
    trunk = 2 * LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)
    head = 2 * HIDDEN * case.vocab
    response = length * EPISODES
    tokens = sum(map(len, prompts)) + response
    policy = tokens * trunk + response * head
    return {
        "generate": policy,
        "score": policy + 2 * tokens * trunk,
        "train": 3 * EPOCHS * (policy + tokens * trunk),
    }


def report(
    case: Case, our: list[dict[str, Any]], their: list[dict[str, Any]], places: dict[str, Any]
) -> dict[str, float]:
    """Print what was found of a case; returns its figures."""
    our_seconds = statistics.median(second for result in our for second in result["seconds"])
    their_seconds = statistics.median(second for result in their for second in result["seconds"])
    peaks = [statistics.median(result["peak"] for result in side) for side in (our, their)]
    length = statistics.mean(result["length"] for result in our)
    rate = matmul_rate()
    flops = must_do(case, places["prompts"], length)
    bound = sum(flops.values()) / rate
    parts = {name: statistics.mean(result["parts"][name] for result in our) for name in ("rollout", "scoring")}
    print(f"\n({case.name}) vocabulary {case.vocab}, {case.max_new_tokens} new tokens, mean length {length:.1f}")
    print(f"  ours {our_seconds:.2f} s an update, {peaks[0]:.0f} MB; TRL 1.12 {their_seconds:.2f} s, {peaks[1]:.0f} MB")
    train = our_seconds - parts["rollout"] - parts["scoring"]
    for name, seconds, part in (
        ("generate", parts["rollout"], "generate"),
        ("score", parts["scoring"], "score"),
        ("train", train, "train"),
    ):
        least = flops[part] / rate
        print(
            f"  {name:<9}{seconds:7.2f} s; {flops[part] / 1e9:6.0f} GFLOP, "
            f"at least {least:5.2f} s ({least / seconds:.0%})"
        )
    print(f"  bound at {rate / 1e9:.0f} GFLOP/s: {bound:.2f} s, {their_seconds / bound:.2f} x TRL")
    return {
        f"ppo_{case.name}_speed": their_seconds / our_seconds,
        f"ppo_{case.name}_memory": peaks[0] / peaks[1],
        f"ppo_{case.name}_share_of_bound": bound / our_seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="abc")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=HERE.parent / "outputs" / "trl-1.12")
    parser.add_argument("--keep", action="store_true", help="make the figures those that later runs compare with")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    python = environment_of_trl(options.environment)
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads, torch {torch.__version__}")
    figures: dict[str, float] = {}
    for name in options.cases:
        case = CASES[name]
        root = Path(tempfile.mkdtemp(prefix="bench-ppo-"))
        try:
            places = build(root, case)
            our, their = [], []
            for turn in range(options.turns):
                our.append(ours(root, places, case, options.threads, turn))
                their.append(theirs(root, places, case, options.threads, turn, python))
            figures |= report(case, our, their, places)
        finally:
            shutil.rmtree(root)
    show("ppo", figures, options.keep)


if __name__ == "__main__":
    main()
