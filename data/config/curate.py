"""Knobs of curation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from posttrain.data.config.steps import StepsConfig
from posttrain.stage.schema import external, external_function, hub_revision, schema, speed

RecordType = Literal["demonstration", "comparison", "unpaired", "prompt", "evaluation"]
AdapterName = Literal[
    "auto",
    "oasst",
    "oasst_ranked",
    "ranked",
    "scores",
    "scored",
    "verdicts",
    "hh",
    "best_of",
    "preference",
    "unpaired",
    "unpaired_messages",
    "evaluation",
    "threads",
    "question_answer",
    "messages",
    "sharegpt",
    "alpaca",
    "prompt_completion",
    "text",
    "code",
    "page",
    "prompt",
]


@schema
class SourceConfig:
    """One source of records. Give exactly one of `path`, `file` and `dataset`.

    A row's own `license`, `language` and `task` columns win over the values given here, unless they are blank.
    """

    name: str = Field(min_length=1)
    """Stands in the ids and the accounting of its rows."""
    path: str | list[str] | None = external(usual_suffix=".jsonl")
    """A file outside the store: .jsonl, .ndjson, .json, .csv, .tsv, .parquet, .warc or .wet, plain or .gz; a folder of
    such files, a pattern such as ``rows/*.jsonl``, or a list of these. Several are read in the order of their names, as
    one."""
    file: str | None = None
    """A file of the input artifact ``sources``."""
    dataset: str | None = external(or_hub=True)
    """A Hugging Face `datasets` name, or a folder that `datasets` can load."""
    subset: str | None = None
    """Configuration of the `datasets` name."""
    dataset_split: str = "train"
    """Split of the `datasets` name."""
    revision: str | None = hub_revision("dataset", kind="dataset")
    """Commit, tag or branch of the `datasets` name; None takes the newest. The commit is kept."""
    adapter: AdapterName = "auto"
    """Shape of the rows (`posttrain.data.sources.adapters`); ``auto`` recognises it from the first row's columns."""
    function: str | None = external_function()
    """``package.module:function`` of yours, which makes of the columns of each row those of a known shape; it is asked
    before `columns` are renamed. The key covers its file."""
    columns: dict[str, str] = Field(default_factory=dict)
    """What the file calls a column that an adapter wants, such as ``{prompt: question, completion: answer}``."""
    ignore: list[str] = Field(default_factory=list)
    """Columns to leave out, as if the file did not have them."""
    ids: Literal["error", "ignore"] = "error"
    """An id that two different rows bring is an ``error``; ``ignore`` names all rows by their content instead."""
    license: str = "unknown"
    """SPDX name of the licence of rows that do not state theirs."""
    url: str | None = None
    """Where the source was published; stands in the manifest."""
    published_revision: str | None = None
    """Which state of it this is, such as a commit; stands in the manifest."""
    generator: str | None = None
    """The model that wrote its answers, where one did."""
    generator_uses: list[str] | None = None
    """What the terms of that model's maker let its output be used for, such as ``[research]``."""
    uses: list[str] | None = None
    """What its owner allows beyond the policy, such as ``[research, commercial]`` of data of your own."""
    language: str = "und"
    """BCP-47 tag."""
    task: str = "general"
    """What the rows are about; figures are given by task."""
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
    """What the dataset holds. ``unpaired`` also takes comparisons: the best response is desirable, the worst is not."""
    sources: list[SourceConfig] = Field(min_length=1)
    """Where its rows come from; of duplicates the first stays."""
    eval_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of prompts held out. A prompt is all that stands before the answer; a chat that goes on is another one."""
    split_seed: int = 0
    """The same seed and `eval_fraction` send the same prompt to the same side in every dataset that chooses freely; the
    inputs that name datasets curated before settle it for the rest."""
    item_overlap: Literal["exclude", "error", "keep"] = "exclude"
    """What becomes of rows to train on that ask what an evaluation item of the input datasets asks; ``keep`` notes them
    in the accounting."""
    dedup: bool = True
    """Drop exact duplicates: the first one, in the order of the sources, stays."""
    steps: StepsConfig = Field(default_factory=StepsConfig)
    """Further steps, in order, between the split and the file; none by default."""
    num_workers: int = speed(1, ge=1)
    """Processes of the steps."""
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
