"""Tokens per second of the sampler beside `model.generate` and transformers' `generate_batch`, on the same models.

    python scripts/bench_sample.py [--quick] [--threads 2] [--repeats 3] [--clock cpu]

Both sides run in turns in one process, and the median counts. Only tokens that were asked for count: `generate` runs a
batch to its longest request. No token ends a sample, so that all sides make the same number. Peak memory is that of
one run in a process of its own, above what the process had with the model loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

import torch
import transformers
from sample_cases import CASES, STORIES, Case, load, quick
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from posttrain.models.batching import pad_rows
from posttrain.sample.engine import sampler as sampler_module
from posttrain.sample.engine.decoder import Decoder, any_forward
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams

PEAKS = ("mixed", "best_of_8", "one_long")
"""Cases whose peak memory is told."""
Run = Callable[[], list[list[int]]]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
now = CLOCKS["wall"]


def runs(case: Case, model: Any, tokenizer: PreTrainedTokenizerFast) -> dict[str, Run]:
    """Return the sides that are compared; each gives the tokens of all samples, prompt by prompt."""
    prompts, lengths = case.requests(model.config.vocab_size)
    wanted = [length for length in lengths for _ in range(case.samples)]
    sampler = Sampler(model, tokenizer, max_batch_size=len(wanted))
    params = [
        SamplingParams(max_tokens=length, num_samples=case.samples, temperature=case.temperature, top_p=case.top_p)
        for length in lengths
    ]
    config = GenerationConfig(
        max_new_tokens=max(lengths),
        do_sample=case.temperature > 0,
        temperature=case.temperature or 1.0,
        top_k=0,
        top_p=case.top_p,
        num_return_sequences=case.samples,
        pad_token_id=0,
        eos_token_id=-1,
    )
    ids, mask = pad_rows(prompts, 0, "left")

    def ours() -> list[list[int]]:
        return [sample.token_ids for samples in sampler.generate(prompts, params) for sample in samples]

    def generate() -> list[list[int]]:
        rows = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
        return [row[:length] for row, length in zip(rows.tolist(), wanted, strict=True)]

    def generate_batch() -> list[list[int]]:
        batching = ContinuousBatchingConfig(page_size=32, num_blocks=1024, max_batch_tokens=512)
        outputs = model.generate_batch(
            prompts, generation_config=config, continuous_batching_config=batching, progress_bar=False
        )
        rows = [outputs[key].generated_tokens for key in sorted(outputs, key=lambda key: int(key.rsplit("_", 1)[-1]))]
        return [row[:length] for row, length in zip(rows, wanted, strict=True)]

    sides: dict[str, Run] = {"sampler": ours, "generate": generate}
    return sides | {"generate_batch": generate_batch} if case.batch_api else sides


def timed(run: Run) -> tuple[float, list[list[int]]]:
    start = now()
    tokens = run()
    return now() - start, tokens


def compare(case: Case, repeats: int) -> None:
    """Print tokens per second of each side, and the ratios."""
    model, tokenizer = load(case.model)
    sides = runs(case, model, tokenizer)
    seconds: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, list[list[int]]] = {}
    for repeat in range(repeats):
        for side, run in sides.items():
            if side != "generate_batch" or repeat == 0:
                elapsed, tokens[side] = timed(run)
                seconds[side].append(elapsed)
    count = sum(map(len, tokens["sampler"]))
    label = f"{case.model}.{case.name}"
    for side in sides:
        print(f"RESULT {label}.{side} {count / statistics.median(seconds[side]):.0f} tokens/s")
    for side in list(sides)[1:]:
        ratio = statistics.median(seconds[side]) / statistics.median(seconds["sampler"])
        print(f"RESULT {label}.sampler_over_{side} {ratio:.2f} x")
    if case.temperature == 0:
        pairs = list(zip(tokens["sampler"], tokens["generate"], strict=True))
        print(f"RESULT {label}.greedy_rows_equal {sum(left == right for left, right in pairs)} of {len(pairs)}")
    if case.detail:
        where_time_goes(label, sides["sampler"])
        with generic_forward():
            elapsed, _ = timed(sides["sampler"])
        print(f"RESULT {label}.without_llama_step {count / elapsed:.0f} tokens/s")


@contextlib.contextmanager
def generic_forward() -> Iterator[None]:
    """Run the modules of transformers where the plain forward would serve."""
    built = Decoder.__init__

    def init(self: Decoder, model: Any, rows: int, longest: int) -> None:
        built(self, model, rows, longest)
        self.forward = any_forward(model)

    Decoder.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        Decoder.__init__ = built  # type: ignore[method-assign]


def where_time_goes(label: str, run: Run) -> None:
    """Print a table of the parts of one run."""
    spent: dict[str, float] = defaultdict(float)
    parts = [
        (Decoder, "admit", "prompts"),
        (Decoder, "step", "forward"),
        (Decoder, "keep", "rows that leave"),
        (sampler_module, "choose", "draw"),
        (sampler_module, "log_probabilities", "log-probabilities"),
    ]
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in parts]

    def watch(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return function(*args, **kwargs)
            finally:
                spent[part] += now() - start

        return watched

    for owner, name, part in parts:
        setattr(owner, name, watch(getattr(owner, name), part))
    try:
        total, _ = timed(run)
    finally:
        for owner, name, function in kept:
            setattr(owner, name, function)
    spent["bookkeeping"] = total - sum(spent.values())
    for part, seconds in sorted(spent.items(), key=lambda entry: -entry[1]):
        print(f"  {label}: {part:<18} {seconds:7.3f} s {seconds / total:6.1%}")


def resident() -> float:
    """Return this process's memory in MiB."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_of(case: Case, side: str) -> float:
    """Return by how many MiB one run raises this process's memory, looked at every 10 ms."""
    model, tokenizer = load(case.model)
    run = runs(case, model, tokenizer)[side]
    before, seen, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            seen.append(resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(seen) - before


def print_peaks(case: Case, threads: int, is_quick: bool) -> None:
    # what the allocator keeps for later is not the side's need: large blocks go back to the system at once
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    for side in ("sampler", "generate"):
        command = [sys.executable, __file__, "--threads", str(threads), "--peak", str(CASES.index(case)), side]
        command += ["--quick"] * is_quick
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        peak = float(output.split()[-1])
        print(f"RESULT {case.model}.{case.name}.{side}_peak_memory {peak:.0f} MiB")
        if case.longest:
            print(f"RESULT {case.model}.{case.name}.{side}_peak_over_needed {peak / needed(case, is_quick):.2f} x")


def needed(case: Case, is_quick: bool) -> float:
    """Return the MiB of the keys and values of all samples of a case, each as long as it gets."""
    model, _ = load(case.model)
    text = model.config
    prompts, lengths = (quick(case) if is_quick else case).requests(text.vocab_size)
    tokens = sum(map(len, prompts)) + case.samples * sum(lengths)
    width = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads)
    return float(tokens * text.num_hidden_layers * width * 4 / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens, no generate_batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu, with one thread, on a machine in use")
    parser.add_argument("--only", default="", help="cases whose model.name holds this text")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "SIDE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    global now
    now = CLOCKS[arguments.clock]
    logging.disable(logging.WARNING)
    torch.set_num_threads(arguments.threads)
    shrink = quick if arguments.quick else lambda case: case
    if arguments.peak:
        print(peak_of(shrink(CASES[int(arguments.peak[0])]), arguments.peak[1]))
        return
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, {arguments.clock} time"
    print(f"{machine}, torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    for case in CASES:
        if case.model == "stories260k" and not STORIES.is_dir():
            print(f"{case.model}.{case.name}: skipped, no {STORIES}")
        elif arguments.only in f"{case.model}.{case.name}":
            compare(shrink(case), 1 if arguments.quick else arguments.repeats)
    for case in (case for case in CASES if case.name in PEAKS and case.model == "llama15m"):
        if arguments.only in f"{case.model}.{case.name}":
            print_peaks(case, arguments.threads, arguments.quick)


if __name__ == "__main__":
    main()
