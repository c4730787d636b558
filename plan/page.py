"""Figures for people: a table of numbers with their units, or each with its formula; and as JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from posttrain.plan.figure import Figure

WIDTH = 140
"""Columns of a table in a file or pipe, which has no width of its own."""
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_figures(
    columns: Mapping[str, Sequence[Figure]],
    *,
    explain: bool = False,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Print one column of figures for each name; ``explain`` adds formula, numbers and source below each."""
    if as_json:
        plain = {name: [item.as_json() for item in figures] for name, figures in columns.items()}
        print(json.dumps(plain, ensure_ascii=False, indent=2))
        return
    console = console or wide_console()
    if explain:
        for name, figures in columns.items():
            console.print(f"[bold]{escape(name)}[/bold]")
            print_explanations(figures, console)
        return
    table = Table()
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for row in dict.fromkeys(item.name for figures in columns.values() for item in figures):
        cells = [next((amount(item) for item in figures if item.name == row), "") for figures in columns.values()]
        table.add_row(row, *cells)
    console.print(table)


def print_explanations(figures: Sequence[Figure], console: Console) -> None:
    """Print every figure with its formula, the numbers put in, and where it comes from."""
    for item in figures:
        console.print(f"{item.name}: [bold]{amount(item)}[/bold]", highlight=False)
        worked = "" if item.worked() == item.formula else f" = {item.worked()}"
        console.print(f"    {item.formula}{worked}", markup=False, highlight=False)
        console.print(f"    {item.source}", markup=False, highlight=False)


def wide_console() -> Console:
    """Return a console that is wide enough for a table also where there is no terminal."""
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console


def amount(item: Figure) -> str:
    """Return a figure's value with its unit."""
    if item.unit == "B":
        return size(item.value)
    if item.unit == "s":
        return duration(item.value)
    if item.unit == "$":
        return f"${item.value:,.2f}" if item.value < 1000 else f"${item.value:,.0f}"
    if item.unit == "share":
        return f"{100 * item.value:.1f} %"
    return f"{count(item.value)}{'' if item.unit.startswith('/') else ' '}{item.unit}".strip()


def count(number: float) -> str:
    """Return a number with three digits and its unit: ``135 M``, ``8.03 G``."""
    for unit, amount_of in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if 1e21 > number >= amount_of:
            return f"{number / amount_of:#.3g} {unit}".replace(". ", " ")
    if number >= 1e21:
        return f"{number:.2e}"
    return str(round(number)) if number >= 100 or number == round(number) else f"{number:.3g}"


def size(num_bytes: float) -> str:
    """Return a size with its binary unit, such as ``1.5 GiB``."""
    for unit, amount_of in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20)):
        if abs(num_bytes) >= amount_of:
            return f"{num_bytes / amount_of:.1f} {unit}"
    return f"{num_bytes / 1024:.1f} KiB"


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    for unit, amount_of in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if seconds >= 1.5 * amount_of:
            return f"{seconds / amount_of:.3g} {unit}"
    return f"{seconds:.3g} s"
