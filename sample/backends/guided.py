"""Structured output of a vLLM server: told what a response must be, it holds to that with a grammar engine of its own.

| server | field of a request |
|---|---|
| vLLM 0.11 and later | ``structured_outputs``: ``json``, ``regex``, ``choice`` or ``grammar`` |
| before | ``guided_json``, ``guided_regex``, ``guided_choice`` or ``guided_grammar`` |

A server passes over the other one without a word, and engines differ in what of a schema they enforce; so what came is
checked here, and what does not hold is told.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.ladder import read_document
from posttrain.stage.errors import UsageError

Structure = tuple[str, str | Mapping[str, Any]]
"""Kind and value of what a response must be, as `posttrain.sample.structured.named.read_constraint` reads them."""
RENAMED = (0, 11)
"""The version of vLLM from which its fields have their present names."""
_FIELDS = {"schema": "json", "regex": "regex", "choices": "choice", "grammar": "grammar"}

log = logging.getLogger(__name__)


class TakesStructures(Protocol):
    """A sampler of a server that can be told what responses must be."""

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams],
        *,
        structure: Structure | None = None,
        accept: Accept | None = None,
    ) -> list[list[Sample]]:
        """Return the samples of each prompt."""
        ...


def guided_fields(structure: Structure, version: str) -> dict[str, Any]:
    """Return the fields of a request that hold its response to a structure.

    ``version`` is the server's; one that does not say, an empty text, is taken for a present one. Raises UsageError for
    a grammar that only our own engine ships.
    """
    kind, value = structure
    if kind == "grammar" and "\n" not in str(value):
        raise UsageError(f"grammar {value}: ships with our own engine; give a server the text of a grammar")
    content = [choice.strip() for choice in str(value).split(",")] if kind == "choices" else value
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < RENAMED:
        return {f"guided_{_FIELDS[kind]}": content}
    return {"structured_outputs": {_FIELDS[kind]: content}}


class Guided:
    """A server whose responses are all held to one structure."""

    def __init__(self, server: TakesStructures, structure: Structure) -> None:
        self._server, self._structure = server, structure

    def generate(
        self, prompts: Prompts, params: SamplingParams | Sequence[SamplingParams], *, accept: Accept | None = None
    ) -> list[list[Sample]]:
        """Return the samples of each prompt; a warning counts those that ended as something else."""
        samples = self._server.generate(prompts, params, structure=self._structure, accept=accept)
        ended = [sample for own in samples for sample in own if sample.ended]
        if wrong := sum(not keeps(self._structure, sample.text) for sample in ended):
            log.warning(
                "%d of %d responses that ended are not of the %s that was asked for: the server passes over it, or "
                "over a part; check them, or sample without a server",
                wrong,
                len(ended),
                self._structure[0],
            )
        return samples


def keeps(structure: Structure, text: str) -> bool:
    """Return whether a text is of a structure; of a grammar that is not checked."""
    kind, value = structure
    if not isinstance(value, str):
        return read_document(text, Validator(value)).valid
    if kind == "choices":
        return text in [choice.strip() for choice in value.split(",")]
    return kind != "regex" or re.fullmatch(value, text) is not None
