"""Strict readers: files and Hugging Face datasets as rows that know their place.

Nothing is repaired or skipped in silence. What concerns one row only becomes a `BadRow`, which the caller turns into an
error or puts into quarantine. What leaves the rest of the file unreadable (a cut gzip stream, a broken CSV quote, a
column that stands twice, any syntax error of a .json file) raises UsageError with the place. A byte order mark at the
beginning of a file, which some programs write before UTF-8, is no part of its text.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from posttrain.data.sources import json_text
from posttrain.data.sources.web.warc import pages
from posttrain.stage import heartbeat
from posttrain.stage.errors import UsageError

_BOM_BYTES = json_text.BOM.encode()


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its columns, and its place within the source, ``:12`` for a line or ``[11]`` for an index from 0."""

    position: str
    values: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used: its place, why, and what stood there."""

    position: str
    reason: str
    raw: Any


Rows = Iterator[Row | BadRow]


def read_rows(path: Path) -> Rows:
    """Yield the rows of a file of JSON lines, JSON, CSV, TSV, Parquet or WARC, plain or with .gz behind it.

    A .json file holds an array of objects, one object, or JSON lines. The columns of .csv and .tsv are all strings.
    The rows of .warc and .wet are pages.
    Raises UsageError for a file that is missing, of another type, empty, or broken beyond one row.
    """
    packed = path.suffix.lower() == ".gz"
    reader = _READERS.get(format_of(path))
    if reader is None:
        known = ", ".join(_READERS)
        raise UsageError(f"{path}: not a type that can be read; give one of {known}, plain or with .gz behind it")
    position = ""
    try:
        with _open(path, packed) as file:
            for row in reader(file, path):
                position = row.position
                yield row
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; mend the path") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        after = f" after {path.name}{position}" if position else ""
        raise UsageError(f"{path}: the gzip data break off or are damaged{after} ({error}); fetch it again") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error}); mend the path or its rights") from None
    if not position:
        raise UsageError(f"{path}: holds no rows; mend the path or leave the source out")


def format_of(path: Path) -> str:
    """Return the format that a file's name says, such as ``.jsonl``; an empty text where it cannot be read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    name = (suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]) or [""]
    return name[0] if name[0] in _READERS else ""


def _open(path: Path, packed: bool) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def read_hub_dataset(name: str, subset: str | None, split: str, revision: str | None) -> Rows:
    """Yield the rows of a Hugging Face dataset, or of a folder that is one; its own code is never run.

    A folder is prepared anew: the library's cache tells its files apart by their times of writing alone.
    Raises UsageError when it cannot be loaded: a wrong name, a private one, or no network and no cached copy.
    """
    with tempfile.TemporaryDirectory() if Path(name).is_dir() else nullcontext() as cache:
        table = _load_dataset(name, subset, split, revision, cache)
        if len(table) == 0:
            raise UsageError(f"dataset {name!r}: split {split!r} holds no rows; choose another or leave the source out")
        as_given = _as_given if _has_open(str(table.features)) else dict
        for index, values in enumerate(table):
            yield Row(f"[{index}]", as_given(values))


def _load_dataset(name: str, subset: str | None, split: str, revision: str | None, cache: str | None) -> Any:
    import datasets

    try:
        with heartbeat.waiting(f"loading {name}"):
            return datasets.load_dataset(name, subset, split=split, revision=revision, cache_dir=cache)
    except Exception as error:  # the library raises dozens of types for what a user can mend
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"dataset {name!r}: cannot be loaded ({type(error).__name__}: {reason}); "
            "mend name, subset, split or revision, or give a downloaded file as path"
        ) from None


_OPEN = frozenset(
    {
        "arguments",
        "chat_template_kwargs",
        "functions",
        "input_schema",
        "parameters",
        "properties",
        "template_arguments",
        "tools",
    }
)
"""What may have other keys in every row: arguments of calls and of templates, and the definitions of tools."""


def _has_open(types: str) -> bool:
    """Return whether the types of a table, as text, name something that may have other keys in every row."""
    return not _OPEN.isdisjoint(re.findall(r"\w+", types))


def _as_given(value: Any, is_open: bool = False) -> Any:
    """Return a value without the keys that a table adds: its objects have the keys of all rows, null where absent."""
    if isinstance(value, list):
        return [_as_given(item, is_open) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _as_given(item, is_open or key in _OPEN) for key, item in value.items() if not (is_open and item is None)
    }


