"""Comparisons on which their annotators disagree."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from posttrain.data.config.steps import AgreementConfig
from posttrain.data.records import Comparison, Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.data.steps.judgements import Judgement, agreement, by_unit, judgements_of, krippendorff_alpha


def annotators_agree(records: Sequence[Record], knobs: AgreementConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: those of a prompt drop on which its annotators agree less than is wanted.

    A prompt's agreement is the mean over the pairs of responses that several of them judged; a prompt without such
    pairs stays, as does whatever is no comparison.
    """
    units = by_unit(one for record in records for one in _said(record))
    several = {unit: own for unit, own in units.items() if len({one.annotator for one in own}) > 1}
    by_prompt: dict[bytes, list[list[Judgement]]] = {}
    for (prompt, _), own in several.items():
        by_prompt.setdefault(prompt, []).append(own)
    agreed = {prompt: fmean(agreement(_values(own)) for own in found) for prompt, found in by_prompt.items()}

    def fate(record: Record) -> Fate:
        own = _said(record)
        share = agreed.get(own[0].prompt, 1.0) if own else 1.0
        if share >= knobs.least:
            return Fate(record)
        annotators = {one.annotator for found in by_prompt[own[0].prompt] for one in found}
        facts = {"agreement": round(share, 4), "least": knobs.least, "annotators": len(annotators)}
        return Fate(record, (Finding("annotators_disagree", facts),), drops=True)

    facts = {"pairs": len(units), "judged_by_several": len(several), "alpha": _alpha(several)}
    return StepResult(map(fate, records), facts)


def _said(record: Record) -> list[Judgement]:
    return list(judgements_of(record)) if isinstance(record, Comparison) else []


def _values(judgements: Sequence[Judgement]) -> list[int]:
    return [one.value for one in judgements]


def _alpha(units: dict[tuple[bytes, tuple[bytes, bytes]], list[Judgement]]) -> float | None:
    """Return alpha over units seen from both sides, so that it does not matter which response is called the first."""
    values = [_values(own) for own in units.values()]
    found = krippendorff_alpha([*values, *([-value for value in own] for own in values)])
    return None if found is None else round(found, 4)
