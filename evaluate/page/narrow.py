"""Tables for narrow screens: each cell is told its column, so that a row can be shown as a list without a head."""

from __future__ import annotations

import re
from html import escape, unescape

_TABLE = re.compile(r"<table\b.*?</table>", re.DOTALL)
_HEAD = re.compile(r"<thead>.*?</thead>", re.DOTALL)
_ROW = re.compile(r"<tr\b[^>]*>.*?</tr>", re.DOTALL)
_CELL = re.compile(r"<(t[dh])\b([^>]*)>(.*?)(?=<t[dh]\b|</tr>)", re.DOTALL)
_SPAN = re.compile(r'\b(row|col)span="(\d+)"')
_TAG = re.compile(r"<[^>]*>")


def label_cells(page: str) -> str:
    """Return a page in whose tables every cell below a head names its column as ``data-label``; tables do not nest."""
    return _TABLE.sub(lambda table: _labelled(table[0]), page)


def _labelled(table: str) -> str:
    head = _HEAD.search(table)
    if head is None:
        return table
    names = [unescape(_TAG.sub("", cell[3])).strip() for cell in _CELL.finditer(head[0])]
    taken: list[int] = [0] * len(names)
    body = _ROW.sub(lambda row: _row(row[0], names, taken), table[head.end() :])
    return table[: head.end()] + body


def _row(row: str, names: list[str], taken: list[int]) -> str:
    """Label the cells of a row; ``taken`` counts the rows that a cell from above still fills in each column."""
    column = 0

    def label(cell: re.Match[str]) -> str:
        nonlocal column
        while column < len(names) and taken[column]:
            taken[column] -= 1
            column += 1
        spans = {name: int(count) for name, count in _SPAN.findall(cell[2])}
        name = names[column] if column < len(names) else ""
        for place in range(column, min(len(names), column + spans.get("col", 1))):
            taken[place] = spans.get("row", 1) - 1
        column += spans.get("col", 1)
        return f'<{cell[1]}{cell[2]} data-label="{escape(name)}">{cell[3]}' if name else cell[0]

    done = _CELL.sub(label, row)
    for place in range(column, len(names)):
        taken[place] = max(0, taken[place] - 1)
    return done
