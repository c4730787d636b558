"""Records on the disk while they are curated, so that memory holds a batch of them and not all.

A shelf is filled once and then read as often as need be, in order or row by row. Its file is Arrow's, with the columns
that the dataset will have, in batches of `BATCH` rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import overload

import pyarrow as pa

from posttrain.data.records import Record, arrow_schema, record_of, stored_record

BATCH = 512
"""Rows of a batch."""


class Shelf(Sequence[Record]):
    """Records of one type, in the order in which they were put there."""

    def __init__(self, path: Path, record_type: type[Record]) -> None:
        self._path, self._type, self._schema = path, record_type, arrow_schema(record_type)
        self._waiting: list[Record] = []
        self._rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(str(path), self._schema)
        self._mapped: pa.RecordBatchFileReader | None = None

    def append(self, record: Record) -> None:
        """Put a record at the end; not once the shelf has been read."""
        self._waiting.append(record)
        self._rows += 1
        if len(self._waiting) == BATCH:
            self._write()

    def filled(self, records: Iterable[Record]) -> Shelf:
        """Put records at the end, and return the shelf."""
        for record in records:
            self.append(record)
        return self

    def remove(self) -> None:
        """Take the file away; nothing can be read any more."""
        self._finish()
        self._mapped = None
        self._path.unlink()

    def batches(self) -> Iterator[list[Record]]:
        """Yield the records in batches, in order."""
        self._finish()
        with pa.OSFile(str(self._path)) as file:
            reader = pa.ipc.open_file(file)
            for number in range(reader.num_record_batches):
                yield self._records(reader.get_batch(number))

    def __len__(self) -> int:
        return self._rows

    def __iter__(self) -> Iterator[Record]:
        for batch in self.batches():
            yield from batch

    @overload
    def __getitem__(self, place: int) -> Record: ...
    @overload
    def __getitem__(self, place: slice) -> list[Record]: ...
    def __getitem__(self, place: int | slice) -> Record | list[Record]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(self._rows))]
        if not 0 <= place < self._rows:
            raise IndexError(f"row {place} of {self._rows}")
        self._finish()
        if self._mapped is None:
            self._mapped = pa.ipc.open_file(pa.memory_map(str(self._path)))
        batch, within = divmod(place, BATCH)
        return self._records(self._mapped.get_batch(batch).slice(within, 1))[0]

    def _records(self, batch: pa.RecordBatch) -> list[Record]:
        return [record_of(row, self._type) for row in batch.to_pylist()]

    def _write(self) -> None:
        assert self._writer is not None, f"{self._path}: filled after it was read"
        rows = [stored_record(record) for record in self._waiting]
        self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self._schema))
        self._waiting = []

    def _finish(self) -> None:
        if self._writer is not None:
            if self._waiting:
                self._write()
            self._writer.close()
            self._writer = None


class Shelves:
    """Shelves of one folder: each is filled from the one before, which is then taken away."""

    def __init__(self, folder: Path, record_type: type[Record]) -> None:
        self._folder, self._type = folder, record_type
        self._made = 0
        self._last: Shelf | None = None

    def empty(self) -> Shelf:
        """Return a shelf to fill; those of a run that was killed are overwritten."""
        self._made += 1
        self._last = Shelf(self._folder / f"{self._made}.arrow", self._type)
        return self._last

    def of(self, records: Iterable[Record]) -> Shelf:
        """Return a shelf with records that come from the last one, which is taken away."""
        before = self._last
        made = self.empty().filled(records)
        if before is not None:
            before.remove()
        return made

    def remove(self) -> None:
        """Take the last shelf away."""
        if self._last is not None:
            self._last.remove()
            self._last = None
