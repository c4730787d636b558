"""Knobs of the data stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import external, schema, speed

DEFAULT_LENGTH = 4096
"""Most tokens of a row where the configuration does not say; longer models need it said."""

RecordType = Literal["demonstration", "comparison", "prompt", "evaluation"]
AdapterName = Literal[
    "auto",
    "oasst",
    "oasst_ranked",
    "ranked",
    "verdicts",
    "hh",
    "preference",
    "evaluation",
    "question_answer",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "prompt",
]


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

    num_texts: int = Field(default=6000, ge=3)
    """Short plain texts to pretrain the base model on."""
    num_demonstrations: int = Field(default=12000, ge=15)
    demonstration_shares: dict[str, int] = Field(
        default_factory=lambda: {"arithmetic": 3, "classification": 2, "question_answering": 2}
    )
    """Relative frequencies of task families among demonstrations, 1 where not given: hard ones need more."""
    num_comparisons: int = Field(default=2500, ge=15)
    """Prompts with `responses_per_prompt` ranked responses each."""
    num_gold_comparisons: int = Field(default=300, ge=15)
    """Held-out prompts ranked by the true preference."""
    num_evaluation_items: int = Field(default=450, ge=15)
    responses_per_prompt: int = Field(default=4, ge=2)
    verbose_rate: float = Field(default=0.7, ge=0, le=1)
    """Share of demonstrations that open with filler, and independently share that close with it."""
    missing_abstention_rate: float = Field(default=0.3, ge=0, le=1)
    """Share of unanswerable questions whose demonstration makes an answer up."""
    annotators: list[AnnotatorConfig] = Field(
        min_length=1,
        default_factory=lambda: [
            AnnotatorConfig(name="careful", noise=0.05, length_bias=0.0),
            AnnotatorConfig(name="hasty", noise=0.2, length_bias=0.0),
            AnnotatorConfig(name="wordy", noise=0.1, length_bias=0.02),
        ],
    )


@schema
class OpeningsConfig:
    """Openings of children's stories for a model to continue, half of them sad; no two tell of the same thing."""

    num_prompts: int = Field(default=1000, ge=2)
    num_items: int = Field(default=200, ge=2)
    """Held-out openings, of things that no other one tells of."""


@schema
class SourceConfig:
    """One source of records. Give exactly one of `path`, `file` and `dataset`.

    A row's own `license`, `language` and `task` columns win over the values given here.
    """

    name: str = Field(min_length=1)
    path: str | None = external()
    """A file outside the store: .jsonl, .json, .csv or .parquet, plain or .gz."""
    file: str | None = None
    """A file of the input artifact ``sources``."""
    dataset: str | None = None
    """A Hugging Face `datasets` name."""
    subset: str | None = None
    """Configuration of the `datasets` name."""
    dataset_split: str = "train"
    """Split of the `datasets` name."""
    revision: str | None = None
    """Commit or tag of the `datasets` name; None takes the newest."""
    adapter: AdapterName = "auto"
    """Shape of the rows (`posttrain.data.adapters`); ``auto`` recognises it from the first row's columns."""
    license: str = "unknown"
    language: str = "und"
    """BCP-47 tag."""
    task: str = "general"
    split: Literal["auto", "train", "eval"] = "auto"
    """``auto`` splits by prompt cluster, and sends evaluation items to eval; otherwise every row goes there."""
    limit: int | None = Field(default=None, ge=1)
    """Take at most this many rows, in file order."""
    scorer: str | None = None
    """Scorer of evaluation items whose rows do not name one; None lets the adapter choose, else takes ``exact``."""

    @model_validator(mode="after")
    def _one_origin(self) -> SourceConfig:
        given = [name for name in ("path", "file", "dataset") if getattr(self, name) is not None]
        if len(given) != 1:
            found = ", ".join(given) or "none"
            raise ValueError(f"source {self.name!r}: give exactly one of path, file and dataset (given: {found})")
        return self


@schema
class CurateConfig:
    """Turns sources into one dataset of one record type."""

    record_type: RecordType
    sources: list[SourceConfig] = Field(min_length=1)
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of prompt clusters held out."""
    split_seed: int = 0
    """The same seed and `eval_fraction` send the same prompt to the same side in every dataset."""
    dedup: bool = True
    """Drop exact duplicates: the first one, in the order of the sources, stays."""
    on_bad_row: Literal["error", "quarantine"] = "error"
    """``quarantine`` writes bad rows to quarantine.jsonl and counts them; a file that breaks off is always an error."""

    @model_validator(mode="after")
    def _distinct_names(self) -> CurateConfig:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"source name {twice[0]!r} stands twice; names are part of record ids, so give each its own"
            )
        return self


@schema
class TokenizeConfig:
    """Turns a dataset into token ids under a model's own tokenizer and chat template."""

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of prompt and response together; None takes as many as the model does, but no more than 4096."""
    overlong: Literal["drop", "truncate", "error"] = "drop"
    """``truncate`` cuts the end of the response and keeps rows that still have a trained token."""
    loss_on: Literal["completion", "assistant", "all"] = "completion"
    """Demonstrations: train on the last assistant turn, on every assistant turn, or on every token."""
    on_control_tokens: Literal["drop", "error"] = "error"
    """What to do with a row whose text holds a special token of the tokenizer, such as ``<|im_end|>``."""
    prompts_only: bool = False
    """Keep only the prompts of demonstrations or comparisons, for rollouts."""
    num_workers: int = speed(1, ge=1)
