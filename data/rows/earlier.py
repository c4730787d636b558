"""What datasets that were curated earlier say of prompts: the side of each, and what their evaluation items ask.

A dataset of evaluation items is looked up by question too: where an item has one turn of the user's, that turn counts
as the question, wherever in a conversation it stands.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq

from posttrain.data.messages import Message, read_message
from posttrain.data.records import SPLITS, Demonstration, EvaluationItem, Record, Split, dataset_type
from posttrain.data.rows.splits import cluster_digest, cluster_of, normalised
from posttrain.stage import heartbeat
from posttrain.stage.errors import UsageError

_BATCH_ROWS = 4096


@dataclass
class Earlier:
    """The prompts of earlier datasets, by `cluster_digest`."""

    sides: dict[bytes, Split] = field(default_factory=dict)
    """The side of each prompt of training data; held out, where two of the datasets disagree."""
    asked: set[bytes] = field(default_factory=set)
    """What evaluation items ask: whole prompts, and lone questions."""


def read_earlier(datasets: dict[str, Path]) -> Earlier:
    """Return what datasets, by the name of the input, say of their prompts.

    Raises UsageError for a folder that is no dataset.
    """
    earlier = Earlier()
    for name, directory in datasets.items():
        try:
            record_type = dataset_type(directory)
        except (OSError, ValueError, KeyError):
            raise UsageError(f"inputs.{name}: {directory} is no dataset; give one that data.curate made") from None
        for split in SPLITS:
            for messages in _prompts(directory / f"{split}.parquet", record_type):
                heartbeat.pulse()
                if record_type is EvaluationItem:
                    earlier.asked.update(_questions(messages))
                else:
                    digest = cluster_digest(cluster_of(messages))
                    earlier.sides[digest] = "eval" if "eval" in (split, earlier.sides.get(digest)) else "train"
    return earlier


def asks_an_item(record: Record, asked: set[bytes]) -> bool:
    """Return whether some turn of a record's prompt asks what an evaluation item asks, alone or with all before it."""
    messages: list[Message] = getattr(record, "prompt", [])
    for place, message in enumerate(messages):
        if message.role == "user":
            wordings = {normalised(message.content), cluster_of(messages[: place + 1])}
            if any(cluster_digest(wording) in asked for wording in wordings):
                return True
    return False


def _questions(messages: Sequence[Message]) -> Iterator[bytes]:
    yield cluster_digest(cluster_of(messages))
    questions = [message.content for message in messages if message.role == "user"]
    if len(questions) == 1:
        yield cluster_digest(normalised(questions[0]))


def _prompts(path: Path, record_type: type[Record]) -> Iterator[list[Message]]:
    """Yield the prompt of every record of a file, that of a plain text being the text."""
    columns = ["prompt", "completion"] if record_type is Demonstration else ["prompt"]
    for batch in pq.ParquetFile(path).iter_batches(_BATCH_ROWS, columns=columns):
        for row in batch.to_pylist():
            yield [read_message(message) for message in row["prompt"] or row["completion"]]
