"""The ladder of structured output over rows: what each rung gave for each of them, and the table of its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.messages import Conversation, Json
from posttrain.sample.asking.rows import Row
from posttrain.sample.sampling import SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.constraint import GeneratesUnder
from posttrain.sample.structured.ladder import RungReport, Task, climb, is_reference
from posttrain.sample.structured.repair import parse_json
from posttrain.stage.errors import UsageError


def tasks_of(rows: Sequence[Row], schema: Mapping[str, Any], system: str) -> list[Task]:
    """Return a task of each row; its ``reference``, if it has one, is the JSON of the right document.

    Raises UsageError where a reference is no JSON, or some rows have one and some have none.
    """
    references = [row.reference for row in rows]
    if any(references) and not all(references):
        row = rows[references.index(None)]
        raise UsageError(f"{row.place}: no reference, though other rows have one; give all of them one, or none")
    head = [{"role": "system", "content": system}] if system else []
    return [Task(Conversation([*head, *row.conversation]), schema, _document(row)) for row in rows]


def climb_rows(
    sampler: GeneratesUnder,
    rows: Sequence[Row],
    schema: Mapping[str, Any],
    system: str,
    params: SamplingParams,
    vocabulary: Vocabulary,
) -> list[RungReport]:
    """Return how each rung does on rows, as `tasks_of` reads them; right is what equals the reference."""
    known = all(row.reference is not None for row in rows)
    return climb(sampler, vocabulary, tasks_of(rows, schema, system), params, is_right=is_reference if known else None)


def rungs_of(reports: Sequence[RungReport], place: int) -> list[Json]:
    """Return what each rung gave for one of the tasks, as JSON."""
    documents = [(report.rung, report.documents[place]) for report in reports]
    return [
        {"rung": rung, "text": own.text, "parsed": own.parsed, "valid": own.valid, "changes": list(own.changes)}
        for rung, own in documents
    ]


def _document(row: Row) -> Any:
    if row.reference is None:
        return None
    try:
        return parse_json(row.reference)
    except ValueError as error:
        raise UsageError(f"{row.place}: reference: not JSON ({error}); give the right document") from None
