"""Write the pages that are made from data: `docs/knobs.md`, and the tables of `docs/migrating.md`.

    python scripts/reference.py

Run it after a knob or a name of another tool has changed; a test compares.
"""

from __future__ import annotations

from pathlib import Path

from posttrain.pipeline.graph.knobs import Knob, all_knobs
from posttrain.pipeline.graph.registry import STAGE_TYPES
from posttrain.stage.foreign import FOREIGN, TOOLS, Foreign

ROOT = Path(__file__).resolve().parents[1]
MARK = "<!-- The tables below are made by scripts/reference.py. -->\n"


def knob_page() -> str:
    """Return `docs/knobs.md`."""
    knobs = all_knobs()
    lines = [
        "# Knobs",
        "",
        "Made by `scripts/reference.py` from the schemas; `posttrain config KEY` says the same at the prompt, and",
        "`posttrain config recipe=NAME` what a recipe sets. A knob marked *speed* changes no result, and so runs",
        "nothing again. `NAME` stands for a stage of the graph, `0` for any place in a list. A stage's own value is",
        "`stages.NAME.with.KNOB=…`; it wins over that of its type.",
    ]
    own = [knob for knob in knobs if ".".join(knob.key.split(".")[:2]) not in STAGE_TYPES]
    lines += _table("The pipeline", own, "")
    for run in STAGE_TYPES:
        lines += _table(f"`{run}`", [knob for knob in knobs if knob.key.startswith(f"{run}.")], f"{run}.")
    return "\n".join(lines) + "\n"


def _table(title: str, knobs: list[Knob], prefix: str) -> list[str]:
    rows = [_row(knob, prefix) for knob in knobs]
    return [
        "",
        f"## {title}",
        "",
        "| knob | default | takes | what it does | example |",
        "|---|---|---|---|---|",
        *rows,
    ]


def _row(knob: Knob, prefix: str) -> str:
    takes = ", ".join(filter(None, [knob.kind, knob.range, knob.unit, "*speed*" if knob.speed else ""]))
    default = f"`{knob.default}`" if knob.default else "to be given"
    cells = (f"`{knob.key.removeprefix(prefix)}`", default, takes, knob.words, f"`{knob.example}`")
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def migration_tables() -> str:
    """Return the tables of `docs/migrating.md`, one a tool."""
    lines = []
    for tool in TOOLS:
        lines += ["", f"## {tool}", "", "| there | here | |", "|---|---|---|"]
        lines += [_foreign_row(row, tool) for row in FOREIGN if tool in row.names]
    return "\n".join(lines) + "\n"


def _foreign_row(row: Foreign, tool: str) -> str:
    theirs = ", ".join(f"`{name}`" for name in row.names[tool])
    value = f"={row.value}" if row.value else ""
    keys = (
        ", ".join(f"`{key}{value}`" for key in row.places())
        if len(row.stages) < 3
        else f"`train.STAGE.{row.knob}{value}`"
    )
    return f"| {theirs} | {keys} | {row.note} |"


def pages() -> dict[Path, str]:
    """Return what each page should be; what people wrote above the tables of a page stays."""
    migrating = ROOT / "docs" / "migrating.md"
    above, mark, _ = migrating.read_text(encoding="utf-8").partition(MARK)
    return {ROOT / "docs" / "knobs.md": knob_page(), migrating: above + mark + migration_tables()}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
