"""Knobs of retrieval."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema

INSTRUCTION = (
    "Answer from these passages alone. Put what you take from them in double quotation marks, word for word. "
    "If they do not say it, say that you do not know."
)


@schema
class RetrieveConfig:
    """Finds passages for each prompt of a dataset by BM25, and puts them before it."""

    passages: int = Field(default=3, ge=1)
    """Most passages of a prompt: the best that share a word with it."""
    passage_words: int = Field(default=120, ge=8)
    """Documents are cut into passages of at most this many words, at paragraphs and sentences where they have them."""
    question: Literal["last", "conversation"] = "last"
    """What is searched for: the last turn of the user's, or all turns of the user's."""
    instruction: str = INSTRUCTION
    """Stands between a prompt's own system message and its passages; empty for none."""
    missed: Literal["keep", "drop"] = "drop"
    """Demonstrations that quote what no passage of theirs holds teach to make it up. Evaluation items always stay:
    from what they are given, they cannot be answered."""
    k1: float = Field(default=1.2, gt=0)
    """How soon a word's further occurrences in a passage count less."""
    b: float = Field(default=0.75, ge=0, le=1)
    """How much a passage's length is held against it."""
