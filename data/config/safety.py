"""Knobs of the safety set."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.stage.schema import schema

Language = Literal["en", "es", "de"]


@schema
class SafetyConfig:
    """Requests that should be refused, plain and disguised, and harmless ones that look like them."""

    languages: list[Language] = Field(default_factory=lambda: list[Language](("en", "es", "de")), min_length=1)
    """In which each request is made."""
    disguised: bool = True
    """Also make each request in all of the disguises."""
