"""The files of a source: one, several, all of a folder, or those that a pattern matches, read as one."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from posttrain.data.sources.readers import BadRow, Row, Rows, format_of, read_rows
from posttrain.stage.errors import UsageError
from posttrain.stage.files import files_under, is_pattern, located, matching

log = logging.getLogger(__name__)

_TRAIN = re.compile(r"(?:^|[/._-])train(?=[/._-])")
_HELD_OUT = re.compile(r"(?:^|[/._-])(test|valid|validation|dev|eval)(?=[/._-])")


def open_files(given: str | Sequence[str]) -> tuple[Rows, str]:
    """Return the rows of what a source's path names, and what to show before their positions.

    One file is shown as it was written. Of several, the folder that holds all is shown, and positions begin with the
    file's path below it. Raises UsageError where nothing is there, or where files are of several formats.
    """
    names = [given] if isinstance(given, str) else list(given)
    if len(names) == 1 and not is_pattern(names[0]) and not located(names[0]).is_dir():
        return read_rows(located(names[0])), names[0]
    named = [_named(name) for name in names]
    files = [file for _, found in named for file in found]
    formats = {format_of(file): file for file in files}
    if len(formats) > 1:
        one, other = list(formats.values())[:2]
        shown = names[0] if len(names) == 1 else f"{one} and {other}"
        raise UsageError(f"{shown}: files of several formats ({', '.join(sorted(formats))}); {_HOW}")
    twice = [file for file in files if files.count(file) > 1]
    if twice:
        raise UsageError(f"{twice[0]}: named twice; name it once")
    folder = named[0][0] if len(named) == 1 else Path(os.path.commonpath([file.absolute().parent for file in files]))
    if len(named) > 1:
        files = [file.absolute() for file in files]
    log.info("%s: %d files, %s to %s", folder, len(files), files[0].name, files[-1].name)
    return _shards(folder, files), str(folder).rstrip("/")


_HOW = "name those to read, such as 'FOLDER/*.jsonl'"


def _named(name: str) -> tuple[Path, list[Path]]:
    """Return the folder from which a path's files are told, and the files, of which there is at least one."""
    path = located(name)
    if is_pattern(name):
        folder, files = matching(name)
        if not files:
            raise UsageError(f"{name}: no file matches; mend the pattern")
        return folder, files
    if not path.is_dir():
        return path.parent, [path]
    visible = [file for file in files_under(path) if not _hidden(file.relative_to(path))]
    files = [file for file in visible if format_of(file)]
    if not files:
        raise UsageError(f"{name}: the folder holds no file that can be read; mend the path")
    if len(files) < len(visible):
        others = [file.relative_to(path).as_posix() for file in visible if file not in files]
        log.warning("%s: not read, being no rows: %s", name, ", ".join(others))
    shown = [file.relative_to(path).as_posix() for file in files]
    held_out = [text for text in shown if _HELD_OUT.search(text)]
    if held_out and any(_TRAIN.search(text) for text in shown):
        raise UsageError(f"{name}: the folder holds files to train on and to hold out ({held_out[0]}); {_HOW}")
    return path, files


def _hidden(path: Path) -> bool:
    return any(part.startswith((".", "_")) for part in path.parts)


def _shards(folder: Path, files: Sequence[Path]) -> Iterator[Row | BadRow]:
    for file in files:
        place = f"/{file.relative_to(folder).as_posix()}"
        for row in read_rows(file):
            if isinstance(row, Row):
                yield Row(place + row.position, row.values)
            else:
                yield BadRow(place + row.position, row.reason, row.raw)
