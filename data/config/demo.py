"""Knobs of the demo's generated data."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class AnnotatorConfig:
    """A simulated annotator of the demo."""

    name: str
    """Stands in the records that it ranked."""
    noise: float = Field(default=0.1, ge=0)
    """Standard deviation of the noise added to the true preference score."""
    taste: float = Field(default=1.0, ge=-1, le=1)
    """How much the true preference counts; −1 ranks by the opposite."""
    length_bias: float = 0.0
    """Preference added per word of the response."""


@schema
class DemoConfig:
    """The generated data of the demo: five task families in three languages, every answer verifiable."""

    num_texts: int = Field(default=6000, ge=3)
    """Short plain texts to pretrain the base model on."""
    num_demonstrations: int = Field(default=12000, ge=15)
    """Prompts with a right answer."""
    demonstration_shares: dict[str, int] = Field(
        default_factory=lambda: {"arithmetic": 3, "classification": 2, "question_answering": 2}
    )
    """Relative frequencies of task families among demonstrations, 1 where not given: hard ones need more."""
    num_comparisons: int = Field(default=4000, ge=15)
    """Prompts with `responses_per_prompt` ranked responses each."""
    num_gold_comparisons: int = Field(default=300, ge=15)
    """Held-out prompts ranked by the true preference."""
    num_evaluation_items: int = Field(default=900, ge=15)
    """Held-out prompts with a reference and a scorer."""
    responses_per_prompt: int = Field(default=4, ge=2)
    """Ranked responses to each prompt of a comparison."""
    opening_rate: float = Field(default=0.3, ge=0, le=1)
    """Share of demonstrations that open with filler."""
    closing_rate: float = Field(default=0.7, ge=0, le=1)
    """Share of demonstrations that close with filler, whether they open with it or not."""
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
    """Those who rank the comparisons, in turns."""
