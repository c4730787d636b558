"""What `posttrain generate` is asked for besides how tokens are drawn, and which of it does not go together."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from posttrain.sample.config.sampling import SamplingConfig
from posttrain.stage.artifact import MANIFEST, read_manifest
from posttrain.stage.errors import UsageError

By = Literal["logprob", "reward", "verifier", "vote"]
Dialect = Literal["vllm", "transformers"]
"""What a server speaks."""
BY: tuple[By, ...] = ("logprob", "reward", "verifier", "vote")


@dataclasses.dataclass(frozen=True)
class Asking:
    """What is answered, how one of several samples is chosen, and where it goes; paths are texts, as JSON has them."""

    prompt: str | None = None
    file: str | None = None
    """JSONL of prompts; without it and a prompt, a person at the terminal is talked to."""
    out: str | None = None
    system: str = ""
    constraint: tuple[str, str] | None = None
    """Kind and value: ``schema``, ``regex``, ``choices`` or ``grammar``."""
    best_of: int | None = None
    """Samples of which the best is given back."""
    by: By | None = None
    """What says which is the best: the log-probability by default."""
    reward: str | None = None
    """Folder of a reward model."""
    first_valid: int | None = None
    """Most samples that are drawn until one is valid."""
    scorer: str | None = None
    """Of `posttrain.data.checks.scorers`, or ``module:function``."""
    reference: str | None = None
    """What the scorer compares with; rows of a file have their own."""
    threshold: float | None = None
    """Least score of a valid sample, or least share of claims that passages must support; 1 by default."""
    ladder: bool = False
    """Whether to climb the rungs of structured output instead."""
    cite: str | None = None
    """File of passages that responses must quote; empty where each row of a file has its own."""
    dtype: str = "float32"
    batch: int = 64
    """Samples that run at once."""
    server: str | None = None
    """URL of a server that runs the model, which then only gives its tokenizer."""
    served_name: str | None = None
    """What the server calls the model; None is what `posttrain serve` has it called."""
    dialect: Dialect | None = None
    """What the server speaks; None asks it."""
    cache: str | None = None
    """File of responses that need not be made again."""
    cache_mb: int = 1024
    """Largest size of that file."""

    @property
    def talking(self) -> bool:
        """Whether a person is to be talked to."""
        return self.prompt is None and self.file is None

    @property
    def least(self) -> float:
        """The threshold, or what it is by default."""
        return 1.0 if self.threshold is None else self.threshold


def served_name(model: Path, dialect: Dialect) -> str:
    """Return what `posttrain serve` has requests call a model's folder: its stage, or where it lies."""
    if dialect == "transformers":
        return str(model.resolve())
    return read_manifest(model).stage if (model / MANIFEST).is_file() else model.resolve().name


def check_asking(asking: Asking, sampling: SamplingConfig) -> None:
    """Raise UsageError on what does not go together, before anything is loaded."""
    _check_files(asking)
    _check_talk(asking, sampling)
    _check_best_of(asking, sampling)
    _check_first_valid(asking, sampling)
    _check_judges(asking)
    _check_structure(asking, sampling)
    _check_server(asking)
    if asking.batch < 1:
        raise UsageError(f"--batch {asking.batch}: must be at least 1")
    if asking.cache is not None and (asking.constraint or asking.first_valid or asking.ladder):
        way = _constraint(asking) or ("--first-valid" if asking.first_valid else "--ladder")
        raise UsageError(f"--cache: keeps no responses of {way}; leave one of them out")


def _check_files(asking: Asking) -> None:
    if asking.prompt is not None and asking.file is not None:
        raise UsageError("a prompt and --file: give one of them")
    if (asking.file is None) != (asking.out is None) and not (asking.ladder and asking.out is None):
        raise UsageError("--file and --out: one without the other; give both")
    if asking.out is not None and Path(asking.out).exists():
        raise UsageError(f"{asking.out}: exists already; give a new file")


def _check_talk(asking: Asking, sampling: SamplingConfig) -> None:
    if not asking.talking:
        return
    if sampling.num_samples > 1:
        raise UsageError(f"num_samples={sampling.num_samples}: a chat has one answer; give a prompt or --file")
    if asking.cache is not None:
        raise UsageError("--cache: a chat is not cached; give a prompt or --file")
    asked = {
        _constraint(asking): asking.constraint is not None,
        "--best-of": asking.best_of is not None,
        "--first-valid": asking.first_valid is not None,
        "--ladder": asking.ladder,
        "--cite": asking.cite is not None,
        f"top_logprobs={sampling.top_logprobs}": sampling.top_logprobs > 0,
    }
    if given := [option for option, is_given in asked.items() if is_given]:
        raise UsageError(f"{given[0]}: no chat takes it; give a prompt or --file")


