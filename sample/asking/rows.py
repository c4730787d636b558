"""A file of prompts: its rows, their responses as JSON, and a run over them that goes on where it was killed."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from posttrain.data.messages import Json, Message, message_dicts
from posttrain.sample.structured.repair import parse_json
from posttrain.stage.errors import LeaseHeldError, UsageError
from posttrain.stage.progress import track


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a file, or a prompt of the command line."""

    place: str
    """``file:line``, or the option."""
    fields: Json
    """As it is."""
    conversation: list[Json]
    """What its prompt means."""

    @property
    def reference(self) -> str | None:
        """The right answer, where the row has one. Raises UsageError where that is no text."""
        reference = self.fields.get("reference")
        if reference is not None and not isinstance(reference, str):
            raise UsageError(f"{self.place}: reference: {type(reference).__name__}; give a text; of a document, JSON")
        return reference


Answers = Callable[[Sequence[int]], list[Json]]
"""Returns what some rows, given by their places, get besides their own fields."""


def prompt_row(text: str, reference: str | None = None) -> Row:
    """Return a prompt of the command line as a row."""
    fields = {"prompt": text, "reference": reference}
    return Row("--prompt", fields, _conversation(text, "--prompt"))


def read_rows(source: Path) -> list[Row]:
    """Return the rows of a JSONL file with their conversations.

    A row's ``prompt`` is a text or a list of messages; what else it holds is kept. Lines end at a line feed alone,
    since a text may hold any other separator; blank ones are passed over, and so is a byte order mark. Raises
    UsageError that names the line of a row that cannot be read.
    """
    return [_row(value, place) for place, value in read_objects(source, "prompt")]


def read_objects(source: Path, field: str) -> Iterator[tuple[str, Json]]:
    """Yield each object of a JSONL file with its place, ``file:line``.

    Raises UsageError where there is no such file, or a line has no object with that field.
    """
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    lines = source.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{source}:{number}", _object(line, f"{source}:{number}", field)


def _object(line: bytes, where: str, field: str) -> Json:
    try:
        value = parse_json(line)
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1}); save it as UTF-8") from None
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}); give one object per line") from None
    if not isinstance(value, dict) or field not in value:
        shapes = {"prompt": "TEXT or a list of messages"}
        raise UsageError(f'{where}: no {field}; give {{"{field}": {shapes.get(field, "TEXT")}}}')
    return value


def _row(fields: Json, place: str) -> Row:
    return Row(place, fields, _conversation(fields["prompt"], place))


def _conversation(prompt: Any, where: str) -> list[Json]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    try:
        messages = TypeAdapter(list[Message]).validate_python(prompt)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in ("prompt", *fault["loc"]))
        raise UsageError(f"{where}: {place}: {fault['msg']}; give a text or role and content of each message") from None
    if not messages:
        raise UsageError(f"{where}: prompt: no message; give a text or role and content of each message")
    return message_dicts(messages)


def answer_rows(answers: Answers, rows: Sequence[Row], out: Path, request: str, chunk: int) -> list[Json]:
    """Write each row with what it gets as JSONL, ``chunk`` at a time, and return these rows; ``out`` is there at last.

    ``request`` is a digest of all that decides the responses. Where a run of the same request was killed, this one
    goes on behind the last whole chunk that it wrote, so that chunks, and with them bytes, are the same.
    """
    temporary = out.with_name(f".{out.name}.{request[:16]}.incomplete")
    with _alone(temporary) as file:
        written = _whole_lines(file, chunk, len(rows))
        if written:
            print(f"going on behind {len(written)} of {len(rows)} prompts, which {temporary} has", file=sys.stderr)
        parts = [list(range(len(rows)))[start : start + chunk] for start in range(len(written), len(rows), chunk)]
        for places in track(parts, len(rows) - len(written), "generate"):
            full = [rows[place].fields | more for place, more in zip(places, answers(places), strict=True)]
            lines = [json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in full]
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
            written += full
        temporary.rename(out)
    for left in out.parent.glob(f".{out.name}.*.incomplete"):  # of other requests for the same file
        left.unlink()
    return written


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that no other process writes to at the same time."""
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LeaseHeldError(f"{path}: another process is answering these prompts; wait for it") from None
        yield file


def _whole_lines(file: IO[bytes], chunk: int, most: int) -> list[Json]:
    """Return the rows of the whole chunks that a file has, and cut it behind them."""
    file.seek(0)
    lines = file.read().split(b"\n")[:-1]
    kept = lines if len(lines) == most else lines[: len(lines) // chunk * chunk]
    file.truncate(sum(len(line) + 1 for line in kept))
    return [json.loads(line) for line in kept]
