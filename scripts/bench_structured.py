"""What structured output costs: the mask per token at batch 64 and vocabulary 32,000, compiling, and a whole step.

    python scripts/bench_structured.py [--threads 1] [--tokens 96] [--clock cpu]

The tokenizer is a byte-level BPE trained here on Python's own library; the schemas are those of tests/schemas. Tokens
are drawn uniformly from what the mask allows, which visits more of a grammar than a trained model does.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.constraint import apply_bitmask, mask_words, unpack_bitmask
from posttrain.sample.structured.grammar import Grammar, json_schema_grammar
from posttrain.stage.errors import UsageError

SCHEMAS = Path(__file__).resolve().parents[1] / "tests" / "schemas"
BATCH, VOCABULARY = 64, 32_000
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
now = CLOCKS["cpu"]


def trained_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    files += sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*/*.py"))[:1500]
    tokenizer.train_from_iterator((file.read_text(encoding="utf-8", errors="ignore") for file in files), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


def compiled(vocabulary: Vocabulary) -> list[Grammar]:
    """Compile all schemas, and print how long that took and how many were refused."""
    schemas: list[dict[str, Any]] = [
        schema for file in sorted(SCHEMAS.glob("*.json")) for schema in json.loads(file.read_text("utf-8")).values()
    ]
    grammars, seconds = [], []
    for schema in schemas:
        start = now()
        try:
            grammars.append(json_schema_grammar(vocabulary, schema))
        except UsageError:
            continue
        seconds.append(now() - start)
    refused = len(schemas) - len(grammars)
    print(f"RESULT schemas {len(schemas)}")
    print(f"RESULT refused {refused} ({refused / len(schemas):.1%})")
    for share in (50, 90, 99):
        print(f"RESULT compile.p{share} {1e3 * np.percentile(seconds, share):.1f} ms")
    return grammars


def walk(grammars: list[Grammar], budget: int) -> dict[str, list[float]]:
    """Return the seconds of each call of 64 samples at a time, for all grammars in turn, by kind of call."""
    random, seconds = np.random.default_rng(0), {"fill": [], "advance": [], "apply": []}
    bitmask_BW = np.zeros((BATCH, mask_words(VOCABULARY)), np.int32)
    logits_BV = torch.randn(BATCH, VOCABULARY)
    for first in range(0, len(grammars), BATCH):
        running = [(grammar(), [0]) for grammar in (grammars[first : first + BATCH] * BATCH)[:BATCH]]
        while running:
            for row, (constraint, taken) in enumerate(running):
                start = now()
                constraint.fill(bitmask_BW[row], budget - taken[0])
                seconds["fill"].append(now() - start)
            start = now()
            apply_bitmask(logits_BV.zero_()[: len(running)], bitmask_BW[: len(running)])
            if len(running) == BATCH:
                seconds["apply"].append(now() - start)
            allowed_BV = unpack_bitmask(bitmask_BW[: len(running)], VOCABULARY).numpy()
            for row, (constraint, taken) in enumerate(running):
                token = int(random.choice(np.flatnonzero(allowed_BV[row])))
                start = now()
                accepted = constraint.advance(token)
                seconds["advance"].append(now() - start)
                taken[0] += accepted
                if token in grammars[0].vocabulary.ends:
                    taken[0] = budget
            running = [(c, taken) for c, taken in running if taken[0] < budget and not c.ended]
    return seconds


def report_masks(grammars: list[Grammar], budget: int) -> None:
    walk(grammars, budget)  # a first pass fills the lexers' caches, as the first samples of a run do
    seconds = walk(grammars, budget)
    for kind in ("fill", "advance"):
        values = 1e6 * np.array(seconds[kind])
        p50, p99 = np.percentile(values, [50, 99])
        print(f"RESULT {kind} {values.mean():.1f} us/token (p50 {p50:.1f}, p99 {p99:.1f})")
    apply = 1e3 * statistics.median(seconds["apply"])
    print(f"RESULT apply {apply:.2f} ms/step of {BATCH} rows, {1e3 * apply / BATCH:.1f} us/token")
    mean = sum(1e6 * np.mean(seconds[kind]) for kind in ("fill", "advance")) + 1e3 * apply / BATCH
    print(f"RESULT mask_total {mean:.1f} us/token")


def report_apply() -> None:
    """Print the time of ways to apply a mask of which half, or one bit in a hundred, is set."""
    for share in (0.01, 0.5):
        bits = np.random.default_rng(0).random((BATCH, VOCABULARY)) < share
        words = np.packbits(bits, axis=1, bitorder="little").view(np.int32)
        logits_BV, shifts = torch.zeros(BATCH, VOCABULARY), torch.arange(32, dtype=torch.int32)
        ways: dict[str, Callable[[], object]] = {
            "lookup": lambda words=words, logits=logits_BV: apply_bitmask(logits, words),
            "unpackbits_masked_fill": lambda words=words, logits=logits_BV: logits.masked_fill_(
                ~unpack_bitmask(words, VOCABULARY), -torch.inf
            ),
            "shifts_masked_fill": lambda words=words, logits=logits_BV, shifts=shifts: logits.masked_fill_(
                ((torch.from_numpy(words)[:, :, None] >> shifts) & 1).flatten(1) == 0, -torch.inf
            ),
        }
        for name, way in ways.items():
            times = []
            for _ in range(20):
                start = now()
                way()
                times.append(now() - start)
            print(f"RESULT apply.{name}.allowed_{share:.0%} {1e3 * statistics.median(times):.2f} ms")


def report_engine(tokenizer: PreTrainedTokenizerFast, grammars: list[Grammar], tokens: int) -> None:
    """Print the time of the engine with and without grammars, on a Llama of 15 million parameters."""
    torch.manual_seed(0)
    shape = {"hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, **shape, **ends))
    sampler, prompts = Sampler(model, tokenizer), [[5] * 16] * BATCH
    wide = [grammar for grammar in grammars if grammar.min_tokens <= tokens // 2]
    constraints = [wide[number % len(wide)] for number in range(BATCH)]
    params = SamplingParams(max_tokens=tokens)
    for name, given in (("free", None), ("constrained", constraints)):
        rates = []
        for _ in range(3):
            start = now()
            samples = sampler.generate(prompts, params, constraints=given)
            rates.append(sum(len(row[0].token_ids) for row in samples) / (now() - start))
        print(f"RESULT engine.{name} {statistics.median(rates):.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=96, help="budget of a document")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu", help="cpu counts this process only")
    arguments = parser.parse_args()
    global now
    now = CLOCKS[arguments.clock]
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}, {arguments.clock} clock")
    tokenizer = trained_tokenizer()
    start = now()
    vocabulary = Vocabulary.of(tokenizer)
    print(f"RESULT vocabulary {now() - start:.2f} s for {len(vocabulary.pieces)} tokens")
    grammars = compiled(vocabulary)
    fitting = [grammar for grammar in grammars if grammar.min_tokens < arguments.tokens]
    report_masks(fitting, arguments.tokens)
    report_apply()
    report_engine(tokenizer, fitting, arguments.tokens)


if __name__ == "__main__":
    main()