def _check_best_of(asking: Asking, sampling: SamplingConfig) -> None:
    if asking.best_of is None:
        if asking.by is not None:
            raise UsageError(f"--by {asking.by}: of how many? give --best-of N")
        return
    if asking.best_of < 2:
        raise UsageError(f"--best-of {asking.best_of}: one sample leaves no choice; give 2 or more")
    if asking.first_valid is not None:
        raise UsageError("--best-of and --first-valid: give one of them")
    if sampling.num_samples > 1:
        raise UsageError(f"num_samples={sampling.num_samples}: --best-of says how many are drawn; leave it out")
    _check_draws(f"--best-of {asking.best_of}", asking.best_of, sampling)


def _check_first_valid(asking: Asking, sampling: SamplingConfig) -> None:
    most = asking.first_valid
    if most is None:
        return
    if most < 1:
        raise UsageError(f"--first-valid {most}: must be at least 1")
    if asking.scorer is None and asking.cite is None and _constraint(asking) != "--schema":
        raise UsageError("--first-valid: nothing says what is valid; give --scorer, --schema or --cite")
    if most % sampling.num_samples:
        raise UsageError(
            f"num_samples={sampling.num_samples}: so many are drawn at once, and they do not divide --first-valid "
            f"{most}; change one of them"
        )
    _check_draws(f"--first-valid {most}", most, sampling)


def _check_draws(option: str, samples: int, sampling: SamplingConfig) -> None:
    """Raise UsageError where all samples would be the same."""
    if sampling.num_beams > 1:
        raise UsageError(f"{option}: num_beams={sampling.num_beams} searches and draws nothing; leave one of them out")
    if samples > 1 and sampling.temperature == 0:
        raise UsageError(f"{option}: at temperature=0 all samples are the same; raise it")


def _check_judges(asking: Asking) -> None:
    if (asking.by == "reward") != (asking.reward is not None):
        raise UsageError("--by reward and --reward ARTIFACT: one without the other; give both")
    if asking.by == "verifier" and asking.scorer is None:
        raise UsageError("--by verifier: give it as --scorer NAME, or module:function")
    scored = asking.by in ("verifier", "vote") or asking.first_valid is not None
    if asking.scorer is not None and not scored:
        raise UsageError(f"--scorer {asking.scorer}: for --first-valid, --by verifier or --by vote; give one of them")
    if asking.reference is not None:
        if asking.prompt is None:
            raise UsageError("--reference: rows of a file have their own; put it there")
        if asking.scorer is None and not asking.ladder:
            raise UsageError("--reference: for a --scorer, or --ladder; give one of them")
    if asking.threshold is not None:
        if asking.cite is None and not (asking.first_valid is not None and asking.scorer is not None):
            raise UsageError("--threshold: for --cite, or the --scorer of --first-valid; give one of them")
        if asking.cite is not None and not 0 < asking.threshold <= 1:
            raise UsageError(f"--threshold {asking.threshold}: a share of claims; give one in (0, 1]")


def _check_structure(asking: Asking, sampling: SamplingConfig) -> None:
    constraint = _constraint(asking)
    if asking.ladder:
        if constraint != "--schema":
            raise UsageError("--ladder: climbs to the documents of a schema; give --schema FILE")
        others = {
            "--best-of": asking.best_of is not None,
            "--first-valid": asking.first_valid is not None,
            "--cite": asking.cite is not None,
            f"num_samples={sampling.num_samples}": sampling.num_samples > 1,
            f"top_logprobs={sampling.top_logprobs}": sampling.top_logprobs > 0,
        }
        if given := [option for option, is_given in others.items() if is_given]:
            raise UsageError(f"{given[0]}: --ladder takes one sample a rung; leave one of them out")
    if constraint is None:
        return
    if asking.cite is not None:
        raise UsageError(f"--cite: looks for quotes in running text, which {constraint} does not leave; give one")
    if sampling.num_beams > 1:
        raise UsageError(f"num_beams={sampling.num_beams}: beam search takes no {constraint}; leave one of them out")
    if sampling.min_tokens and asking.first_valid is None:
        raise UsageError(f"min_tokens={sampling.min_tokens}: {constraint} says where it may end; leave one of them out")


def _check_server(asking: Asking) -> None:
    if asking.server is None:
        if asking.served_name is not None:
            raise UsageError(f"--served-name {asking.served_name}: by which server? give --server URL")
        return
    others = {"--ladder": asking.ladder, "--cache": asking.cache is not None, "a chat": asking.talking}
    if given := [option for option, is_given in others.items() if is_given]:
        raise UsageError(f"--server {asking.server}: {given[0]} needs the model itself; leave one of them out")


def _constraint(asking: Asking) -> str | None:
    return None if asking.constraint is None else f"--{asking.constraint[0]}"
