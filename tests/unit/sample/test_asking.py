"""What `posttrain generate` is asked, and what of it does not go together: known before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from posttrain.pipeline.commands.parsers.asking import add_asking, asking_in
from posttrain.sample.config.asking import Asking, check_asking
from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.errors import UsageError

DRAWS = SamplingConfig()


def asked(*arguments: str) -> Asking:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_asking(parser)
    return asking_in(parser.parse_args(arguments))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--prompt a --file f --out o", "a prompt and --file: give one of them"),
        ("--file f", "--file and --out: one without the other; give both"),
        ("--prompt a --out o", "--file and --out: one without the other; give both"),
        ("--best-of 3", "--best-of: no chat takes it; give a prompt or --file"),
        ("--regex a+", "--regex: no chat takes it"),
        ("--cite p", "--cite: no chat takes it"),
        ("--cache c", "--cache: a chat is not cached"),
        ("--prompt a --cache c --regex a", "--cache: keeps no responses of --regex"),
        ("--prompt a --cache c --scorer refused --first-valid 2", "--cache: keeps no responses of --first-valid"),
        ("--prompt a --by vote", "--by vote: of how many? give --best-of N"),
        ("--prompt a --best-of 1", "--best-of 1: one sample leaves no choice"),
        ("--prompt a --best-of 2 --first-valid 2 --schema s", "--best-of and --first-valid: give one of them"),
        ("--prompt a --best-of 2 --by reward", "--by reward and --reward ARTIFACT: one without the other"),
        ("--prompt a --best-of 2 --reward r", "--by reward and --reward ARTIFACT: one without the other"),
        ("--prompt a --best-of 2 --by verifier", "--by verifier: give it as --scorer NAME"),
        ("--prompt a --best-of 2 --scorer number", "--scorer number: for --first-valid, --by verifier or --by vote"),
        ("--prompt a --reference 7", "--reference: for a --scorer, or --ladder"),
        (
            "--file f --out o --best-of 2 --by verifier --scorer number --reference 7",
            "--reference: rows of a file have their own",
        ),
        ("--prompt a --first-valid 0 --schema s", "--first-valid 0: must be at least 1"),
        ("--prompt a --first-valid 2", "--first-valid: nothing says what is valid"),
        ("--prompt a --first-valid 2 --regex a", "--first-valid: nothing says what is valid"),
        ("--prompt a --threshold 0.5", "--threshold: for --cite, or the --scorer of --first-valid"),
        ("--prompt a --cite p --threshold 1.5", "--threshold 1.5: a share of claims; give one in (0, 1]"),
        ("--prompt a --ladder", "--ladder: climbs to the documents of a schema; give --schema FILE"),
        ("--prompt a --ladder --schema s --best-of 2", "--best-of: --ladder takes one sample a rung"),
        ("--prompt a --ladder --schema s --cite p", "--cite: --ladder takes one sample a rung"),
        ("--prompt a --cite p --schema s", "--cite: looks for quotes in running text, which --schema does not leave"),
        ("--prompt a --batch 0", "--batch 0: must be at least 1"),
    ],
)
def test_what_does_not_go_together_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_asking(asked(*line.split()), DRAWS)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "sampling", "message"),
    [
        ("--prompt a --best-of 2", SamplingConfig(temperature=0), "--best-of 2: at temperature=0 all samples are the"),
        ("--prompt a --best-of 2", SamplingConfig(num_samples=2), "num_samples=2: --best-of says how many are drawn"),
        ("--prompt a --first-valid 4 --schema s", SamplingConfig(temperature=0), "--first-valid 4: at temperature=0"),
        ("--prompt a --first-valid 4 --schema s", SamplingConfig(num_samples=3), "num_samples=3: so many are drawn at"),
        ("--prompt a --ladder --schema s", SamplingConfig(num_samples=2), "num_samples=2: --ladder takes one sample"),
        ("--prompt a --regex a", SamplingConfig(temperature=0, num_beams=2), "num_beams=2: beam search takes no --reg"),
        ("--prompt a --best-of 2", SamplingConfig(temperature=0, num_beams=2), "--best-of 2: num_beams=2 searches"),
        ("", SamplingConfig(num_samples=2), "num_samples=2: a chat has one answer"),
    ],
)
def test_knobs_of_sampling_that_do_not_go_with_it(line: str, sampling: SamplingConfig, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_asking(asked(*line.split()), sampling)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--prompt a --schema s",
        "--prompt a --best-of 4 --cache c",
        "--prompt a --best-of 4 --by vote --scorer number --choices 1,2",
        "--prompt a --best-of 4 --by reward --reward r --cite p --threshold 0.5",
        "--file f --out o --best-of 4 --by verifier --scorer number",
        "--prompt a --first-valid 4 --schema s --scorer json --reference {} --threshold 0.5",
        "--prompt a --first-valid 4 --cite",
        "--file f --ladder --schema s",
        "--prompt a --ladder --schema s --reference {}",
    ],
)
def test_what_goes_together_is_taken(line: str) -> None:
    check_asking(asked(*line.split()), DRAWS)


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(UsageError, match=r"out: exists already; give a new file"):
        check_asking(asked("--file", "f", "--out", str(tmp_path / "out")), DRAWS)
