"""How many rows a dataset will have and how long they are, as far as its configuration and local files tell."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.data.config.tokenize import DEFAULT_LENGTH
from posttrain.pipeline.graph.graph import Stage
from posttrain.pipeline.graph.lengths import positions_of
from posttrain.stage.errors import UsageError, did_you_mean

READ_BYTES = 4 << 20
"""Of a file; a longer one's rows are estimated from as much."""
COMPARED = 1000
"""Rows of comparisons whose prompts are measured."""
CHARACTERS_PER_TOKEN = 4.0
"""Of rows of JSON, names of columns included: an assumption."""
DEMO_TOKENS, DEMO_PROMPT_SHARE = 48, 0.59
"""Mean tokens of a row that `data.demo` makes, under the tokenizer that is trained on it, and its prompt's part."""
_DEMO_FILES = {
    "text.jsonl": "num_texts",
    "demonstrations.jsonl": "num_demonstrations",
    "comparisons.jsonl": "num_comparisons",
    "gold_comparisons.jsonl": "num_gold_comparisons",
    "evaluation.jsonl": "num_evaluation_items",
}
_OWNERS_TOKENS = 12
"""Mean tokens of a row that `data.owners` makes."""
_PASSAGE_TOKENS = 1.5
"""Of a word of a passage: an assumption. Passages are no longer than the corpus has them."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a dataset before anything is dropped."""

    train: float
    held_out: float
    mean_tokens: float | None = None
    """Of a row; None where nothing tells."""
    responses: int = 2
    """To a prompt, in comparisons."""
    prompt_share: float | None = None
    """Of a prompt with one response, in comparisons; None where nothing tells."""


@dataclasses.dataclass(frozen=True)
class Given:
    """What the user says of data that is not here: dataset or token stage → rows to train (or evaluate) on, tokens."""

    rows: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tokens: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def require_stages(self, stages: Mapping[str, Stage]) -> None:
        """Raise UsageError for a name that is no dataset's or token stage's."""
        known = [name for name, stage in stages.items() if stage.type.kind in ("dataset", "tokens")]
        for option, named in (("--rows", self.rows), ("--tokens", self.tokens)):
            for name in named:
                if name not in known:
                    hint = did_you_mean(name, known) or f"; there are {', '.join(known)}"
                    raise UsageError(f"{option} {name}: no dataset of this pipeline{hint}")


def rows_of(stage: Stage, stages: Mapping[str, Stage], given: Given) -> Rows | None:
    """Return the rows of a dataset or token stage; None where neither configuration, file nor user tells."""
    if stage.type.kind == "tokens":
        inner = rows_of(stages[stage.inputs["data"]], stages, given)
    elif "data" in stage.inputs:
        inner = _remade(stage, stages, given)
    else:
        inner = _curated(stage, stages, given)
    rows, tokens = given.rows.get(stage.name), given.tokens.get(stage.name)
    if rows is not None:
        train, held_out = _split(rows, stage, stages)
        inner = dataclasses.replace(inner or Rows(0, 0), train=train, held_out=held_out)
    if tokens is not None and inner is not None:
        inner = dataclasses.replace(inner, mean_tokens=tokens)
    return inner


def _split(rows: float, stage: Stage, stages: Mapping[str, Stage]) -> tuple[float, float]:
    """Return the rows of both sides, where the user gave those to train on, or to evaluate on."""
    kind = record_type_of(stage, stages)
    while "data" in stage.inputs:
        stage = stages[stage.inputs["data"]]
    if kind == "evaluation":
        return 0.0, rows
    held = stage.config.eval_fraction
    return rows, rows * held / (1 - held)


def record_type_of(stage: Stage, stages: Mapping[str, Stage]) -> str:
    """Return what the records are of a dataset, or of the one that a token stage is made from."""
    if stage.type.run == "data.contrast":
        return "comparison"
    if "data" in stage.inputs:
        return record_type_of(stages[stage.inputs["data"]], stages)
    own: str = stage.config.record_type
    return own


def longest_row(stage: Stage, stages: Mapping[str, Stage]) -> int:
    """Return the most tokens that a token stage lets a row have, as the stage itself finds it."""
    if stage.config.max_length is not None:
        limit: int = stage.config.max_length
        return limit
    positions = positions_of(stages[stage.inputs["model"]], stages)
    return min(positions or DEFAULT_LENGTH, DEFAULT_LENGTH)


def _curated(stage: Stage, stages: Mapping[str, Stage], given: Given) -> Rows | None:
    config, parent = stage.config, stages.get(stage.inputs.get("sources", ""))
    train = held_out = weight = tokens = 0.0
    responses, shares = 2, list[float]()
    for source in config.sources:
        counted = _file_rows(source, parent, stages, given) if source.file is not None else _path_rows(source)
        if counted is None:
            return None
        mean, responses = counted.mean_tokens, counted.responses
        number = min(counted.train, source.limit or counted.train)
        held = {"eval": 1.0, "train": 0.0}.get(source.split, config.eval_fraction)
        if config.record_type == "evaluation" and source.split == "auto":
            held = 1.0
        train, held_out = train + number * (1 - held), held_out + number * held
        if mean is not None:
            weight, tokens = weight + number, tokens + number * mean
        if counted.prompt_share is not None:
            shares.append(counted.prompt_share)
    share = sum(shares) / len(shares) if shares else None
    return Rows(train, held_out, tokens / weight if weight else None, responses, share)


