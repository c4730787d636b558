"""What the files of a folder hold, told by their first rows; `python -m posttrain.data.shapes FOLDER` prints it.

{"path": …, "record_type": "demonstration", "adapter": "alpaca", "why": ""}    a file that some recipe takes
{"path": …, "record_type": null, "adapter": "", "why": "…"}                    one that none does
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from posttrain.data.config.curate import RecordType
from posttrain.data.sources.adapters import ADAPTERS
from posttrain.data.sources.readers import BadRow, format_of, read_rows
from posttrain.stage.errors import UsageError

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
TYPES: tuple[RecordType, ...] = ("comparison", "unpaired", "demonstration", "evaluation")
"""In the order in which a row is asked for them."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a file holds."""

    path: str
    record_type: str | None
    adapter: str
    why: str


def shapes_below(path: Path) -> Iterator[Shape]:
    """Yield the shape of a file, or of each file below a folder that has the suffix of rows."""
    for file in [path] if path.is_file() else sorted(found for found in path.rglob("*") if found.is_file()):
        if format_of(file) in SUFFIXES:
            yield shape_of(file)


def shape_of(path: Path) -> Shape:
    """Return the shape of a file: the record type that the first adapter which fits its first row makes."""
    try:
        row = next(iter(read_rows(path)))
    except UsageError as error:
        return Shape(str(path), None, "", str(error))
    if isinstance(row, BadRow):
        return Shape(str(path), None, "", f"its first row is broken: {row.reason}")
    fitting = [each for each in ADAPTERS.values() if each.columns <= row.values.keys() and each.fits(row.values)]
    for adapter in fitting[:1]:
        for record_type in TYPES:
            if record_type in adapter.makes:
                return Shape(str(path), record_type, adapter.name, "")
    return Shape(str(path), None, "", f"no shape has the columns {', '.join(sorted(row.values))}")


if __name__ == "__main__":
    print(json.dumps([dataclasses.asdict(shape) for shape in shapes_below(Path(sys.argv[1]))], ensure_ascii=False))
