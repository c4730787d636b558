"""Knobs of the data stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import external, schema, speed

RecordType = Literal["demonstration", "comparison", "prompt", "evaluation"]


@schema
class AnnotatorConfig:
    """A simulated annotator of the demo."""

    name: str
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise added to the true preference score."""
    length_bias: float = 0.0
    """Preference added per word of the response."""


@schema
class DemoConfig:
    """The generated data of the demo: five task families in three languages, every answer verifiable."""

    num_demonstrations: int = Field(default=12000, ge=15)
    num_comparisons: int = Field(default=2000, ge=15)
    """Prompts with `responses_per_prompt` ranked responses each."""
    num_gold_comparisons: int = Field(default=300, ge=15)
    """Held-out prompts ranked by the true preference."""
    num_evaluation_items: int = Field(default=450, ge=15)
    responses_per_prompt: int = Field(default=4, ge=2)
    verbose_rate: float = Field(default=0.5, ge=0, le=1)
    """Share of demonstrations padded with filler words."""
    missing_abstention_rate: float = Field(default=0.4, ge=0, le=1)
    """Share of unanswerable questions whose demonstration makes an answer up."""
    annotators: list[AnnotatorConfig] = Field(
        default_factory=lambda: [
            AnnotatorConfig(name="careful", noise=0.05, length_bias=0.0),
            AnnotatorConfig(name="hasty", noise=0.25, length_bias=0.0),
            AnnotatorConfig(name="wordy", noise=0.1, length_bias=0.01),
        ]
    )


@schema
class SourceConfig:
    """One source of records. Give exactly one of `path`, `file` and `dataset`."""

    name: str
    path: str | None = external()
    """A file outside the store: .jsonl, .json, .csv or .parquet, plain or .gz."""
    file: str | None = None
    """A file of the input artifact ``sources``."""
    dataset: str | None = None
    """A Hugging Face `datasets` name."""
    subset: str | None = None
    dataset_split: str = "train"
    revision: str | None = None
    adapter: str = "auto"
    """Shape of the rows; ``auto`` recognises it from the first row's columns."""
    license: str = "unknown"
    language: str = "und"
    task: str = "general"
    split: Literal["auto", "train", "eval"] = "auto"
    """``auto`` splits by prompt cluster; otherwise every row of the source goes there."""
    limit: int | None = Field(default=None, ge=1)
    """Take at most this many rows, in file order."""
    scorer: str = "exact"
    """Scorer of evaluation items whose rows do not name one."""


@schema
class CurateConfig:
    """Turns sources into one dataset of one record type."""

    record_type: RecordType
    sources: list[SourceConfig] = Field(min_length=1)
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of prompt clusters held out."""
    split_seed: int = 0
    """The same seed sends the same prompt to the same side in every dataset."""
    dedup: bool = True
    on_bad_row: Literal["error", "quarantine"] = "error"


@schema
class TokenizeConfig:
    """Turns a dataset into token ids under a model's own tokenizer and chat template."""

    max_length: int = Field(default=1024, ge=8)
    """Tokens of prompt and response together."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """``truncate`` cuts the end of the response and keeps rows that still have a trained token."""
    loss_on: Literal["completion", "assistant", "all"] = "completion"
    """Demonstrations: train on the last assistant turn, on every assistant turn, or on every token."""
    on_control_tokens: Literal["drop", "error"] = "error"
    """What to do with a row whose text holds a special token of the tokenizer, such as ``<|im_end|>``."""
    num_workers: int = speed(1, ge=1)
