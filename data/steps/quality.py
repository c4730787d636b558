"""Rules on the form of rows, each with a value and a limit, after Gopher, C4, FineWeb and open-instruct.

What holds for web pages does not hold for answers: a right answer may be one number, a list or a programme. So the
rules on running text look at texts of `LONG` words and more, and leave out what stands in code fences.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from posttrain.data.config.steps import QualityConfig
from posttrain.data.messages import Message
from posttrain.data.records import Demonstration, EvaluationItem, Record
from posttrain.data.steps.fates import Fate, Finding, StepResult, Surroundings
from posttrain.data.steps.repetition import LIMITS, most_frequent_run, repeated_lines, repeated_runs
from posttrain.data.steps.texts import texts_of, turns_of
from posttrain.data.steps.words import words

LONG = 50
"""Words from which on a text is running text."""
PAGE = 200
"""Words from which on the limits on the most frequent runs hold: in short texts a subject repeats for good reason."""
_REFUSAL_WORDS = 60
"""Words of an answer that is nothing but a refusal, at most."""

_CONTROL = re.compile(
    r"<\|[A-Za-z][A-Za-z0-9_]*\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_(?:turn|image|text|role)>"
    r"|<｜[^｜<>]{1,40}｜>|\[(?:SYSTEM|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)[^\]]{0,8}\]|<unk>|<pad>|<bos>|<eos>"
)
_REFUSAL = re.compile(
    r"\W*(?:(?:i['’]?m|i am)(?: very| really)? (?:sorry|afraid)\b.{0,60}?"
    r"\b(?:can(?:no|['’])t|can not|unable|not able|won['’]t)"
    r"|sorry,? (?:but )?i (?:can(?:no|['’])t|can not|am unable|am not able)"
    r"|i (?:can(?:no|['’])t|can not|am unable to|am not able to|won['’]t)(?: \w+){0,2}"
    r" (?:assist|help|fulfil|provide|comply|answer)"
    r"|as an? (?:ai|artificial intelligence|language model|large language model)\b"
    r"|i apologi[sz]e, (?:but )?i (?:can|am))",
    re.IGNORECASE | re.DOTALL,
)
_GARBLED = re.compile(r"\ufffd|\x00|[\ue000-\uf8ff]|Ã[\x80-\xbf©¨¤¶¼®]|â€[™œ\x9d“”˜¢¦]|ï»¿")
_SYMBOLS = re.compile(r"…|\.\.\.|(?<!#)(?<!^)#", re.MULTILINE)
"""Ellipses and hashes, headings apart."""
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_PAGE = re.compile(r"lorem ipsum|please enable javascript|enable cookies|terms of (?:use|service) apply", re.IGNORECASE)

Rule = Callable[[Record, QualityConfig], Finding | None]


def quality(records: Sequence[Record], knobs: QualityConfig, around: Surroundings) -> StepResult:
    """Return what becomes of each row: the first rule that it breaks takes it out; evaluation items are left alone."""
    batches = around.workers.each_batch(partial(_fates, knobs=knobs), records)
    return StepResult(fate for batch in batches for fate in batch)


def _fates(records: Sequence[Record], knobs: QualityConfig) -> list[Fate]:
    return [_fate(record, knobs) for record in records]


def _fate(record: Record, knobs: QualityConfig) -> Fate:
    if isinstance(record, EvaluationItem):
        return Fate(record)
    broken = next((found for rule in _RULES if (found := rule(record, knobs)) is not None), None)
    if broken is None:
        return Fate(record)
    noted = broken.reason == "refusal" and knobs.refusals == "note"
    return Fate(record, (broken,), drops=not noted)


def _control_tokens(record: Record, knobs: QualityConfig) -> Finding | None:
    if not knobs.control_tokens:
        return None
    for turn in turns_of(record):
        if (match := _CONTROL.search(turn.content)) is not None:
            return Finding("control_token", {"rule": "control_tokens", "value": match[0], "role": turn.role})
    return None


def _role_order(record: Record, knobs: QualityConfig) -> Finding | None:
    prompt: list[Message] = getattr(record, "prompt", [])
    fault = disorder([turn.role for turn in prompt], [bool(turn.tool_calls) for turn in prompt])
    return Finding("role_order", {"rule": "role_order", "value": fault}) if knobs.role_order and fault else None


def disorder(roles: Sequence[str], calls: Sequence[bool]) -> str | None:
    """Return what is wrong with the order of a prompt's turns, or None.

    Systems and developers speak first, then user and assistant in turns; results follow calls; the assistant is next.
    """
    before = ""
    if not roles:
        return None
    for place, (role, calling) in enumerate(zip(roles, [False, *calls[:-1]], strict=True)):
        if role in ("system", "developer"):
            if before not in ("", "system", "developer"):
                return f"turn {place + 1} is by {role!r}, after {before!r}"
        elif role == "tool":
            if before != "tool" and not (before == "assistant" and calling):
                return f"turn {place + 1} is a result without a call"
        elif role == before:
            return f"turns {place} and {place + 1} are both by {role!r}"
        elif role == "assistant" and before in ("", "system", "developer"):
            return f"turn {place + 1} is an answer to nobody"
        before = role
    return "the prompt ends with an answer" if before == "assistant" and not (calls and calls[-1]) else None


def _garbled(record: Record, knobs: QualityConfig) -> Finding | None:
    text = texts_of(record).whole()
    share = sum(len(match[0]) for match in _GARBLED.finditer(text)) / len(text) if text else 0.0
    return _over("garbled", "max_garbled", share, knobs.max_garbled)


def _refusal(record: Record, knobs: QualityConfig) -> Finding | None:
    if knobs.refusals == "keep" or not isinstance(record, Demonstration) or not record.prompt:
        return None
    answer = record.completion[-1].content
    if _REFUSAL.match(answer) is None or len(words(answer)) > _REFUSAL_WORDS:
        return None
    return Finding("refusal", {"rule": "refusals", "value": len(words(answer))})


def _echo(record: Record, knobs: QualityConfig) -> Finding | None:
    texts = texts_of(record)
    asked = words(texts.prompt)
    echoes = len(asked) > 3 and bool(texts.answers) and all(words(answer) == asked for answer in texts.answers)
    return Finding("answer_repeats_prompt", {"rule": "echo", "value": len(asked)}) if echoes else None


def _running_text(record: Record, knobs: QualityConfig) -> Finding | None:
    for answer in texts_of(record).answers:
        prose = _FENCED.sub(" ", answer)
        found = words(prose)
        if len(found) >= LONG and (broken := next(_faults(prose, found, knobs), None)) is not None:
            return broken
    return None


def _faults(prose: str, found: Sequence[str], knobs: QualityConfig) -> Iterator[Finding]:
    written = "".join(prose.split())
    lettered = sum(map(str.isalpha, written)) / len(written)
    if lettered < knobs.min_letters:
        yield Finding("few_letters", {"rule": "min_letters", "value": round(lettered, 4), "limit": knobs.min_letters})
    symbols = len(_SYMBOLS.findall(prose)) / len(found)
    named = [word for word in found if word[0].isalpha()]
    frequent = LIMITS if len(named) >= PAGE else {}
    checks = [
        ("symbols", "max_symbols", symbols, knobs.max_symbols),
        ("repeated_lines", "max_repeated", repeated_lines(prose), knobs.max_repeated),
        ("repeated_words", "max_repeated", repeated_runs(named, 8), knobs.max_repeated),
        *((f"repeated_{n}_words", "limit", most_frequent_run(named, n), limit) for n, limit in frequent.items()),
    ]
    for reason, rule, value, limit in checks:
        if (broken := _over(reason, rule, value, limit)) is not None:
            yield broken
    if (match := _PAGE.search(prose)) is not None:
        yield Finding("page_boilerplate", {"rule": "page_boilerplate", "value": match[0].lower()})


def _over(reason: str, rule: str, value: float, limit: float) -> Finding | None:
    return Finding(reason, {"rule": rule, "value": round(value, 4), "limit": limit}) if value > limit else None


_RULES: tuple[Rule, ...] = (_control_tokens, _role_order, _garbled, _echo, _refusal, _running_text)