def _jsonl(file: IO[bytes], path: Path) -> Rows:
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(_BOM_BYTES)
        if not line.strip():
            continue
        position = f":{number}"
        try:
            text = line.decode("utf-8").rstrip("\r\n")
            if "\0" in text:
                raise ValueError(f"NUL byte at column {text.index(chr(0)) + 1}; remove it")
            yield Row(position, _object(json_text.parse_row(text)))
        except UnicodeDecodeError as error:
            reason = f"byte 0x{line[error.start]:02x} at column {error.start + 1} is not UTF-8; save the file as UTF-8"
            yield BadRow(position, reason, line.decode("utf-8", "backslashreplace"))
        except (ValueError, RecursionError) as error:
            yield BadRow(position, json_text.reason(error), line.decode("utf-8").rstrip("\r\n"))


def _json(file: IO[bytes], path: Path) -> Rows:
    data = file.read()
    text = _decode(data, path)
    if _holds_lines(text):
        yield from _jsonl(io.BytesIO(data), path)
        return
    index = 0
    try:
        for element in _elements(text):
            try:
                row: Row | BadRow = Row(f"[{index}]", _object(element))
            except ValueError as error:
                row = BadRow(f"[{index}]", str(error), element)
            yield row
            index += 1
    except (ValueError, RecursionError) as error:
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else f"[{index}]"
        raise UsageError(f"{path}{place}: {json_text.reason(error)}") from None


def _holds_lines(text: str) -> bool:
    """Return whether a text is JSON lines: its first line is an object by itself, and something follows."""
    first, _, rest = text.strip().partition("\n")
    try:
        return bool(rest) and isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def _elements(text: str) -> Iterator[Any]:
    """Yield the elements of a JSON array one by one, so that a fault has a place; any other value is one element."""
    at = _next(text, 0)
    if text[at : at + 1] != "[":
        yield json_text.parse_row(text)
        return
    at = _next(text, at + 1)
    closed = text[at : at + 1] == "]"
    while not closed:
        value, at = json_text.ROWS.raw_decode(text, at)
        yield value
        at = _next(text, at)
        closed = text[at : at + 1] == "]"
        if not closed:
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = _next(text, at + 1)
    end = _next(text, at + 1)
    if end < len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _next(text: str, at: int) -> int:
    """Return the first index from ``at`` on that is not JSON white space."""
    found = _NOT_SPACE.search(text, at)
    return found.start() if found else len(text)


def _csv(file: IO[bytes], path: Path, delimiter: str = ",") -> Rows:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_lines(file, path), strict=True, delimiter=delimiter)
    marks = "commas" if delimiter == "," else "tabs"
    try:
        header = next(reader, [])
        _check_names(header, f"{path}:1")
        if "" in header:
            raise UsageError(f"{path}:1: a column has no name; give each column its own name")
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                yield Row(f":{start}", dict(zip(header, fields, strict=True)))
            elif fields:
                reason = f"{len(fields)} fields, but the header names {len(header)}; quote fields that hold {marks}"
                yield BadRow(f":{start}", reason, fields)
            start = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: not CSV ({error}); mend the quotes") from None


def _tsv(file: IO[bytes], path: Path) -> Rows:
    return _csv(file, path, delimiter="\t")


def _check_names(names: list[str], where: str) -> None:
    """Raise UsageError where a row could not have one value for each name."""
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"{where}: column {min(twice)!r} stands twice; give each column its own name")


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(file, start=1):
        yield _decode(line, path, number)


def _decode(data: bytes, path: Path, line: int = 1) -> str:
    """Decode UTF-8 without NUL; ``line`` is the number of the first line, which may begin with a byte order mark."""
    if line == 1:
        data = data.removeprefix(_BOM_BYTES)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        fault = f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8"
        raise UsageError(f"{path}:{line}: {fault}") from None
    if "\0" in text:
        raise UsageError(f"{path}:{line + text.count(chr(10), 0, text.index(chr(0)))}: NUL byte; remove it")
    return text


def _parquet(file: IO[bytes], path: Path) -> Rows:
    source = io.BytesIO(file.read()) if isinstance(file, gzip.GzipFile) else file
    index = 0
    try:
        table = pq.ParquetFile(source)
        _check_names(table.schema_arrow.names, str(path))
        as_given = _as_given if _has_open(str(table.schema_arrow)) else dict
        for batch in table.iter_batches(batch_size=4096):
            for values in batch.to_pylist():
                yield Row(f"[{index}]", as_given(values))
                index += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{path}[{index}]: not readable Parquet ({reason}); write the file again") from None


def _warc(file: IO[bytes], path: Path) -> Rows:
    try:
        for number, values in pages(file):
            yield Row(f"[{number}]", values)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


_NOT_SPACE = re.compile(r"[^ \t\r\n]")


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
        raise ValueError(
            f"a JSON {names.get(type(value), 'number')}, where an object of columns is required; write {{…}}"
        )
    return value


_READERS: dict[str, Callable[[IO[bytes], Path], Rows]] = {
    ".jsonl": _jsonl,
    ".ndjson": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _parquet,
    ".warc": _warc,
    ".wet": _warc,
}