def _remade(stage: Stage, stages: Mapping[str, Stage], given: Given) -> Rows | None:
    """Return the rows of a dataset that is another one with passages, or with responses to rank."""
    inner = rows_of(stages[stage.inputs["data"]], stages, given)
    if inner is None:
        return None
    if stage.type.run == "data.contrast":
        return dataclasses.replace(inner, responses=stage.config.responses)
    corpus = rows_of(stages[stage.inputs["corpus"]], stages, given)
    if inner.mean_tokens is None or corpus is None or corpus.mean_tokens is None:
        return dataclasses.replace(inner, mean_tokens=None)
    passage = min(corpus.mean_tokens, _PASSAGE_TOKENS * stage.config.passage_words)
    return dataclasses.replace(inner, mean_tokens=inner.mean_tokens + stage.config.passages * passage)


def _file_rows(source: Any, parent: Stage | None, stages: Mapping[str, Stage], given: Given) -> Rows | None:
    """Return the rows of a file that a stage of this pipeline makes, not yet split."""
    if parent is None:
        return None
    config = parent.config
    if parent.type.run == "data.demo" and source.file in _DEMO_FILES:
        number = getattr(config, _DEMO_FILES[source.file])
        return Rows(number, 0, DEMO_TOKENS, config.responses_per_prompt, DEMO_PROMPT_SHARE)
    if parent.type.run == "data.owners":
        made = {"corpus.jsonl": 3 * config.num_families, "demonstrations.jsonl": config.num_demonstrations}
        return Rows(made.get(source.file, config.num_evaluation_items), 0, _OWNERS_TOKENS)
    if parent.type.run == "data.spoil":
        return _spoilt(source.file, config, stages[parent.inputs["sources"]].config)
    if parent.type.run == "data.openings":
        return Rows(config.num_items if source.file == "heldout.jsonl" else config.num_prompts, 0, 16)
    if parent.type.run in ("sample.rank", "sample.generate"):
        prompts = rows_of(stages[parent.inputs["prompts"]], stages, given)
        if prompts is None:
            return None
        samples, longest = drawn_by(parent)
        demonstrations = parent.type.run == "sample.generate"
        each = samples if demonstrations and config.choose == "all" else 1
        rows, asked = each * (prompts.train + prompts.held_out), prompts.mean_tokens or 0
        share = asked / (asked + longest) if asked else None
        return Rows(rows, 0, asked + longest, 1 if demonstrations else samples, share)
    return None


def _spoilt(name: str, spoil: Any, demo: Any) -> Rows:
    leaked = demo.num_evaluation_items * spoil.leaked_share
    rows = {
        "leaked.jsonl": leaked,
        "fresh.jsonl": demo.num_evaluation_items - leaked,
        "demonstrations.jsonl": demo.num_demonstrations * (1 + spoil.copied_share * spoil.copies)
        + leaked * spoil.leak_copies,
    }
    return Rows(rows[name], 0, DEMO_TOKENS)


def drawn_by(stage: Stage) -> tuple[int, int]:
    """Return how many samples a stage draws for a prompt, and the most tokens of one."""
    sampling: Any = getattr(stage.config, "sampling", None)
    if sampling is not None:
        return sampling.num_samples, sampling.max_tokens
    return getattr(stage.config, "num_samples", 1), stage.config.max_new_tokens


def _path_rows(source: Any) -> Rows | None:
    """Return the rows of local files of one row a line, not yet split; None where one is of another form."""
    paths = [source.path] if isinstance(source.path, str) else source.path
    counted = [_count_lines(Path(path)) for path in paths or []]
    if not counted or None in counted:
        return None
    found = [part for part in counted if part is not None]
    rows, size = sum(part[0] for part in found), sum(part[1] for part in found)
    share = next((share for part in found if (share := _prompt_share(part[2])) is not None), None)
    return Rows(rows, 0, size / max(rows, 1) / CHARACTERS_PER_TOKEN, 2, share)


def _prompt_share(lines: bytes) -> float | None:
    """Return the prompt's part of a prompt with one response, in characters of comparisons; None for other rows.

    A prompt that has no column of its own is what the responses begin with alike.
    """
    prompts = answers = 0.0
    for line in lines.splitlines()[:COMPARED]:
        try:
            row = json.loads(line)
            responses = [_text(answer) for answer in row.get("responses") or (row["chosen"], row["rejected"])]
        except (ValueError, KeyError, AttributeError, TypeError):
            continue  # of another form, or cut off where we stopped to read
        prompt = _text(row.get("prompt") or "")
        common = 0 if prompt else _alike(min(responses), max(responses))
        prompts += len(prompt) + common
        answers += sum(map(len, responses)) / len(responses) - common
    return prompts / (prompts + answers) if answers else None


def _alike(first: str, second: str) -> int:
    """Return how many characters two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next((place for place, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count_lines(path: Path) -> tuple[float, float, bytes] | None:
    """Return lines and characters of a .jsonl file, plain or gzipped, and how it begins, which long ones go by."""
    name = path.name.removesuffix(".gz")
    if not (path.is_file() and name.endswith((".jsonl", ".ndjson"))):
        return None
    size = path.stat().st_size
    with path.open("rb") as raw:
        file: Any = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
        try:
            text = file.read(READ_BYTES)
        except (OSError, EOFError):
            return None  # curation says what is wrong with it
        whole = size / max(raw.tell(), 1) if len(text) == READ_BYTES else 1.0
    return whole * max(1, text.count(b"\n")), whole * len(text), text
