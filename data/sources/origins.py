"""Where a source's rows come from, under which names its columns are read, and which adapter fits them."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

from posttrain.data.checks.scorers import SCORERS, user_function
from posttrain.data.config.curate import RecordType, SourceConfig
from posttrain.data.sources.adapters import ADAPTERS, Adapter, detect
from posttrain.data.sources.columns import renamed, reshaped
from posttrain.data.sources.files import open_files
from posttrain.data.sources.readers import BadRow, Row, Rows, read_hub_dataset, read_rows
from posttrain.stage.errors import UsageError, did_you_mean


def open_source(source: SourceConfig, inputs: Path | None) -> tuple[Rows, str]:
    """Return the rows of a source, with the columns that it names, and the path or name to show in errors.

    ``inputs`` is the artifact of sources.
    """
    rows, path = _open(source, inputs)
    if source.function is not None:
        function = user_function(source.function, f"source {source.name!r}: function")
        rows = reshaped(rows, function, source.function)
    if source.columns or source.ignore:
        rows = renamed(rows, source.columns, source.ignore, path)
    return rows, path


def _open(source: SourceConfig, inputs: Path | None) -> tuple[Rows, str]:
    if source.scorer is not None and source.scorer not in SCORERS:
        choices = ", ".join(SCORERS)
        raise UsageError(f"source {source.name!r}: scorer {source.scorer!r} must be one of {choices}; rename it")
    if source.dataset is not None:
        rows = read_hub_dataset(source.dataset, source.subset, source.dataset_split, source.revision)
        return rows, source.dataset
    if source.path is not None:
        return open_files(source.path)
    if inputs is None:
        raise UsageError(f"source {source.name!r}: file {source.file!r} needs inputs.sources; give it, or give path")
    path = inputs / str(source.file)
    if not path.exists():
        known = sorted(entry.name for entry in inputs.iterdir())
        raise UsageError(f"source {source.name!r}: no file {source.file!r} in {inputs}{did_you_mean(path.name, known)}")
    return read_rows(path), str(path)


def choose_adapter(name: str, rows: Rows, path: str, record_type: RecordType) -> tuple[Adapter, Rows]:
    """Return the adapter of a source, recognised from its first good row if need be, and all its rows.

    Raises UsageError when no adapter fits, or the one named does not make the record type.
    """
    if name != "auto":
        ADAPTERS[name].converter(record_type)
        return ADAPTERS[name], rows
    seen: list[Row | BadRow] = []
    for row in rows:
        seen.append(row)
        if isinstance(row, Row):
            try:
                return detect(row.values, record_type), chain(seen, rows)
            except UsageError as error:
                raise UsageError(f"{path}{row.position}: {error}") from None
    reason = next(row.reason for row in seen if isinstance(row, BadRow))
    raise UsageError(f"{path}{seen[0].position}: {reason}; no row of the source is readable")
