"""The templates of pages, and how they write numbers and texts; all values are escaped, a missing one is an error."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from posttrain.stage.wording import duration

LONGEST_SAMPLE = 1500
"""Characters of a prompt or response that a page shows."""


def page_template(name: str) -> Template:
    """Return one of the templates beside this module."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "clip": clip, "signed": signed, "decimal": decimal, "count": count}
    environment.filters["reason"] = reason
    return environment.get_template(name)


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
