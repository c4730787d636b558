"""The sampler beside that of an earlier commit: the same workloads, in turns, each side in a process of its own.

    python scripts/bench_sample_beside.py COMMIT [--quick] [--threads 1] [--repeats 5] [--clock cpu] [--only TEXT]

Each process imports its own version and loads the model once; then they take turns, and the medians are compared:
above 1, the sampler of today is faster. No token ends a sample, so that both sides make the same number.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def work(number: int, is_quick: bool, threads: int, clock: str) -> None:
    """Run a case for each line that comes, and print its seconds."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    import torch
    from sample_cases import CASES, load, quick

    from posttrain.sample.sampler import Sampler
    from posttrain.sample.sampling import SamplingParams

    torch.set_num_threads(threads)
    case = quick(CASES[number]) if is_quick else CASES[number]
    model, tokenizer = load(case.model)
    prompts, lengths = case.requests(model.config.vocab_size)
    params = [
        SamplingParams(max_tokens=length, num_samples=case.samples, temperature=case.temperature, top_p=case.top_p)
        for length in lengths
    ]
    sampler = Sampler(model, tokenizer, max_batch_size=case.samples * len(prompts))
    for _ in sys.stdin:
        start = CLOCKS[clock]()
        sampler.generate(prompts, params)
        print(CLOCKS[clock]() - start, flush=True)


class Side:
    """A process that runs one case with one version of the package."""

    def __init__(self, package: Path, options: list[str]) -> None:
        command = [sys.executable, __file__, "--work", *options]
        environment = {**os.environ, "PYTHONPATH": str(package)}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def run(self) -> float:
        """Return the seconds of one run."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a side ended; its error stands above")
        return float(line)

    def end(self) -> None:
        """Let the process end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def package_of(commit: str, folder: Path) -> Path:
    """Return a folder from which ``import posttrain`` takes the package as it was."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder / "posttrain", filter="data")
    return folder


def compare(number: int, label: str, packages: list[Path], options: argparse.Namespace) -> None:
    """Print how much faster a case is than it was."""
    given = [str(number), "--threads", str(options.threads), "--clock", options.clock, *["--quick"] * options.quick]
    sides = [Side(package, given) for package in packages]
    for side in sides:
        side.run()  # the first has to warm up
    seconds = [[side.run() for side in sides] for _ in range(options.repeats)]
    for side in sides:
        side.end()
    then, today = (statistics.median(column) for column in zip(*seconds, strict=True))
    print(f"RESULT {label}.today_over_{options.commit} {then / today:.2f} x", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="to compare with")
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--only", default="", help="cases whose model.name holds this text")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(int(options.commit), options.quick, options.threads, options.clock)
        return
    from sample_cases import CASES, STORIES

    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        (Path(new) / "posttrain").symlink_to(ROOT)
        packages = [package_of(options.commit, Path(old)), Path(new)]
        for number, case in enumerate(CASES):
            label = f"{case.model}.{case.name}"
            if options.only not in label:
                continue
            if case.model == "stories260k" and not STORIES.is_dir():
                print(f"{label}: skipped, no {STORIES}")
            else:
                compare(number, label, packages, options)


if __name__ == "__main__":
    main()
