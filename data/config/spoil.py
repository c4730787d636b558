"""Knobs of what is planted into the demo's demonstrations."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema


@schema
class SpoilConfig:
    """The demo's demonstrations as a careless collector would hand them over: leaks, copies, garbage, personal data."""

    leaked_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the evaluation items, evenly over tasks and languages, that stand among the demonstrations."""
    leak_copies: int = Field(default=4, ge=1)
    """Demonstrations made of each leaked item; every second one says something else before it asks."""
    copied_share: float = Field(default=0.02, ge=0, le=1)
    """Share of the demonstrations that are copied."""
    copies: int = Field(default=20, ge=1)
    """Copies of each of them; every second one is exact, the others differ in a mark or a letter's case."""
    garbage_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the demonstrations whose answer is garbage: control tokens, a broken encoding, the prompt, one thing
    over and over."""
    personal_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the demonstrations whose answer ends with an email address and a phone number."""
