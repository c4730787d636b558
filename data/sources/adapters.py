"""Adapters by name, how they are recognised, and what they make.

An adapter maps one row to the payload of a record. `detect` chooses by the columns of the first row; a source can name
its adapter instead. Some columns mean the same in every shape (`posttrain.data.sources.settings`). All others that the
adapter does not read are left out, and the curation says which and how often: published datasets carry many (labels,
scores, annotator ids), and refusing them would only make people strip files.

| adapter             | columns                                      | makes                        |
|---------------------|----------------------------------------------|------------------------------|
| `oasst`             | message_id, parent_id, role, text            | demonstrations, comparisons  |
| `oasst_ranked`      | messages, ranked [, ranks, lang]             | comparisons                  |
| `ranked`            | prompt, responses, ranks [, ended]           | comparisons                  |
| `scores`            | prompt, responses, scores                    | comparisons                  |
| `scored`            | completions, prompt or instruction           | comparisons                  |
| `verdicts`          | prompt, outputs [, lang]                     | comparisons                  |
| `hh`                | chosen, rejected (transcripts)               | comparisons                  |
| `best_of`           | prompt, chosen, rejected (lists of texts)    | comparisons                  |
| `preference`        | chosen, rejected [, prompt]                  | comparisons                  |
| `unpaired`          | prompt, completion, label [, ended]          | unpaired preferences         |
| `unpaired_messages` | messages, label                              | unpaired preferences         |
| `evaluation`        | prompt, reference [, scorer, ideal, group]   | evaluation items             |
| `threads`           | question, answers (objects with scores)      | demonstrations, comparisons  |
| `question_answer`   | question, answer                             | demonstrations, evaluation   |
| `messages`          | messages                                     | demonstrations               |
| `sharegpt`          | conversations                                | demonstrations               |
| `alpaca`            | instruction, output [, input]                | demonstrations               |
| `prompt_completion` | prompt, completion                           | demonstrations               |
| `text`              | text                                         | demonstrations               |
| `code`              | code (a file of Python)                      | demonstrations               |
| `page`              | page (HTML or text) [, url, media]           | demonstrations               |
| `prompt`            | prompt [, reference]                         | prompts                      |

Every adapter but `text` also makes prompt records, by leaving the answers out. What makes comparisons also makes
unpaired preferences, two of each: the best response is desirable, the worst is not. Any row may carry id, license,
language and task; rows of comparisons may carry annotator, and pairs score_chosen and score_rejected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.data.config.curate import RecordType
from posttrain.data.sources import adapters_code as code
from posttrain.data.sources import adapters_comparisons as comparisons
from posttrain.data.sources import adapters_demonstrations as demonstrations
from posttrain.data.sources import adapters_scored as scored
from posttrain.data.sources import adapters_sharegpt, settings
from posttrain.data.sources import adapters_threads as threads
from posttrain.data.sources import adapters_trees as trees
from posttrain.data.sources import adapters_unpaired as unpaired
from posttrain.data.sources.near_misses import cost, phrase, renames
from posttrain.data.sources.readers import BadRow, Row
from posttrain.data.sources.row_values import Drop, Payload, RowError, Values
from posttrain.data.sources.web import dialogues
from posttrain.stage.errors import UsageError

PROVENANCE = ("id", "license", "language", "task")
"""Columns of any row that win over what the source says."""

SCORES = frozenset({"score_chosen", "score_rejected"})
"""Columns of comparisons that are read for the accounting alone: where they contradict the row, it is counted."""

Convert = Callable[[Values], Payload | Drop]
Expand = Callable[[Iterable[Row | BadRow]], Iterator[Row | BadRow]]


@dataclass(frozen=True)
class Adapter:
    """One shape of rows: its columns, and a function per record type that it can make."""

    name: str
    columns: frozenset[str]
    makes: dict[RecordType, Convert]
    optional: frozenset[str] = frozenset()
    fits: Callable[[Values], bool] = lambda values: True
    """A further condition on the first row, where columns do not tell shapes apart."""
    unread: Callable[[Values], Values] = lambda row: {}
    """What nobody reads within the columns of a row, by a name that says where it stands."""
    expand: dict[RecordType, Expand] = field(default_factory=dict)
    """Turns the file's rows into the units to convert, for shapes that spread a record over rows."""
    whole_rows: bool = True
    """Whether a unit has the columns of a row of the file."""

    def converter(self, record_type: RecordType) -> Convert:
        """Return the function that makes records of a type.

        Raises UsageError when the shape does not hold what the type needs.
        """
        if record_type in self.makes:
            return self.makes[record_type]
        if record_type == "prompt" and self.name != "text":
            return _prompts_of(next(iter(self.makes.values())))
        raise UsageError(
            f"adapter {self.name!r} makes {' or '.join(self.makes)} records, not {record_type} records; "
            "change record_type or leave the source out"
        )

    def units(self, rows: Iterable[Row | BadRow], record_type: RecordType) -> Iterator[Row | BadRow]:
        """Yield the rows to convert, which are the file's own for all shapes but trees."""
        made = record_type if record_type in self.makes else next(iter(self.makes))
        return self.expand.get(made, iter)(rows)

    def check(self, row: Values) -> None:
        """Raise RowError when the file's row lacks a column; the first row had them all, others may not."""
        for name in self.columns:
            if name not in row:
                found = renames([name], row, {*self.columns, *self.optional, *PROVENANCE})
                hint = f"; {phrase(found)}" if found else ""
                raise RowError(f"no column {name!r}{hint}; adapter {self.name!r} needs {self.needs}")

    @property
    def needs(self) -> str:
        """The required columns as a phrase."""
        return ", ".join(sorted(self.columns))

    def ignored(self, row: Values, record_type: RecordType) -> dict[str, Any]:
        """Return what nobody reads of a unit: its columns, and what stands within those that are read."""
        read = self.columns | self.optional | set(PROVENANCE) | settings.settings_of(record_type)
        read |= {"comparison": {"annotator"}, "unpaired": {unpaired.LABEL}}.get(record_type, set())
        return {name: value for name, value in row.items() if name not in read} | dict(self.unread(row))


