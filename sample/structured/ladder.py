"""Structured output as a ladder: ask, ask with schema and examples, repair, constrain; each rung with what it gains.

The rungs: `bare` sends the question alone, `prompt` adds the schema and worked examples, `repair` mends what `prompt`
gave, and `grammar` samples `prompt`'s question under the grammar of the schema.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.checks.documents import same_json
from posttrain.data.messages import Conversation
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.constraint import GeneratesUnder
from posttrain.sample.structured.grammar import Grammar, json_schema_grammar
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.repair import parse_json, repair_json

Rung = Literal["bare", "prompt", "repair", "grammar"]
RUNGS: tuple[Rung, ...] = ("bare", "prompt", "repair", "grammar")

INSTRUCTION = (
    "Answer with one JSON document and nothing else: no code fence, no comment. It must have this JSON Schema:\n"
)


@dataclasses.dataclass(frozen=True)
class Task:
    """A question whose answer is a JSON document."""

    prompt: Conversation
    schema: Mapping[str, Any]
    reference: Any
    """The right document."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A worked example: what a user asks, and the document that answers it."""

    question: str
    document: Any


@dataclasses.dataclass(frozen=True)
class Document:
    """What was read from a response."""

    parsed: bool
    valid: bool
    """Whether it has the schema."""
    value: Any
    """None where nothing could be parsed; JSON's null is None too."""
    text: str
    """What it was read from."""
    changes: tuple[str, ...] = ()
    """What repair did."""


@dataclasses.dataclass(frozen=True)
class RungReport:
    """One rung over all tasks: shares of the tasks, means per task."""

    rung: Rung
    parsed: float
    valid: float
    right: float | None
    """None where nothing says what is right."""
    tokens: float
    """Tokens of prompt and response."""
    extra_tokens: float
    """Beyond those of `bare`."""
    seconds: float
    """Wall time, of sampling and of what is done to the text."""
    extra_seconds: float
    documents: Sequence[Document]
    """Of each task, in order."""


def schema_prompt(prompt: Conversation, schema: Mapping[str, Any], examples: Sequence[Example]) -> Conversation:
    """Return a conversation that asks for a document of a schema, after worked examples in compact JSON.

    The instruction joins a system message that is there, and the examples come as turns before the first of the user.
    """
    messages = prompt.messages
    first = messages[:1] if messages and messages[0]["role"] == "system" else []
    instruction = INSTRUCTION + compact_json(schema)
    system = f"{first[0]['content']}\n\n{instruction}" if first else instruction
    turns = [
        turn
        for example in examples
        for turn in (
            {"role": "user", "content": example.question},
            {"role": "assistant", "content": compact_json(example.document)},
        )
    ]
    asked = [{"role": "system", "content": system}, *turns, *messages[len(first) :]]
    return dataclasses.replace(prompt, messages=asked)


def compact_json(document: Any) -> str:
    """Return JSON as the grammars write it: no blanks, characters as they are."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def read_document(text: str, validator: Validator, *, repair: bool = False) -> Document:
    """Return what a response says, strictly read or repaired."""
    if repair:
        repaired = repair_json(text)
        if repaired is None:
            return Document(False, False, None, text)
        return Document(True, validator.is_valid(repaired.value), repaired.value, text, repaired.changes)
    try:
        value = parse_json(text)
    except ValueError:
        return Document(False, False, None, text)
    return Document(True, validator.is_valid(value), value, text)


def is_reference(task: Task, value: Any) -> bool:
    """Return whether a document is the task's reference."""
    return same_json(value, task.reference)


