"""Which language a row is in, found offline; texts too short or too mixed to tell are left as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any

from posttrain.data.config.steps import LanguageConfig
from posttrain.data.records import EvaluationItem, Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.data.steps.texts import texts_of

UNKNOWN = "und"
_LOOKED_AT = 600
"""Characters of a text that are looked at."""
_NO_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>]{1,200}>|\S+@\S+", re.DOTALL)
_ASKS_FOR_ANOTHER = re.compile(
    r"translat|tradu[cz]|traducción|übersetz|перев[оеё]д|翻訳|翻译|번역|अनुवाद|แปล"
    r"|\b(?:in|into|to|from|auf|en|em|på|ins|na) (?:\w+ )?"
    r"(?:english|french|german|spanish|italian|portuguese|dutch|russian|finnish"
    r"|swedish|polish|turkish|arabic|hindi|chinese|mandarin|japanese|korean|thai|vietnamese|indonesian|greek|hebrew|latin"
    r"|deutsch|englisch|französisch|español|inglés|francés|anglais|français|allemand|inglês|português|svenska)\b",
    re.IGNORECASE,
)


def language(records: Sequence[Record], knobs: LanguageConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: what is unknown gets its language, where that is clear.

    A row drops where its language is not among those to keep, and drops or is noted where prompt and answer differ.
    """
    batches = around.workers.each_batch(partial(_fates, knobs=knobs), records)
    facts: dict[str, Any] = {"languages": {}}
    return StepResult(_counted((fate for batch in batches for fate in batch), facts), facts)


def _counted(fates: Iterable[Fate], facts: dict[str, Any]) -> Iterator[Fate]:
    kept: Counter[str] = Counter()
    for fate in fates:
        if fate.record is not None:
            kept[fate.record.language] += 1
        yield fate
    facts["languages"] = dict(kept.most_common())


def _fates(records: Sequence[Record], knobs: LanguageConfig) -> list[Fate]:
    return [_fate(record, knobs) for record in records]


def _fate(record: Record, knobs: LanguageConfig) -> Fate:
    if isinstance(record, EvaluationItem):
        return Fate(record)
    texts = texts_of(record)
    tell = partial(identified, least_letters=knobs.least_letters, least_probability=knobs.least_probability)
    asked, answered = tell(texts.prompt), tell("\n".join(texts.answers))
    whole = answered or asked or tell(texts.whole())
    findings = []
    made = None
    if record.language == UNKNOWN and whole:
        made = record.model_copy(update={"language": whole})
        findings.append(Finding("language_identified", {"language": whole}))
    elif whole and _primary(record.language) != whole:
        findings.append(Finding("language_differs", {"language": whole, "declared": record.language}))
    told = (made or record).language
    if knobs.keep and told != UNKNOWN and _primary(told) not in map(_primary, knobs.keep):
        return Fate(record, (Finding("language_not_kept", {"language": told}),), drops=True)
    if asked and answered and asked != answered and _ASKS_FOR_ANOTHER.search(texts.prompt) is None:
        mismatch = Finding("language_mismatch", {"prompt": asked, "answer": answered})
        if knobs.on_mismatch == "drop":
            return Fate(record, (mismatch,), drops=True)
        findings.append(mismatch)
    return Fate(record, tuple(findings), changed=made)


def _primary(tag: str) -> str:
    return tag.split("-")[0].lower()


def identified(text: str, least_letters: int, least_probability: float) -> str | None:
    """Return the ISO 639-1 code of a text's language, or None where it is too short or could be several."""
    prose = _NO_LANGUAGE.sub(" ", text[: 2 * _LOOKED_AT])[:_LOOKED_AT]
    if sum(map(str.isalpha, prose)) < least_letters:
        return None
    code, probability = _identifier().classify(prose)
    return code if probability >= least_probability and code != UNKNOWN else None


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # reads its model when first asked

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
