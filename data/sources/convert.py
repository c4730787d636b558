"""From a row to a valid record: adapter, provenance, cleaning of comparison groups, and validation."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import ValidationError

from posttrain.data.checks.scorers import SCORERS, check_reference
from posttrain.data.config.curate import RecordType
from posttrain.data.records import RECORD_TYPES, Record
from posttrain.data.rows.identity import content_digest
from posttrain.data.sources.adapters import Adapter
from posttrain.data.sources.adapters_unpaired import one_side
from posttrain.data.sources.columns import is_content
from posttrain.data.sources.hermes import read_marked_text
from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values, any_text, checked_text, given, show
from posttrain.data.sources.settings import settle
from posttrain.data.sources.turns import is_silent, says
from posttrain.stage.errors import UsageError, did_you_mean


class RecordMaker:
    """Makes the records of one source, and counts what it leaves out of rows that it keeps."""

    def __init__(
        self,
        adapter: Adapter,
        record_type: RecordType,
        source: str,
        defaults: dict[str, str],
        scorer: str | None,
        own_ids: bool = True,
    ) -> None:
        self.adapter = adapter
        self.record_type: RecordType = record_type
        self.source = source
        self.defaults = defaults
        """License, language and task of rows that do not name their own."""
        self.scorer = scorer
        self.own_ids = own_ids
        self.ignored_columns: Counter[str] = Counter()
        self.ignored_content: Counter[str] = Counter()
        """Those of the ignored columns that look as if they held what a model should learn."""
        self.read_from_text = 0
        """Rows whose tools and calls stood as marked text."""
        self.responses_removed: Counter[str] = Counter()
        self._convert = adapter.converter(record_type)
        self._model = RECORD_TYPES[record_type]

    def make(self, unit: Row | BadRow) -> Record | Drop:
        """Return the record of a row, or why it is dropped. Raises RowError for a malformed row."""
        if isinstance(unit, BadRow):
            raise RowError(unit.reason)
        if self.adapter.whole_rows:
            self.adapter.check(unit.values)
            ignored = self.adapter.ignored(unit.values, self.record_type)
            self.ignored_columns.update(ignored.keys())
            self.ignored_content.update(name for name, value in ignored.items() if is_content(name, value))
        payload = self._convert(unit.values)
        if isinstance(payload, Drop):
            return payload
        if self.adapter.whole_rows:
            payload, was_text = read_marked_text(settle(unit.values, payload, self.record_type))
            self.read_from_text += was_text
        if self.record_type in ("comparison", "unpaired") and "ranks" in payload:
            group = clean_group(payload)
            if isinstance(group, Drop):
                return group
            payload, removed = group
            if self.record_type == "unpaired":
                payload = one_side(payload, unit.values)
            else:
                self.responses_removed.update(removed)
        return self._validated(payload | self._provenance(unit.values, payload))

    def _provenance(self, row: Values, payload: Payload) -> Payload:
        names = ["annotator"] if self.record_type == "comparison" else []
        own = {name: row[name] for name in ("license", "language", "task", *names) if given(row, name) is not None}
        for name, value in own.items():
            if isinstance(value, str):
                any_text(value, name)
        found = {"source": self.source, **self.defaults, **_only(payload, "language"), **own}
        if self.record_type == "evaluation":
            found["scorer"] = self._scorer(row, payload)
        found["id"] = f"{self.source}/{(self.own_ids and own_id(row)) or ''}"
        return found

    def _scorer(self, row: Values, payload: Payload) -> str:
        name = str(given(row, "scorer") or self.scorer or payload.get("scorer", "exact"))
        if name not in SCORERS:
            raise RowError(f"scorer {name!r}: must be one of {', '.join(SCORERS)}{did_you_mean(name, SCORERS)}")
        try:
            check_reference(name, str(payload.get("reference")))
        except UsageError as error:
            raise RowError(str(error)) from None
        return name

    def _validated(self, fields: Payload) -> Record:
        try:
            record = self._model.model_validate(fields)
        except ValidationError as error:
            raise RowError(explain(error)) from None
        if record.id == f"{self.source}/":
            record.id += content_digest(record)
        return record


def own_id(row: Values) -> str | None:
    """Return the id that a row brings, if any. Raises RowError when it is neither a text nor a whole number."""
    value = given(row, "id")
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():  # what pandas makes of whole numbers beside an empty cell
        value = int(value)
    return str(value) if type(value) is int else checked_text(value, "id")


def clean_group(payload: Payload) -> tuple[Payload, Counter[str]] | Drop:
    """Return a comparison without empty and repeated responses, and how many of either were removed.

    Of a repeated response the first stays, with the best of its ranks; responses are equal when they are as a whole,
    in NFC, but for surrounding space and the ids of calls. The group drops when fewer than two responses are left, or
    when all ranks are equal.
    """
    responses, given = payload["responses"], payload["ranks"]
    for name in ("ranks", "ended"):
        if name in payload and len(payload[name]) != len(responses):
            raise RowError(f"{len(responses)} responses but {len(payload[name])} {name}; give one each")
    places: dict[tuple[str, ...], int] = {}
    best: dict[tuple[str, ...], int] = {}
    removed: Counter[str] = Counter()
    for place, (response, rank) in enumerate(zip(responses, given, strict=True)):
        if is_silent(response):
            removed["empty"] += 1
            continue
        text = says(response)
        removed["repeated"] += text in places
        places.setdefault(text, place)
        best[text] = min(best.get(text, rank), rank)
    if len(best) < 2:
        return Drop("identical_responses" if removed["repeated"] else "empty_response")
    if len(set(best.values())) == 1:
        return Drop("all_tied")
    kept = {
        name: [payload[name][place] for place in places.values()] for name in ("responses", "ended") if name in payload
    }
    return payload | kept | {"ranks": list(best.values())}, +removed


def explain(error: ValidationError) -> str:
    """Return the first fault of a record in one phrase: place in the record, value, requirement."""
    fault = error.errors(include_url=False)[0]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]).lstrip(".")
    message = fault["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{where} {show(fault['input'])}: {message}" if where else message


def _only(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values[name] for name in names if name in values}
