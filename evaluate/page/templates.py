"""What pages are made with: templates of this folder, and how they write numbers and texts."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from posttrain.stage.wording import duration

LONGEST_SAMPLE = 1500
"""Characters of a prompt or response that a page shows."""


def page_environment() -> Environment:
    """Return the environment of the templates, in which all values are escaped and a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "clip": clip, "signed": signed, "decimal": decimal, "count": count}
    environment.filters["reason"] = reason
    return environment


def percent(confidence: float) -> str:
    """Return a confidence as people say it: ``95%``, ``97.5%``."""
    return f"{confidence:.0%}" if confidence * 100 % 1 == 0 else f"{confidence:.1%}"


def clip(text: str) -> str:
    """Return a text cut to `LONGEST_SAMPLE` characters, saying how many are left out."""
    if len(text) <= LONGEST_SAMPLE:
        return text
    return f"{text[:LONGEST_SAMPLE]} … ({len(text) - LONGEST_SAMPLE:,} more characters)"


def signed(value: float, digits: int = 3) -> str:
    """Return a difference with its sign: ``+0.120``, ``−0.030``."""
    return f"{value:+.{digits}f}".replace("-", "−")


def decimal(value: float, digits: int = 3) -> str:
    """Return a number with a fixed count of digits after the point."""
    return f"{value:.{digits}f}".replace("-", "−")


def count(value: float) -> str:
    """Return a number with thousands set apart."""
    return f"{value:,.0f}".replace(",", "\u202f")


def reason(name: str) -> str:
    """Return the name of a step or reason as people say it."""
    return name.replace("_", " ")