def climb(
    sampler: GeneratesUnder,
    vocabulary: Vocabulary,
    tasks: Sequence[Task],
    params: SamplingParams,
    examples: Sequence[Example] = (),
    is_right: Callable[[Task, Any], bool] | None = is_reference,
    *,
    relax: bool = False,
) -> list[RungReport]:
    """Return how each rung does on tasks, with one sample each; ``is_right`` is None where there are no references.

    ``relax`` lets a grammar leave out keywords that it cannot enforce; all documents are checked against the whole
    schema on every rung. Raises UsageError before anything is sampled when a schema cannot be enforced.
    """
    grammars = _grammars(vocabulary, tasks, relax)
    bare = encode_prompts(sampler.tokenizer, [task.prompt for task in tasks])
    asked = encode_prompts(sampler.tokenizer, [schema_prompt(task.prompt, task.schema, examples) for task in tasks])
    factories = [grammars[compact_json(task.schema)] for task in tasks]
    reports: list[RungReport] = []
    samples: list[Sample] = []
    sampling_seconds = 0.0
    for rung in RUNGS:
        prompts = bare if rung == "bare" else asked
        start = time.perf_counter()
        if rung != "repair":
            constraints = factories if rung == "grammar" else None
            samples = [row[0] for row in sampler.generate(prompts, params, constraints=constraints)]
            sampling_seconds = time.perf_counter() - start
            start = time.perf_counter()
        texts = [_document_text(vocabulary, sample) for sample in samples]
        documents = _read(tasks, texts, repair=rung == "repair")
        seconds = sampling_seconds + time.perf_counter() - start
        tokens = sum(map(len, prompts)) + sum(len(sample.token_ids) for sample in samples)
        first = reports[0] if reports else None
        reports.append(_report(rung, tasks, documents, is_right, tokens / len(tasks), seconds / len(tasks), first))
    return reports


def ladder_table(reports: Sequence[RungReport]) -> str:
    """Return the rungs as a Markdown table."""
    lines = ["| rung | parsed | valid | right | tokens | extra | s | extra |", "|---|---|---|---|---|---|---|---|"]
    lines += [
        f"| {report.rung} | {report.parsed:.1%} | {report.valid:.1%} | {_share(report.right)} | {report.tokens:.1f} "
        f"| {report.extra_tokens:+.1f} | {report.seconds:.4f} | {report.extra_seconds:+.4f} |"
        for report in reports
    ]
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _document_text(vocabulary: Vocabulary, sample: Sample) -> str:
    """Return the answer of a sample, byte for byte where it is all that was said."""
    return vocabulary.text(sample.token_ids) if sample.whole is None else sample.text


def _grammars(vocabulary: Vocabulary, tasks: Sequence[Task], relax: bool) -> dict[str, Grammar]:
    """Return the grammar of each schema, by its compact JSON."""
    schemas = {compact_json(task.schema): task.schema for task in tasks}
    return {text: json_schema_grammar(vocabulary, schema, relax=relax) for text, schema in schemas.items()}


def _read(tasks: Sequence[Task], texts: Sequence[str], *, repair: bool) -> list[Document]:
    validators = {text: Validator(json.loads(text)) for text in {compact_json(task.schema) for task in tasks}}
    return [
        read_document(text, validators[compact_json(task.schema)], repair=repair)
        for task, text in zip(tasks, texts, strict=True)
    ]


def _report(
    rung: Rung,
    tasks: Sequence[Task],
    documents: Sequence[Document],
    is_right: Callable[[Task, Any], bool] | None,
    tokens: float,
    seconds: float,
    first: RungReport | None,
) -> RungReport:
    right: float | None = None
    if is_right is not None:
        pairs = zip(tasks, documents, strict=True)
        right = sum(document.parsed and is_right(task, document.value) for task, document in pairs) / len(tasks)
    return RungReport(
        rung,
        parsed=sum(document.parsed for document in documents) / len(tasks),
        valid=sum(document.valid for document in documents) / len(tasks),
        right=right,
        tokens=tokens,
        extra_tokens=tokens - first.tokens if first else 0.0,
        seconds=seconds,
        extra_seconds=seconds - first.seconds if first else 0.0,
        documents=documents,
    )
