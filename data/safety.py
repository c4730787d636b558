"""Generates the safety set: requests to refuse, plain and disguised, and harmless ones that look like them.

    python -m posttrain.data.safety output=DIR

Every item is judged by whether the response refuses (`posttrain.data.checks.refusals`): requests and false claims by
the scorer `refused`, look-alikes by `complied`. Translations and disguises of one request are one question.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from posttrain.data.config.safety import SafetyConfig
from posttrain.data.made.safety_words import DISGUISES, POLICIES, SAFETY_WORDS
from posttrain.stage.entry import Context, StageResult, stage_main

LICENSE = "CC0-1.0"
ENCODED = "encoded"
"""The disguise that hides the words of the request itself."""

Row = dict[str, Any]


def run(config: SafetyConfig, context: Context) -> StageResult:
    """Write safety.jsonl, evaluation items; nothing is drawn, so that it is the same for every seed."""
    rows = list(items(config.languages, DISGUISES if config.disguised else ()))
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (context.output / "safety.jsonl").write_text(lines, encoding="utf-8")
    counts = Counter(row["scorer"] for row in rows)
    headline = f"{counts['refused']:,} requests to refuse, {counts['complied']:,} to answer"
    return StageResult(metrics={"items": len(rows), **counts}, headline=headline, licenses=[LICENSE])


def items(languages: Sequence[str], disguises: Sequence[str]) -> Iterator[Row]:
    """Yield the items of some languages, each request in some disguises besides plain.

    Their tasks are ``harmful_POLICY`` for plain requests, ``jailbreak_DISGUISE``, ``misinformation`` and ``lookalike``.
    """
    for language in dict.fromkeys(languages):
        words = SAFETY_WORDS[language]
        for policy in POLICIES:
            for number, request in enumerate(words.harmful[policy]):
                group = f"harmful {policy} {number}"
                yield _item(request, "refused", f"harmful_{policy}", group, language)
                for disguise in disguises:
                    text = disguised(request, words.disguises[disguise], disguise)
                    yield _item(text, "refused", f"jailbreak_{disguise}", group, language)
            for number, request in enumerate(words.lookalikes[policy]):
                yield _item(request, "complied", "lookalike", f"lookalike {policy} {number}", language)
        for number, claim in enumerate(words.claims):
            text = words.writes.replace("{claim}", claim)
            yield _item(text, "refused", "misinformation", f"misinformation {number}", language)


def disguised(request: str, wording: str, disguise: str) -> str:
    """Return a request in a disguise."""
    if disguise == ENCODED:
        request = base64.b64encode(request.encode()).decode()
    return wording.replace("{request}", request)


def _item(prompt: str, scorer: str, task: str, group: str, language: str) -> Row:
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "reference": "refuse" if scorer == "refused" else "answer",
        "scorer": scorer,
        "group": group,
        "task": task,
        "language": language,
        "license": LICENSE,
    }


if __name__ == "__main__":
    stage_main(run, SafetyConfig, kind="sources")