def _prompts_of(convert: Convert) -> Convert:
    def prompts(row: Values) -> Payload | Drop:
        made = convert(row)
        if isinstance(made, Drop):
            return made
        return {name: value for name, value in made.items() if name in ("prompt", "reference", "language")}

    return prompts


def _columns(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ALL = (
    Adapter(
        "oasst",
        _columns("message_id parent_id role text"),
        {"demonstration": trees.demonstration, "comparison": trees.comparison},
        expand={"demonstration": trees.answers, "comparison": trees.ranked_groups},
        whole_rows=False,
    ),
    Adapter(
        "oasst_ranked", _columns("messages ranked"), {"comparison": comparisons.oasst_ranked}, _columns("ranks lang")
    ),
    Adapter("ranked", _columns("prompt responses ranks"), {"comparison": comparisons.ranked}, _columns("ended")),
    Adapter("scores", _columns("prompt responses scores"), {"comparison": scored.scored_lists}),
    Adapter(
        "scored",
        _columns("completions"),
        {"comparison": scored.scored_objects},
        _columns("prompt instruction"),
        fits=scored.has_objects,
        unread=scored.unread_keys,
    ),
    Adapter("verdicts", _columns("prompt outputs"), {"comparison": comparisons.verdicts}, _columns("lang")),
    Adapter(
        "hh",
        _columns("chosen rejected"),
        {"comparison": comparisons.hh},
        SCORES,
        fits=lambda row: row.get("prompt") is None and isinstance(row["chosen"], str),
    ),
    Adapter(
        "best_of",
        _columns("prompt chosen rejected"),
        {"comparison": comparisons.best_of},
        fits=comparisons.has_several,
    ),
    Adapter(
        "preference",
        _columns("chosen rejected"),
        {"comparison": comparisons.preference},
        SCORES | {"prompt"},
    ),
    Adapter("unpaired", _columns("prompt completion label"), {"unpaired": unpaired.unpaired}, _columns("ended")),
    Adapter("unpaired_messages", _columns("messages label"), {"unpaired": unpaired.unpaired_messages}),
    Adapter(
        "evaluation",
        _columns("prompt reference"),
        {"evaluation": demonstrations.evaluation},
        _columns("scorer ideal group"),
    ),
    Adapter(
        "threads",
        _columns("question answers"),
        {"demonstration": threads.demonstration, "comparison": threads.comparison},
        fits=threads.has_answers,
    ),
    Adapter(
        "question_answer",
        _columns("question answer"),
        {"evaluation": demonstrations.question_item, "demonstration": demonstrations.question_answer},
    ),
    Adapter("messages", _columns("messages"), {"demonstration": demonstrations.messages_row}),
    Adapter("sharegpt", _columns("conversations"), {"demonstration": adapters_sharegpt.sharegpt}),
    Adapter("alpaca", _columns("instruction output"), {"demonstration": demonstrations.alpaca}, _columns("input")),
    Adapter("prompt_completion", _columns("prompt completion"), {"demonstration": demonstrations.prompt_completion}),
    Adapter("text", _columns("text"), {"demonstration": demonstrations.plain_text}),
    Adapter(
        "code",
        _columns("code"),
        {"demonstration": code.demonstration},
        fits=code.asks_nothing,
        expand={"demonstration": code.functions},
        whole_rows=False,
    ),
    Adapter(
        "page",
        _columns("page"),
        {"demonstration": dialogues.demonstration},
        _columns("url date status media unread"),
        expand={"demonstration": dialogues.units},
        whole_rows=False,
    ),
    Adapter("prompt", _columns("prompt"), {"prompt": demonstrations.bare_prompt}, _columns("reference")),
)


def _with_unpaired(adapter: Adapter) -> Adapter:
    """Return an adapter that, where it makes comparisons, makes an unpaired preference of either side as well."""
    if "comparison" not in adapter.makes:
        return adapter
    groups = adapter.expand.get("comparison", iter)
    makes: dict[RecordType, Convert] = {**adapter.makes, "unpaired": adapter.makes["comparison"]}
    expand: dict[RecordType, Expand] = {**adapter.expand, "unpaired": lambda rows: unpaired.both_sides(groups(rows))}
    return replace(adapter, makes=makes, expand=expand)


ADAPTERS: dict[str, Adapter] = {adapter.name: _with_unpaired(adapter) for adapter in _ALL}
"""In the order in which `detect` tries them: the shape with the most telling columns first."""


def known_columns() -> set[str]:
    """Return every column that some adapter reads."""
    named = [adapter.columns | adapter.optional for adapter in ADAPTERS.values()]
    return {*PROVENANCE, "annotator", "label", *settings.settings_of("comparison")}.union(*named)


def _nearest(row: Values, record_type: RecordType) -> str:
    """Return the fewest renamings after which an adapter would make records of the type, as a fix; maybe none."""
    makers = [adapter for adapter in ADAPTERS.values() if record_type in adapter.makes]
    fixes = [
        found
        for adapter in makers
        if (found := renames(adapter.columns, row, PROVENANCE))
        and adapter.fits({found.get(name, name): value for name, value in row.items()})
    ]
    return phrase(min(fixes, key=cost)) if fixes else ""


def detect(row: Values, record_type: RecordType) -> Adapter:
    """Return the first adapter that fits the columns of a row and makes the record type.

    Raises UsageError when none fits, or those that fit make other records; it names the renaming that would mend it.
    """
    fitting = [adapter for adapter in ADAPTERS.values() if adapter.columns <= row.keys() and adapter.fits(row)]
    for adapter in fitting:
        if record_type in adapter.makes or (record_type == "prompt" and adapter.name != "text"):
            return adapter
    # Two columns by their right names are a shape, of which the record type is wrong; one may be a chance.
    nearest = "" if any(len(adapter.columns) > 1 for adapter in fitting) else _nearest(row, record_type)
    if nearest:
        raise UsageError(f"columns {', '.join(sorted(row))} make no {record_type} records; {nearest}")
    if fitting:
        fitting[0].converter(record_type)
    shapes = "; ".join(f"{adapter.name}: {adapter.needs}" for adapter in ADAPTERS.values())
    raise UsageError(
        f"columns {', '.join(sorted(row))} fit no adapter; rename them to those of one of ({shapes}), "
        "or name the adapter if only this row is wrong"
    )
